"""The equilibrium of the pair-space game, solved exactly (the object of Theorem 2.3).

The follower plays on pairs, in the W1 ball of the training law with no pair moving further than `reach`
(`shifts.capped_shift`): its best response is attained and the game is zero-sum, convex in θ and linear in P,
so the Stackelberg equilibrium is a saddle point. With reach = radius every pair moves by the radius and the
best response is a smooth function of θ; with a longer reach only the lowest margins move, and the best
response jumps where their order changes.
"""

import numpy as np
from scipy.optimize import minimize, root
from scipy.special import expit

from sgpo_lib.follower import logistic_loss
from sgpo_lib.regret.games import best_policy, empirical, payoff
from sgpo_lib.regret.shifts import capped_shift


def worst_loss(policy, pairs, radius: float, reach: float) -> tuple[float, np.ndarray]:
    """The leader's loss -V(θ) against the best response, and its gradient (Danskin), shape (d,)."""
    points, weights = capped_shift(pairs, policy, radius, reach)
    margins = points @ policy
    return float(weights @ logistic_loss(margins)), -(weights * expit(-margins)) @ points


def smooth_equilibrium(pairs, radius: float) -> np.ndarray:
    """Solve ∇V(θ) = 0 for reach = radius, where V(θ) = -E[ℓ(θ·x - radius ‖θ‖)]; exact to 1e-12.

    Raises
    ------
    ValueError
        If ‖mean pair‖ <= radius: the equilibrium is then θ = 0, where the follower has no best direction.
    """
    if np.linalg.norm(pairs.mean(axis=0)) <= radius:
        raise ValueError("the mean pair is shorter than the radius, so the equilibrium is 0: lower the radius")
    start = best_policy(empirical(pairs), bound=5.0, radius=radius / 2)
    solution = root(lambda policy: worst_loss(policy, pairs, radius, radius)[1], start, tol=1e-14)
    if np.linalg.norm(worst_loss(solution.x, pairs, radius, radius)[1]) > 1e-11:
        raise RuntimeError(f"no equilibrium found ({solution.message}): the pairs may be separable")
    return solution.x


def robust_leader(pairs, radius: float, reach: float, bound: float, tolerance=1e-9) -> tuple[np.ndarray, float]:
    """Minimise the worst loss over ‖θ‖ <= bound for any reach, by adding one worst law at a time.

    Each round solves min_θ max_k E_{P_k}[ℓ(θ·x)] over the laws found so far, whose value bounds the game's
    from below, then adds the follower's best response, whose value bounds it from above.

    Returns
    -------
    policy (d,), and the gap between the two bounds: the proof that the policy is optimal to that much.
    """
    policy = best_policy(empirical(pairs), bound, radius)
    if not policy.any():
        policy = pairs.mean(axis=0) * 1e-3
    laws, best = [], (np.inf, policy)
    for _ in range(200):
        best = min(best, (worst_loss(policy, pairs, radius, reach)[0], policy), key=lambda pair: pair[0])
        laws.append(capped_shift(pairs, policy, radius, reach))
        policy, lower = _best_against(laws, best[1], bound)
        if best[0] - lower < tolerance:
            break
    return best[1], best[0] - lower


def _best_against(laws, start, bound: float) -> tuple[np.ndarray, float]:
    """Solve min over ‖θ‖ <= bound of the largest loss among finitely many laws, in epigraph form."""

    def slack(variable):
        return np.array([variable[-1] + payoff(variable[:-1], law) for law in laws])

    def slack_slope(variable):
        slopes = [(law.weights * expit(-law.points @ variable[:-1])) @ law.points for law in laws]
        return np.column_stack([slopes, np.ones(len(laws))])

    room = {
        "type": "ineq",
        "fun": lambda v: bound**2 - v[:-1] @ v[:-1],
        "jac": lambda v: np.append(-2 * v[:-1], 0.0),
    }
    highest = max(-payoff(start, law) for law in laws)
    solution = minimize(
        lambda v: v[-1],
        np.append(start, highest),
        jac=lambda v: np.append(np.zeros(len(start)), 1.0),
        constraints=[{"type": "ineq", "fun": slack, "jac": slack_slope}, room],
        method="SLSQP",
        options={"ftol": 1e-13, "maxiter": 200},
    )
    return solution.x[:-1], float(solution.x[-1])
