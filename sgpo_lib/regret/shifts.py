"""Adversaries in the space of pairs: laws within a stated W1 distance of the training law.

Each returns a law that exists (an attained transport), so a simulated shift is never a limit. The worst of
all laws on a finite set of pairs is exact, for any objective: `transport_frontier`.
"""

from typing import NamedTuple

import numpy as np

from sgpo_lib.follower import logistic_loss
from sgpo_lib.regret.games import Law, empirical, regret


def translation(pairs, policy, size: float) -> Law:
    """Move every pair by `size` against the policy, x -> x - size θ/‖θ‖. Its W1 distance is |size| exactly.

    A negative size moves the pairs *with* the policy: a shift as large, and harmless.
    """
    pairs = np.asarray(pairs, dtype=float)
    norm = np.linalg.norm(policy)
    if norm == 0:
        raise ValueError("a zero policy has no direction to shift against: give a policy with some norm")
    return empirical(pairs - size * policy / norm)


def random_shift(rng, pairs, size: float) -> Law:
    """Displace the pairs at random so that the mean displacement is `size`; W1 is at most that.

    Displacement lengths are exponential: some pairs move far, most little.
    """
    steps = rng.normal(size=np.shape(pairs))
    steps *= rng.exponential(size=(len(pairs), 1)) / np.linalg.norm(steps, axis=1, keepdims=True)
    return empirical(pairs + steps * size / np.linalg.norm(steps, axis=1).mean())


def capped_shift(pairs, policy, size: float, reach: float) -> Law:
    """The worst law for the policy in the W1 ball of radius `size`, no pair moving further than `reach`.

    Against -θ/‖θ‖ the loss of a pair is convex in the distance moved, so mass moves by the whole reach or
    not at all; convexity also makes the gain per unit of transport largest for the lowest margins, so the
    greedy order is optimal. With reach = size every pair moves (`translation`); a growing reach tends to
    Lemma 3.1.

    Returns
    -------
    Law with 2N atoms, pairs first and moved copies after, in the caller's order.
    """
    if reach < size or reach <= 0:
        raise ValueError(f"reach {reach} is below the shift size {size}: raise the reach, or shrink the shift")
    moved = np.empty(len(pairs))
    order = np.argsort(pairs @ policy, kind="stable")
    moved[order] = np.clip(len(pairs) * size / reach - np.arange(len(pairs)), 0.0, 1.0)
    target = translation(pairs, policy, reach).points
    return Law(np.concatenate([pairs, target]), np.concatenate([1 - moved, moved]) / len(pairs))


class Frontier(NamedTuple):
    """Everything an adversary can buy: segments sorted by gain per cost, best first.

    `start`, `end` (S,) index the points a pair's mass moves between; `cost`, `gain` (S,) are what moving all
    of that pair's mass costs and yields, already divided by the number of pairs.
    """

    n_pairs: int
    n_points: int
    start: np.ndarray
    end: np.ndarray
    cost: np.ndarray
    gain: np.ndarray

    def gains(self, sizes) -> np.ndarray:
        """Largest increase of the mean value for each W1 budget in `sizes`, any shape."""
        cost = np.concatenate([[0.0], np.cumsum(self.cost)])
        gain = np.concatenate([[0.0], np.cumsum(self.gain)])
        return np.interp(sizes, cost, gain)

    def weights(self, size: float) -> np.ndarray:
        """Weights (n_points,) of a worst law for the W1 budget `size`."""
        weights = np.zeros(self.n_points)
        weights[: self.n_pairs] = 1.0 / self.n_pairs
        before = np.cumsum(self.cost) - self.cost
        moved = np.clip((size - before) / self.cost, 0.0, 1.0) / self.n_pairs
        np.subtract.at(weights, self.start, moved)
        np.add.at(weights, self.end, moved)
        return np.clip(weights, 0.0, None)


