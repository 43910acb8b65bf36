"""A one-parameter game whose whole value function can be drawn (Theorem 2.2), with the exact follower.

Scalar features: the margin of pair i is θ x_i. The adversary moves pairs within W1 distance `radius`, and no
feature beyond ±`window`; in margins that is the radius |θ|·radius and the support ±|θ|·window.
"""

import numpy as np

from sgpo_lib.follower import WorstCase, closed_form_value, logistic_loss, worst_case


def best_response(policy: float, pairs, radius: float, window: float) -> WorstCase:
    """The follower's worst margin law at the policy θ, exact."""
    reach = abs(policy) * window
    return worst_case(policy * np.asarray(pairs), abs(policy) * radius, (-reach, reach))


def robust_value(policies, pairs, radius: float, window=np.inf) -> np.ndarray:
    """V(θ), the payoff against the best response, for each θ in `policies` (P,).

    An infinite window gives Lemma 3.1 in feature units, J(θ, P̂) - |θ|·radius: never attained.
    """
    if np.isinf(window):
        return np.array([-closed_form_value(theta * pairs, abs(theta) * radius) for theta in policies])
    return np.array([-best_response(theta, pairs, radius, window).value for theta in policies])


def gap_space_value(policies, pairs, radius: float) -> np.ndarray:
    """Equation (4) as printed: a ball of the same radius in *margins* for every policy, on the whole line.

    Lemma 3.1 makes it J(θ, P̂) - radius. The radius is a constant, so the maximiser is DPO's.
    """
    return np.array([-closed_form_value(theta * pairs, radius) for theta in policies])


def unattained(margins, radius: float, floors) -> tuple[np.ndarray, np.ndarray]:
    """How a bounded window approaches Lemma 3.1: the value still missing and the mass moved, for each floor.

    As the window's lower end goes to minus infinity ever less mass moves ever further: the value tends to
    the supremum and never reaches it, and the limit law is the training law itself.

    Parameters
    ----------
    floors : (F,) lower ends a of the support, below every margin.

    Returns
    -------
    missing (F,) >= 0 in reward units, moved mass (F,).
    """
    supremum = closed_form_value(margins, radius)
    worst = [worst_case(margins, radius, (floor, float(np.max(margins)))) for floor in floors]
    # 1 + (chord slope) is computed from the loss directly: the difference of two values would cancel.
    missing = [radius * _missing_slope(case) for case in worst]
    if any(case.value > supremum + 1e-12 for case in worst):
        raise ArithmeticError("a bounded window beat the supremum of Lemma 3.1: the follower is wrong")
    return np.array(missing), np.array([case.moved.mean() for case in worst])


def _missing_slope(case: WorstCase) -> float:
    """Mean over the transported mass of 1 - (ℓ(a) - ℓ(ξ)) / (ξ - a), the loss per unit transport not
    obtained.

    ℓ(a) - ℓ(ξ) = (ξ - a) + log1p(e^a) - log1p(e^ξ) for any a, ξ, so the missing part is
    log((1+e^ξ)/(1+e^a)).
    """
    low = case.support[0]
    margins, moved = case.margins, case.moved
    spent = moved @ (margins - low)
    return float(moved @ (logistic_loss(-margins) - logistic_loss(np.array([-low]))) / spent)
