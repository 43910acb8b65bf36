"""What every solver asks of its input, and what it says when it does not get it."""

import math

import numpy as np


def checked_margins(margins) -> np.ndarray:
    """Copy the margins into a float64 array that the caller cannot change later.

    Parameters
    ----------
    margins : array_like, shape (N,), N >= 1
        Implicit-reward margins, or probabilities in probability space.

    Raises
    ------
    ValueError
        If there is no margin, more than one axis, or one that is NaN or infinite.
    """
    margins = np.array(margins, dtype=np.float64)
    if margins.ndim != 1:
        raise ValueError(f"margins must have one axis, but have shape {margins.shape}; flatten them with .ravel()")
    if margins.size == 0:
        raise ValueError("margins are empty; the follower needs at least one pair")
    # The minimum and the maximum are finite exactly when all margins are: NaN wins both.
    if not (math.isfinite(margins.min()) and math.isfinite(margins.max())):
        bad = np.flatnonzero(~np.isfinite(margins))
        raise ValueError(
            f"{bad.size} of {margins.size} margins are NaN or infinite, the first at index {bad[0]} "
            f"({margins[bad[0]]}); drop these pairs or repair their log-probabilities"
        )
    return margins


def checked_radius(radius: float, name: str = "radius") -> float:
    """Return the radius as a float, or explain why it cannot be one.

    Raises
    ------
    ValueError
        If the radius is negative, NaN or infinite.
    """
    radius = float(radius)
    if not (math.isfinite(radius) and radius >= 0):
        raise ValueError(f"{name} must be a finite number >= 0 in margin units, but is {radius}")
    return radius


def checked_count(count: int, name: str) -> int:
    """Return a whole number of at least one.

    Raises
    ------
    ValueError
        If the count is not a whole number or is below one.
    """
    if int(count) != count or count < 1:
        raise ValueError(f"{name} must be a whole number >= 1, but is {count}")
    return int(count)
