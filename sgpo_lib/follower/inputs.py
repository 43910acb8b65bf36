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


def checked_radius(radius: float, name: str = "radius", unit: str = "margin units") -> float:
    """Return the radius as a float, or explain why it cannot be one.

    Raises
    ------
    ValueError
        If the radius is negative, NaN or infinite.
    """
    radius = float(radius)
    if not (math.isfinite(radius) and radius >= 0):
        raise ValueError(f"{name} must be a finite number >= 0 in {unit}, but is {radius}")
    return radius


def checked_probabilities(probabilities, margins: np.ndarray) -> np.ndarray:
    """Return one probability a margin as a float64 array; a single number stands for all.

    Raises
    ------
    ValueError
        If there are not as many as margins, or one is NaN or outside [0, 1].
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    if probabilities.ndim and probabilities.shape != margins.shape:
        raise ValueError(
            f"there must be one probability a margin, or a single one, but there are {probabilities.shape} "
            f"for {margins.shape} margins"
        )
    if not (probabilities.min() >= 0 and probabilities.max() <= 1):
        raise ValueError(
            f"probabilities must be in [0, 1], but span {probabilities.min()} to {probabilities.max()}; "
            "logits need the sigmoid first"
        )
    return np.broadcast_to(probabilities, margins.shape)


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
