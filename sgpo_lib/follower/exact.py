"""The exact follower: the worst case over a W1 ball of margins, by one greedy pass.

Theorem. Let the loss l be convex and non-increasing on [a, b], all xi_i in [a, b], c_i = xi_i - a, and
s(x) = (l(a) - l(x)) / (x - a) the slope of the chord from a. An optimal distribution moves mass to a only:
all of the lowest margins while sum_i t_i c_i <= N radius, a fraction t_m of the next one, nothing above.

Proof. Strong duality gives V = min_{p >= 0} p radius + (1/N) sum_i max_{z in [a, b]} {l(z) - p |z - xi_i|}.
On [a, xi_i] and on [xi_i, b] the bracket is convex in z, so it is largest at an end: a, xi_i or b, and b is
no better than xi_i because l does not increase. So

    V = min_{p >= 0} p radius + (1/N) sum_i max(l(xi_i), l(a) - p c_i),

the dual of a fractional knapsack with values l(a) - l(xi_i), weights c_i and efficiencies s(xi_i), which
convexity makes non-increasing in xi_i. Filling it from the lowest margin is optimal, at price s(xi_m). QED

Neither the paper's tangents nor its grouping is needed: the theorem holds for the logistic loss itself and
for all pairs at once.
"""

import math

import numpy as np

from sgpo_lib.follower.inputs import checked_margins, checked_radius
from sgpo_lib.follower.loss import Loss, logistic_loss
from sgpo_lib.follower.result import Moves, WorstCase
from sgpo_lib.follower.support import Support, resolve_support

# 16384 float64 margins and the few arrays made of them stay in the second-level cache.
_CHUNK = 16384
# How many margins are sorted to guess the threshold below which the budget is spent.
_SAMPLE = 4096


def worst_case(
    margins,
    radius: float,
    support: Support | None = None,
    loss: Loss = logistic_loss,
) -> WorstCase:
    """Return the distribution of largest expected loss within W1 distance `radius` of the margins.

    Solves eq. (5) of the paper exactly for any convex, non-increasing loss; the proof is in this module's
    docstring. Expected time is linear in N, apart from sorting the few lowest margins that absorb the budget.

    Parameters
    ----------
    margins : array_like, shape (N,)
        Implicit-reward margins; or probabilities sigma(margin), with support (0, 1) and a loss to match.
        Margins outside the support are clipped to it and counted in the result.
    radius : float >= 0
        Mean transport per pair, in the units of the margins. 0 gives the loss without an adversary.
    support : (a, b), rule, or None
        The window that margins may occupy; None is ``RangeSupport(0.1)``.
    loss : function of an array
        Convex and non-increasing on the support. ``tangents(...)`` gives the paper's.

    Returns
    -------
    WorstCase
        With ``dual_value - value`` at rounding level: the proof that no distribution is worse. Of tied
        margins, the first in the caller's order moves first.

    Raises
    ------
    ValueError
        If margins are empty, NaN or infinite; the radius is negative or not finite; the support is empty or
        not finite; or the loss is infinite at its lower end or increases across it.
    """
    margins = checked_margins(margins)
    radius = checked_radius(radius)
    low, high = resolve_support(support, margins)
    n_clipped = clip_to_support(margins, low, high)
    low_loss = _loss_at_low_end(loss, low, high)

    moves, boundary = _greedy_moves(margins, low, radius)
    price = 0.0 if boundary is None else _chord_slope(loss, low, high, boundary)
    nominal, saved = _nominal_and_dual_terms(margins, loss, low, low_loss, price)
    origin = margins[moves.pair]
    gained = moves.fraction @ (low_loss - loss(origin)) / margins.size
    return WorstCase(
        value=float(nominal + gained),
        dual_value=float(nominal + (price * radius + saved)),
        price=price,
        nominal=nominal,
        margins=margins,
        support=(low, high),
        radius=radius,
        transport=float(moves.fraction @ (origin - low) / margins.size),
        n_clipped=n_clipped,
        moves=moves,
        loss=loss,
    )


def closed_form_value(margins, radius: float) -> float:
    """Return the worst-case logistic loss without a support: mean loss + radius (Lemma 3.1).

    It is a supremum that no distribution attains: ever less mass moves ever further down, where the loss has
    slope -1.

    Parameters
    ----------
    margins : array_like, shape (N,)
    radius : float >= 0, in margin units
    """
    return float(logistic_loss(checked_margins(margins)).mean()) + checked_radius(radius)


def clip_to_support(margins: np.ndarray, low: float, high: float) -> int:
    """Clip the margins to [low, high] in place and return how many lay outside."""
    if margins.min() >= low and margins.max() <= high:
        return 0
    n_clipped = np.count_nonzero(margins < low) + np.count_nonzero(margins > high)
    np.clip(margins, low, high, out=margins)
    return int(n_clipped)


