"""The follower on labels: the adversary doubts the order of the pairs, where `exact` moves their margins.

Pair i has margin x_i and its label is wrong with probability p_i (calibrated: `radius`). The adversary chooses
wrong-label probabilities q_i near p_i, and a wrong label turns the loss l(x_i) into l(-x_i) = l(x_i) + x_i:

    V(radius) = max_q (1/N) sum_i l(x_i) + q_i x_i   subject to   (1/N) sum_i D(q_i, p_i) <= radius.

With D the Kullback-Leibler divergence of coins, `worst_flips`, strong duality gives

    V = min_{price > 0} price radius + (1/N) sum_i [l(x_i) + price log(1 - p_i + p_i exp(x_i / price))],

attained by q_i = sigma(logit p_i + x_i / price): one number to search for, at which the divergence, which rises
as the price falls, meets the radius. Weak duality makes the bracket an upper bound at every price, so that
``dual_value - value`` = price (radius - divergence) certifies the answer.

With D = cost_i |q_i - p_i|, `worst_flips_at_cost`, a Wasserstein ball of labels, it is a fractional knapsack:
pairs in the order of |x_i| / cost_i.

Both beyond the paper, whose follower moves margins. Radius 0 is label smoothing with p_i for each pair; p = 0
is DPO, at every radius of the first kind.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from sgpo_lib.follower.inputs import checked_margins, checked_probabilities, checked_radius
from sgpo_lib.follower.loss import logistic_loss

# The arrays made of as many pairs stay in the second-level cache.
_CHUNK = 16384
# Margins and probabilities below it count as 0: their products would leave the floating-point range.
_NOTHING = 1e-100
# The price is guessed on every 256th pair and then on every 16th, before it is found on all.
_STRIDES = (256, 16)


@dataclass(frozen=True, eq=False)
class WorstFlips:
    """The worst wrong-label probabilities in a ball around the given ones, in the caller's order.

    Attributes
    ----------
    value : float
        Expected loss under them.
    dual_value : float
        An upper bound of every value in the ball; ``gap`` at rounding level proves that `value` is optimal.
    price : float
        How much the value rises per unit of radius. Infinite at radius 0 in the Kullback-Leibler ball; 0 where
        the radius is more than the adversary can use.
    nominal : float
        Expected loss under the given probabilities: label smoothing.
    radius, spent : float
        The budget, and what is used of it: nats, or units of cost, per pair.
    margins : ndarray, shape (N,)
    flip_probability : ndarray, shape (N,)
        q_i.
    """

    value: float
    dual_value: float
    price: float
    nominal: float
    radius: float
    spent: float
    margins: np.ndarray = field(repr=False)
    flip_probability: np.ndarray = field(repr=False)

    @property
    def gap(self) -> float:
        """The certificate ``dual_value - value``."""
        return self.dual_value - self.value

    def summary(self) -> dict[str, float]:
        """Return the numbers a report wants, as plain Python ones."""
        names = ("value", "dual_value", "gap", "nominal", "price", "radius", "spent")
        return {name: getattr(self, name) for name in names}

    def per_pair(self) -> dict[str, np.ndarray]:
        """Return what leader mode `flips` needs to know of each pair, as columns of shape (N,)."""
        return {"margin": self.margins, "flip_probability": self.flip_probability}


def worst_flips(margins, flip_probability, radius: float) -> WorstFlips:
    """Return the wrong-label probabilities of largest expected loss within a mean divergence `radius`.

    Parameters
    ----------
    margins : array_like, shape (N,)
        Implicit-reward margins in the order of the labels.
    flip_probability : array_like, shape (N,), or a number
        p_i in [0, 1]: the chance that label i is wrong. Labels that are certain (0 or 1) stay so.
    radius : float >= 0
        Mean Kullback-Leibler divergence per pair, in nats.

    Returns
    -------
    WorstFlips

    Raises
    ------
    ValueError
        If margins are empty, NaN or infinite; the probabilities are not as many, or outside [0, 1]; or the
        radius is negative or not finite.
    """
    margins = checked_margins(margins)
    prior = checked_probabilities(flip_probability, margins)
    radius = checked_radius(radius, unit="nats per pair")

    # The adversary makes one of the two orders likelier, the one of larger loss; the other is `mild`. Sizes
    # |x_i| instead of margins keep exponentials below 1, and a size of 0 keeps certain labels out of the search.
    is_up = (margins > 0).astype(float)
    mild, harmful = np.abs(is_up - prior), np.abs(1 - is_up - prior)
    sizes = np.abs(margins) * ((prior > _NOTHING) & (prior < 1) & (np.abs(margins) > _NOTHING))
    losses = np.concatenate([logistic_loss(margins[part]) for part in _chunks(margins.size)])
    nominal = float(np.mean(losses + prior * margins))
    unpriced = nominal + float(np.mean(mild * sizes))

    room = _largest_divergence(harmful, sizes)
    if radius >= room:
        q, price, spent, dual_value = np.where(sizes > 0, is_up, prior), 0.0, room, unpriced
    elif radius == 0:
        q, price, spent, dual_value = prior.copy(), math.inf, 0.0, nominal
    else:
        price, spent = _price_and_spent(mild, harmful, sizes, radius)
        parts = [_tilted(mild[part], harmful[part], sizes[part], 1 / price) for part in _chunks(sizes.size)]
        q = np.abs(is_up - np.concatenate([share for share, _ in parts]))
        mean_log_total = math.fsum(log_total.sum() for _, log_total in parts) / sizes.size
        dual_value = unpriced + price * (radius + mean_log_total)
    return WorstFlips(
        value=float(np.mean(losses + q * margins)),
        dual_value=dual_value,
        price=price,
        nominal=nominal,
        radius=radius,
        spent=spent,
        margins=margins,
        flip_probability=q,
    )


def worst_flips_at_cost(margins, flip_probability, radius: float, cost=1.0) -> WorstFlips:
    """Return the wrong-label probabilities of largest expected loss within a mean cost of `radius`.

    Changing a pair's probability from p_i to q_i costs cost_i |q_i - p_i|. A fractional knapsack: the adversary
    buys whole pairs in the order of |x_i| / cost_i, and part of the last. A cost of 2 |x_i|, the transport of
    the margin that a flip is, makes all pairs equally good bargains.

    Parameters
    ----------
    margins, flip_probability
        As in `worst_flips`, but p_i = 0 does not protect a pair.
    radius : float >= 0
        Mean cost per pair.
    cost : array_like, shape (N,), or a number, > 0

    Returns
    -------
    WorstFlips
        Of equally good bargains the first in the caller's order is bought first.

    Raises
    ------
    ValueError
        As `worst_flips`, and if a cost is not a positive number.
    """
    margins = checked_margins(margins)
    prior = checked_probabilities(flip_probability, margins)
    radius = checked_radius(radius, unit="units of cost per pair")
    cost = np.broadcast_to(np.asarray(cost, dtype=float), margins.shape)
    if not (cost.min() > 0 and cost.max() < math.inf):
        raise ValueError(f"costs must be positive numbers, but span {cost.min()} to {cost.max()}")

    worst = (margins > 0).astype(float)
    distance = np.abs(worst - prior)
    bargain = np.abs(margins) / cost
    best_first = np.argsort(-bargain, kind="stable")
    prices = (cost * distance)[best_first]
    left = radius * margins.size - (np.cumsum(prices) - prices)
    bought = np.empty(margins.size)
    bought[best_first] = np.divide(left, prices, out=np.ones(margins.size), where=prices > 0).clip(0, 1)
    is_left_out = bought < 1
    price = float(bargain[is_left_out].max()) if is_left_out.any() else 0.0

    q = prior + bought * (worst - prior)
    losses = logistic_loss(margins)
    nominal = float(np.mean(losses + prior * margins))
    gains = distance * np.maximum(np.abs(margins) - price * cost, 0)
    return WorstFlips(
        value=float(np.mean(losses + q * margins)),
        dual_value=nominal + price * radius + float(gains.mean()),
        price=price,
        nominal=nominal,
        radius=radius,
        spent=float(np.mean(bought * cost * distance)),
        margins=margins,
        flip_probability=q,
    )


def _chunks(n: int) -> list[slice]:
    return [slice(start, start + _CHUNK) for start in range(0, n, _CHUNK)]


def _tilted(mild, harmful, sizes, tilt: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the mild order's probability when mild is weighted by exp(-tilt sizes), and log of the total."""
    exponents = tilt * sizes
    weighted = mild * np.exp(-exponents)
    # log1p keeps the digits of small exponents, log those of a total near 0. Beyond 1 the rounding of either,
    # times the price 1 / tilt, is below that of the largest margin.
    log_total = np.log1p(mild * np.expm1(-exponents)) if exponents.max() < 1 else np.log(harmful + weighted)
    return weighted / (harmful + weighted), log_total


