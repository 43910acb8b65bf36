"""Losses of a margin: the logistic loss, and convex piecewise-linear functions that approach it from below.

Every loss here is a function of an array that returns an array of the same shape, is convex, and does not
increase: the three facts on which the exact follower rests.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sgpo_lib.follower.inputs import checked_count

Loss = Callable[[np.ndarray], np.ndarray]


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + e^-x), any shape, without overflow and with full precision in the lower tail."""
    return np.exp(-logistic_loss(x))


def logistic_loss(margins: np.ndarray) -> np.ndarray:
    """The DPO loss -log sigma(x) = log(1 + exp(-x)), safe for margins of any size.

    Parameters
    ----------
    margins : ndarray, any shape

    Returns
    -------
    ndarray of the same shape, >= 0.
    """
    margins = np.asarray(margins)
    # log(1 + e^-x) = log1p(e^-|x|) + max(-x, 0) never overflows, and costs a fraction of logaddexp.
    values = np.exp(-np.abs(margins))
    return np.log1p(values) - np.minimum(margins, 0)


@dataclass(frozen=True, eq=False)
class Pieces:
    """A convex, non-increasing loss that is the maximum of K lines: max_k (slopes[k] x + intercepts[k]).

    Like every `Loss` it is called with an array of margins.

    Attributes
    ----------
    slopes, intercepts : ndarray, shape (K,)
        a_k <= 0 and b_k.
    """

    slopes: np.ndarray
    intercepts: np.ndarray

    def __post_init__(self):
        """Check the lines and copy them."""
        slopes, intercepts = (np.array(x, dtype=float) for x in (self.slopes, self.intercepts))
        if slopes.ndim != 1 or slopes.shape != intercepts.shape or slopes.size == 0:
            raise ValueError(
                f"pieces need as many slopes as intercepts, but have {slopes.shape} and {intercepts.shape}"
            )
        if not (np.isfinite(slopes).all() and np.isfinite(intercepts).all()):
            raise ValueError("slopes and intercepts must be finite; leave out the tangent at probability 0")
        if slopes.max() > 0:
            raise ValueError(f"the steepest rise is {slopes.max()}, but a loss must not increase: use slopes <= 0")
        object.__setattr__(self, "slopes", slopes)
        object.__setattr__(self, "intercepts", intercepts)

    def __len__(self) -> int:
        """K."""
        return self.slopes.size

    def __call__(self, margins: np.ndarray) -> np.ndarray:
        """Return the loss of each margin, in an array of the same shape."""
        margins = np.asarray(margins, dtype=float)
        values = np.full(margins.shape, -np.inf)
        for slope, intercept in zip(self.slopes, self.intercepts, strict=True):
            np.maximum(values, slope * margins + intercept, out=values)
        return values


def tangents(n_pieces: int, support: tuple[float, float] | None = None, space: str = "margin") -> Pieces:
    """Touch the loss from below with K tangents.

    In margin space the lines touch log(1 + e^-x) at K evenly spaced points from a to b, so that K and 2K - 1
    are nested and the value of the follower rises from one to the other (Proposition 3.2). In probability
    space they touch -log v at v = k/K, k = 1..K (the paper's App. G): l_k(v) = -(K/k)(v - k/K) - log(k/K).

    Parameters
    ----------
    n_pieces : int >= 1
        K.
    support : (a, b), needed in margin space only
    space : {"margin", "probability"}

    Raises
    ------
    ValueError
        If K < 1, the space is unknown, or the support is missing or not two finite numbers with a <= b.
    """
    n_pieces = checked_count(n_pieces, "n_pieces")
    if space == "probability":
        if support is not None and tuple(support) != (0, 1):
            raise ValueError(f"tangents in probability space span (0, 1), not {support}; leave support out")
        knots = np.arange(1, n_pieces + 1) / n_pieces
        return Pieces(-1 / knots, 1 - np.log(knots))
    if space != "margin":
        raise ValueError(f'space must be "margin" or "probability", but is {space!r}')
    if support is None or callable(support):
        raise ValueError("tangents in margin space need the window itself: give support=(a, b)")
    low, high = support
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise ValueError(f"support must be two finite numbers with a <= b, but is ({low}, {high})")
    knots = np.linspace(low, high, n_pieces)
    # sigma(-x) = exp(-log(1 + e^x)) does not overflow for any x.
    slopes = -np.exp(-logistic_loss(-knots))
    return Pieces(slopes, logistic_loss(knots) - slopes * knots)
