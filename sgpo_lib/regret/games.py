"""The toy game: linear rewards on feature vectors, solved exactly.

A pair is its feature difference x = φ(y_w) - φ(y_l); a policy is θ with ‖θ‖ <= B; the margin of the pair is
θ·x. Two pairs are as far apart as their feature differences (Euclidean), so every margin is B-Lipschitz in
the pair and L = B. This module knows policies and laws of pairs; who shifts the law is in `shifts`.
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit

from sgpo_lib.follower import logistic_loss


class Law(NamedTuple):
    """A distribution of pairs with finitely many atoms: `points` (M, d) and `weights` (M,) summing to 1."""

    points: np.ndarray
    weights: np.ndarray


class Game(NamedTuple):
    """Training pairs (N, d), the bound B on the policy's norm, and the ball's radius in feature units."""

    pairs: np.ndarray
    bound: float
    radius: float

    @property
    def lipschitz(self) -> float:
        """L: how fast any policy's margin can change with the pair, in reward per feature unit."""
        return self.bound


def empirical(pairs) -> Law:
    """The training law: every pair with the same weight."""
    pairs = np.asarray(pairs, dtype=float)
    return Law(pairs, np.full(len(pairs), 1.0 / len(pairs)))


def random_game(rng, n_pairs=24, dimension=2, strength=3.0, bound=4.0, radius=0.1, mean_norm=None) -> Game:
    """Draw a game whose labels follow Bradley-Terry.

    Parameters
    ----------
    rng : numpy.random.Generator
    strength : norm of the reward that labels the pairs; larger means fewer contradictory labels.
    mean_norm : rescale the pairs to this mean feature distance between the two responses. Small values make
        near ties: responses so alike that no policy within the bound can tell them apart. None keeps the
        standard normal features.
    """
    truth = rng.normal(size=dimension)
    truth *= strength / np.linalg.norm(truth)
    pairs = rng.normal(size=(n_pairs, dimension))
    pairs *= np.where(rng.random(n_pairs) < expit(pairs @ truth), 1.0, -1.0)[:, None]
    if mean_norm is not None:
        pairs *= mean_norm / np.linalg.norm(pairs, axis=1).mean()
    return Game(pairs, bound, radius)


def payoff(policy, law: Law) -> float:
    """Expected log-likelihood J(θ, P) = E_P[log σ(θ·x)], the paper's P(π, α) with the law on pairs."""
    return -float(law.weights @ logistic_loss(law.points @ policy))


def best_policy(law: Law, bound: float, radius: float = 0.0) -> np.ndarray:
    """Solve max J(θ, P) - radius·‖θ‖ over ‖θ‖ <= bound.

    With radius 0 this is DPO on P. With a positive radius it is the SGPO leader, eq. (4), for the W1 ball on
    pairs: the push-forward of that ball by x -> θ·x is the W1 ball of radius ‖θ‖·radius on margins, whose
    worst case is Lemma 3.1. The price of robustness is therefore a norm penalty.

    Stationarity reads -∇ℓ = m θ with one multiplier m = radius/‖θ‖ + (bound's multiplier), so the solution
    lies on the ridge path θ(m), at the smallest m with ‖θ(m)‖ <= bound and m‖θ(m)‖ >= radius. Both
    quantities are monotone along the path, and m is found by bracketing to 1e-13 relative.

    Returns
    -------
    policy, shape (d,). It is exactly 0 when ‖∇ℓ(0)‖ <= radius: the evidence is weaker than the adversary.
    """
    pull = np.linalg.norm(law.weights @ law.points) / 2
    policy = np.zeros(law.points.shape[1])
    if pull <= radius:
        return policy

    def excess(log_multiplier):
        nonlocal policy
        multiplier = np.exp(log_multiplier)
        policy = proximal_minimum(law, multiplier, policy)
        norm = np.linalg.norm(policy)
        # In logarithms both are nearly straight lines, which the root finder likes.
        over = np.log(norm / bound)
        return max(over, np.log(radius / (multiplier * norm))) if radius > 0 else over

    high = np.log(pull / bound)
    while excess(high) > 0:
        high += 1.0
    low = np.log(1e-10 * pull / bound)
    if excess(low) > 0:
        excess(brentq(excess, low, high, xtol=1e-13, rtol=1e-13))
    return policy * min(1.0, bound / np.linalg.norm(policy))


def regret(policy, law: Law, bound: float) -> float:
    """Regret(θ, P) = max over ‖θ'‖ <= bound of J(θ', P), less J(θ, P); the maximum is solved exactly."""
    return payoff(best_policy(law, bound), law) - payoff(policy, law)


def proximal_minimum(law: Law, weight: float, start, centre=0.0) -> np.ndarray:
    """Minimise E_P[ℓ(θ·x)] + weight/2 ‖θ - centre‖² by Newton's method with halved steps.

    With centre 0 this is ridge regression; with the current policy as centre it is the proximal leader step
    of eq. (8).

    Returns
    -------
    policy, shape (d,), to a squared Newton decrement of 1e-20.

    Raises
    ------
    ValueError
        If the weight is not positive: separable pairs then have no minimum.
    """
    if weight <= 0:
        raise ValueError(f"the proximal weight must be positive, but is {weight}: shorten the step 1 / weight")
    points, weights = law
    policy = np.asarray(start, dtype=float)
    identity = np.eye(points.shape[1])

    def objective(candidate):
        offset = candidate - centre
        return weights @ logistic_loss(points @ candidate) + weight / 2 * offset @ offset

    value = objective(policy)
    for _ in range(200):
        slope = expit(-(points @ policy))
        gradient = weight * (policy - centre) - (weights * slope) @ points
        curvature = (points.T * (weights * slope * (1 - slope))) @ points + weight * identity
        step = np.linalg.solve(curvature, gradient)
        decrement = gradient @ step
        size = 1.0
        # Below this decrement rounding hides the descent, and Newton's full step is safe.
        if decrement > 1e-12:
            while objective(policy - size * step) > value - 1e-4 * size * decrement:
                size /= 2
        policy = policy - size * step
        if decrement < 1e-20:
            return policy
        value = objective(policy)
    raise RuntimeError(f"Newton's method stopped at decrement {decrement:.1e}; raise the weight {weight:.1e}")