def _loss_at_low_end(loss: Loss, low: float, high: float) -> float:
    low_loss, high_loss = (float(x) for x in loss(np.array([low, high])))
    if not math.isfinite(low_loss):
        raise ValueError(
            f"the loss is {low_loss} at the lower end a = {low} of the support, so the worst case is too; "
            'raise a, or in probability space use tangents(n_pieces, space="probability")'
        )
    if low_loss < high_loss:
        raise ValueError(
            f"the loss rises from {low_loss} to {high_loss} across the support ({low}, {high}); the follower "
            "needs a convex loss that does not increase with the margin"
        )
    return low_loss


def _greedy_moves(margins: np.ndarray, low: float, radius: float) -> tuple[Moves, float | None]:
    """Fill the knapsack from the lowest margin; also return the margin where the budget ran out, if any."""
    budget = radius * margins.size
    candidates = _lowest_beyond_budget(margins, low, radius)
    if candidates is None:
        pair, fraction, boundary = np.arange(margins.size), np.ones(margins.size), None
    else:
        lowest = margins[candidates]
        boundary = _where_budget_ends(np.sort(lowest), low, budget)
        # Index order among the candidates is the caller's order, which makes ties stable.
        is_below = lowest < boundary
        below, tied = candidates[is_below], candidates[lowest == boundary]
        left = max(budget - _total_cost(lowest[is_below], low), 0.0)
        affordable = left / (boundary - low)
        tied = tied[: int(min(affordable, tied.size)) + 1]
        pair = np.concatenate([below, tied])
        fraction = np.concatenate([np.ones(below.size), np.clip(affordable - np.arange(tied.size), 0, 1)])
    # Without a budget nothing moves, not even a margin that lies at `low` and would move for free.
    if budget == 0 or not fraction.all():
        moving = (fraction > 0) & (budget > 0)
        pair, fraction = pair[moving], fraction[moving]
    return Moves(pair, np.full(pair.size, low), fraction), boundary


def _where_budget_ends(ordered: np.ndarray, low: float, budget: float) -> float:
    """Return the first of the ascending margins that the budget does not cover in full."""
    spent = ordered - low
    np.cumsum(spent, out=spent)
    rank = np.searchsorted(spent, budget, side="right")
    # Rounding may leave the running sum a hair below the budget that the pairwise sum exceeded.
    return float(ordered[min(rank, ordered.size - 1)])


def _lowest_beyond_budget(margins: np.ndarray, low: float, radius: float) -> np.ndarray | None:
    """Return the indices of all margins up to a threshold at which moving them costs more than the budget.

    None means that the budget moves every margin.

    The threshold is guessed from a sample, checked on the margins themselves and raised until it holds, so a
    bad sample costs time, not correctness.
    """
    sample = np.sort(margins[:: max(1, margins.size // _SAMPLE)])
    spent = np.cumsum(sample - low)
    rank = 8 + 5 * int(np.searchsorted(spent, radius * sample.size)) // 4
    while rank < sample.size:
        candidates = np.flatnonzero(margins <= sample[rank])
        if _total_cost(margins[candidates], low) > radius * margins.size:
            return candidates
        rank *= 2
    return np.arange(margins.size) if _total_cost(margins, low) > radius * margins.size else None


def _total_cost(margins: np.ndarray, low: float) -> float:
    return math.fsum((margins[start : start + _CHUNK] - low).sum() for start in range(0, margins.size, _CHUNK))


def _chord_slope(loss: Loss, low: float, high: float, boundary: float) -> float:
    """Return s(boundary), the slope of the chord from the low end, negated.

    When the boundary lies within rounding of `low` its chord is lost in cancellation. No chord beyond it is
    steeper, so the largest slope over ever longer chords, each less its rounding error, is as good a bound
    from below as the numbers allow, and low enough by rounding only.
    """
    n_doublings = math.ceil(math.log2(high - low) - math.log2(boundary - low))
    points = np.minimum(low + np.ldexp(boundary - low, np.arange(n_doublings + 1)), high)
    low_loss = loss(np.array([low]))
    drops = low_loss - loss(points) - 4 * np.finfo(float).eps * np.abs(low_loss)
    with np.errstate(over="ignore"):
        return float(max((drops / (points - low)).max(), 0.0))


def _nominal_and_dual_terms(margins, loss: Loss, low, low_loss, price) -> tuple[float, float]:
    """Return the means of l(xi_i) and of max(0, l(a) - price c_i - l(xi_i))."""
    nominal, saved = [], []
    for start in range(0, margins.size, _CHUNK):
        costs = margins[start : start + _CHUNK] - low
        losses = loss(margins[start : start + _CHUNK])
        nominal.append(losses.sum())
        gains = costs * -price
        gains += low_loss
        gains -= losses
        np.maximum(gains, 0, out=gains)
        saved.append(gains.sum())
    return math.fsum(nominal) / margins.size, math.fsum(saved) / margins.size