def transport_frontier(values, costs) -> Frontier:
    """Solve max E_P[value] over the W1 ball of the training law on a finite set, for every radius at once.

    Parameters
    ----------
    values : (M,) what the adversary maximises at each point; the first N points are the training pairs.
    costs : (N, M) distance from training pair i to point j, zero at j = i.

    Each pair's best gain as a function of its cost is a concave envelope; the linear program over all pairs
    is a continuous multiple-choice knapsack, which taking segments in the order of gain per cost solves
    exactly. With one target this is the fractional knapsack of the margin-space follower.
    """
    values, costs = np.asarray(values, dtype=float), np.asarray(costs, dtype=float)
    n_pairs, n_points = costs.shape
    rows = np.arange(n_pairs)
    here, last = rows.copy(), np.full(n_pairs, np.inf)
    segments = []
    while True:
        step = costs - costs[rows, here][:, None]
        rise = values - values[here][:, None]
        slope = np.divide(rise, step, out=np.full_like(step, -np.inf), where=step > 0)
        there = slope.argmax(axis=1)
        # Rounding must not let a pair's second segment look better than its first.
        last = np.minimum(slope[rows, there], last)
        live = last > 0
        if not live.any():
            break
        chosen = rows[live], there[live]
        segments.append((last[live], here[live], there[live], step[chosen], rise[chosen]))
        here = np.where(live, there, here)
        last = np.where(live, last, 0.0)
    if not segments:
        empty, none = np.empty(0), np.empty(0, dtype=int)
        return Frontier(n_pairs, n_points, none, none, empty, empty)
    slope, start, end, cost, gain = (np.concatenate(column) for column in zip(*segments, strict=True))
    order = np.argsort(-slope, kind="stable")
    return Frontier(n_pairs, n_points, start[order], end[order], cost[order] / n_pairs, gain[order] / n_pairs)


def distances(pairs, points) -> np.ndarray:
    """Euclidean ground metric between pairs (N, d) and points (M, d), shape (N, M)."""
    return np.linalg.norm(pairs[:, None, :] - points[None, :, :], axis=2)


def pair_space(pairs, policies=(), n_angles=16, n_norms=6, farthest=20.0) -> np.ndarray:
    """A finite set of pairs for the exact adversary: the training pairs, their flips, and rays to far away.

    Rays go in `n_angles` directions of the plane and along ± every policy given, at `n_norms` distances from
    half to `farthest` times the largest training pair. Works for d = 2.
    """
    angles = 2 * np.pi * np.arange(n_angles) / n_angles
    directions = [np.stack([np.cos(angles), np.sin(angles)], axis=1)]
    for policy in policies:
        norm = np.linalg.norm(policy)
        if norm > 0:
            directions.append(np.stack([policy, -policy]) / norm)
    norms = np.geomspace(0.5, farthest, n_norms) * np.linalg.norm(pairs, axis=1).max()
    rays = (norms[:, None, None] * np.concatenate(directions)[None]).reshape(-1, 2)
    return np.concatenate([pairs, -pairs, rays])


def worst_drop(policy, pairs, points, sizes) -> np.ndarray:
    """Largest J(θ, P̂) - J(θ, P) over laws P on `points` within each W1 distance in `sizes`; exact."""
    frontier = transport_frontier(logistic_loss(points @ policy), distances(pairs, points))
    return frontier.gains(sizes)


def worst_regret(policy, pairs, points, bound: float, sizes, comparators) -> tuple[np.ndarray, list[Law]]:
    """Largest regret over laws on `points` within each W1 distance in `sizes`, and the laws that reach it.

    For one comparator θ' the worst law of ℓ(θ·x) - ℓ(θ'·x) is exact. The maximum over θ' runs over the
    finite set `comparators` (Q, d); the regret reported is then the exact regret of the law found, so it is
    attained, and at least the maximum over the set.

    Returns
    -------
    regrets (S,), laws : one per size.
    """
    costs = distances(pairs, points)
    losses = logistic_loss(points @ policy) - logistic_loss(points @ comparators.T).T
    frontiers = [transport_frontier(values, costs) for values in losses]
    start = losses[:, : len(pairs)].mean(axis=1)
    curves = start[:, None] + np.stack([frontier.gains(sizes) for frontier in frontiers])
    laws = []
    for best, size in zip(curves.argmax(axis=0), sizes, strict=True):
        weights = frontiers[best].weights(size)
        laws.append(Law(points[weights > 0], weights[weights > 0]))
    return np.array([regret(policy, law, bound) for law in laws]), laws


def policy_grid(bound: float, n_angles=24, n_norms=3) -> np.ndarray:
    """Policies on circles of the plane up to norm `bound`, and the zero policy, shape (Q, 2)."""
    angles = 2 * np.pi * np.arange(n_angles) / n_angles
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    norms = bound * np.arange(1, n_norms + 1) / n_norms
    return np.concatenate([np.zeros((1, 2)), (norms[:, None, None] * circle).reshape(-1, 2)])
