"""The window [a, b] that margins may occupy, given or derived from the margins.

A rule is a function of the margins, so that the window follows them from round to round. Both rules
also take torch tensors, and then answer with tensors on the same device.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

Support = tuple[float, float] | Callable


@dataclass(frozen=True)
class RangeSupport:
    """The paper's rule: [min - tau, max + tau].

    Parameters
    ----------
    tau : float >= 0
        Room beyond the extreme margins, in margin units.
    """

    tau: float = 0.1

    def __post_init__(self):
        """Check the parameter, which may come from a file."""
        if not (math.isfinite(self.tau) and self.tau >= 0):
            raise ValueError(f"tau must be a finite number >= 0 in margin units, but is {self.tau}")

    def __call__(self, margins):
        """Return (a, b) for margins of shape (N,)."""
        return margins.min() - self.tau, margins.max() + self.tau


@dataclass(frozen=True)
class QuantileSupport:
    """The window between the q-th and the (1 - q)-th quantile; what lies outside is clipped to it.

    Parameters
    ----------
    q : float, 0 <= q < 1/2
        Fraction of the pairs to clip at each end.
    """

    q: float = 0.01

    def __post_init__(self):
        """Check the parameter, which may come from a file."""
        if not 0 <= self.q < 0.5:
            raise ValueError(f"q must be in [0, 0.5), but is {self.q}; 0.01 clips one per cent at each end")

    def __call__(self, margins):
        """Return (a, b) for margins of shape (N,)."""
        if isinstance(margins, np.ndarray):
            return tuple(np.quantile(margins, (self.q, 1 - self.q)))
        return margins.quantile(self.q), margins.quantile(1 - self.q)


SUPPORT_RULES = {"range": RangeSupport, "quantile": QuantileSupport}
"""The rules by the names that parameter files use."""


def make_support(value: Mapping | tuple[float, float]) -> Support:
    """Return what a params file's `support` stands for: {"rule": "range", "tau": 0.1} or (a, b).

    Raises
    ------
    ValueError
        If there is no such rule.
    """
    if not isinstance(value, Mapping):
        return tuple(value)
    options = dict(value)
    name = options.pop("rule", None)
    if name not in SUPPORT_RULES:
        raise ValueError(f"there is no support rule {name!r}; the rules are {', '.join(SUPPORT_RULES)}")
    return SUPPORT_RULES[name](**options)


def resolve_support(support: Support | None, margins: np.ndarray) -> tuple[float, float]:
    """Return the window as two floats.

    Parameters
    ----------
    support : (a, b), a rule, or None for ``RangeSupport()``
    margins : ndarray, shape (N,)

    Raises
    ------
    ValueError
        If the window is not two finite numbers with a <= b.
    """
    support = RangeSupport() if support is None else support
    window = support(margins) if callable(support) else support
    try:
        low, high = (float(end) for end in window)
    except (TypeError, ValueError):
        raise ValueError(
            f"support must be two numbers (a, b) or a rule such as RangeSupport(0.1), but is {support!r}"
        ) from None
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(
            f"support ({low}, {high}) is not finite; give finite ends, or use closed_form_value, "
            "which needs no support but has no worst-case distribution to return"
        )
    if low > high:
        raise ValueError(f"support ({low}, {high}) is empty because a > b; swap its ends")
    return low, high
