"""The theorems' lines, and the check that fails loudly when a simulation crosses one.

Shifts are measured in feature units; a policy with Lipschitz constant L turns a shift of the pairs by δ into
one of at most Lδ of the margins, which is the unit of the paper's statements (they are the case L = 1).
"""

import numpy as np

from sgpo_lib.follower import logistic_loss


class BoundViolated(ArithmeticError):
    """A simulated quantity crossed a line that was proved: the proof, the code or the assumption is wrong."""


def check_bound(measured, bound, what: str, tolerance=1e-9) -> float:
    """Require measured <= bound everywhere and return the largest measured / bound where the bound is
    positive.

    Parameters
    ----------
    measured, bound : arrays that broadcast together.
    what : the statement, for the message.

    Raises
    ------
    BoundViolated
        Naming the statement, how often it failed and by how much at worst.
    """
    measured, bound = np.broadcast_arrays(np.asarray(measured, dtype=float), np.asarray(bound, dtype=float))
    excess = measured - bound
    # Written so that a NaN counts as a violation.
    broken = ~(excess <= tolerance)
    if broken.any():
        raise BoundViolated(
            f"{what}: {broken.sum()} of {broken.size} values cross the bound, the worst by "
            f"{np.max(excess):.3g}; check that the shift sizes and the bound share their units"
        )
    positive = bound > tolerance
    return float((measured[positive] / bound[positive]).max()) if positive.any() else 0.0


def drop_bound(lipschitz: float, size) -> np.ndarray:
    """Theorem 2.4: under a shift of size δ the payoff falls by at most Lδ."""
    return lipschitz * np.asarray(size, dtype=float)


def sgpo_regret_bound(lipschitz: float, radius: float, size) -> np.ndarray:
    """Theorem 2.5, 2Lε inside the ball, and its continuation 2Lδ outside it.

    A law P at distance δ > ε can be reached through a law at distance ε, so J(π*, P) >= V(π*) - L(δ - ε)
    >= max J(·, P̂) - Lδ, while max J(·, P) <= max J(·, P̂) + Lδ.
    """
    return 2 * lipschitz * np.maximum(np.asarray(size, dtype=float), radius)


def dpo_regret_bound(lipschitz: float, size) -> np.ndarray:
    """DPO's regret is at most 2Lδ at every δ, by the proof of Theorem 2.5 with radius 0."""
    return 2 * lipschitz * np.asarray(size, dtype=float)


def dpo_lower_bound(lipschitz: float, radius: float, size) -> np.ndarray:
    """Theorem 2.6 (needs Assumption D.8): DPO's regret is at least L(δ - 2ε), where L = ‖θ_DPO‖."""
    return lipschitz * (np.asarray(size, dtype=float) - 2 * radius)


def regret_bracket(policy, pairs, size, reach=np.inf) -> tuple[np.ndarray, np.ndarray]:
    """Where the worst regret of any policy θ lies, without Assumption D.8: an interval of length log 2.

    With J(θ, P̂) the training payoff, never positive,

        ‖θ‖δ - log 2 - J(θ, P̂)  <=  sup of Regret(θ, P) over W1(P, P̂) <= δ  <=  ‖θ‖δ - J(θ, P̂).

    Above: no payoff exceeds 0, and θ's own falls by at most ‖θ‖δ. Below: let a fraction δ/T of the mass move by T
    against θ. The policy that abstains (θ' = 0) loses log 2 everywhere, θ loses at least ‖θ‖T minus its margin
    on what moved; this misses the line by (δ/T)(mean margin + mean loss), which vanishes as T grows.

    Parameters
    ----------
    size : δ, any shape, in feature units.
    reach : T, at least every size; infinite for the supremum over all laws.

    Returns
    -------
    lower, upper, each of the shape of `size`.
    """
    margins = pairs @ policy
    loss = float(logistic_loss(margins).mean())
    upper = np.linalg.norm(policy) * np.asarray(size, dtype=float) + loss
    return upper - np.log(2) - np.asarray(size) / reach * (margins.mean() + loss), upper


def advantage_ratio(size, radius: float) -> np.ndarray:
    """Corollary 2.7: (δ - 2ε) / (2ε), for δ > 2ε."""
    return np.asarray(size, dtype=float) / (2 * radius) - 1


def margin_distance(margins, other) -> float:
    """W1 between two empirical margin laws of equal size: the mean difference of the sorted margins."""
    return float(np.abs(np.sort(margins) - np.sort(other)).mean())