def _divergence(mild, harmful, sizes, tilt: float) -> tuple[float, float]:
    """Return the mean divergence at a tilt, and its derivative by log tilt."""
    spent, slope = [], []
    for part in _chunks(sizes.size):
        share, log_total = _tilted(mild[part], harmful[part], sizes[part], tilt)
        exponents = tilt * sizes[part]
        spent.append(-(share @ exponents) - log_total.sum())
        slope.append((share * (1 - share) * exponents) @ exponents)
    return math.fsum(spent) / sizes.size, math.fsum(slope) / sizes.size


def _largest_divergence(harmful, sizes) -> float:
    """Return the mean divergence at which every pair that can be is in its harmful order."""
    return float(-np.log(harmful, out=np.zeros(sizes.size), where=sizes > 0).mean())


def _price_and_spent(mild, harmful, sizes, radius: float) -> tuple[float, float]:
    """Return the price at which the divergence is the radius, from above, so that the ball is not left."""
    scale = float(sizes.mean())
    sizes = sizes / scale
    # For small tilts the divergence is half the tilt's square times the variance of q x.
    variance = max(float(np.mean(mild * harmful * sizes**2)), np.finfo(float).tiny)
    tilt = math.sqrt(2 * radius / variance)
    for stride in _STRIDES:
        sample = mild[::stride], harmful[::stride], sizes[::stride]
        if radius < _largest_divergence(*sample[1:]):
            tilt, _ = _tilt_and_spent(*sample, radius, tilt)
    tilt, spent = _tilt_and_spent(mild, harmful, sizes, radius, tilt)
    return scale / tilt, spent


def _tilt_and_spent(mild, harmful, sizes, radius: float, start: float) -> tuple[float, float]:
    """Search for the tilt by Newton's method on the root of the divergence, which rises almost linearly.

    A step that leaves the bracket is replaced by one of eight times, or by the bracket's geometric middle.
    """
    low, high, tilt, spent_at_low = 0.0, math.inf, start, 0.0
    for _ in range(200):
        spent, slope = _divergence(mild, harmful, sizes, tilt)
        if spent <= radius:
            low, spent_at_low = tilt, spent
            if radius - spent <= max(5e-14 * radius, 1e-16 * tilt):
                break
        else:
            high = tilt
        if high <= low * (1 + 1e-15):
            break
        # Aimed a hair inside the ball, so that Newton's last step does not end outside.
        missing = math.sqrt(max(spent, 0)) * (math.sqrt(radius * (1 - 1e-14)) - math.sqrt(max(spent, 0)))
        tilt *= 1 + 2 * missing / slope if slope > 0 else math.inf
        if not low < tilt < high:
            tilt = 8 * low if high == math.inf else high / 8 if low == 0 else math.sqrt(low * high)
    return low, spent_at_low
