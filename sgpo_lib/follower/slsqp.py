"""The follower as the published implementation solves it, kept for comparison and never a default.

A general-purpose solver (SLSQP) is given the program of Theorem 3.3 in probability space, group by group,
without gradients and with 50 iterations, and stops long before the optimum.
"""

import numpy as np

from sgpo_lib.follower.exact import worst_case
from sgpo_lib.follower.inputs import checked_count, checked_margins, checked_radius
from sgpo_lib.follower.loss import Pieces, piecewise, tangents
from sgpo_lib.follower.program import moves_from_program
from sgpo_lib.follower.result import WorstCase, concatenate

_PENALTY = 1e5


def published(
    margins,
    radius: float,
    n_pieces: int = 6,
    group_size: int = 100,
    max_iterations: int = 50,
) -> WorstCase:
    """Solve the follower's program as the paper's code does; its answer is neither optimal nor feasible.

    In probability space, v_i = sigma(margin_i), with the tangents at k/K and support [0, 1], SLSQP maximises

        (1/G) sum_ik s_ik (a_k v_i + b_k) - a_k q_ik - 1e5 max(0, (1/G) sum_ik |q_ik| - radius)^2

    over 0 <= s_ik <= 1 and |q_ik| <= radius with sum_k s_ik = 1 and 0 <= s_ik v_i - q_ik <= s_ik, from
    s_ik = 1/K and q_ik = 0, with numerical gradients. A group of G = 100 with K = 6 takes minutes.

    Parameters
    ----------
    margins : array_like, shape (N,)
        In reward units.
    radius : float >= 0
        In probability units, per pair.
    n_pieces, group_size, max_iterations : int >= 1
        K and G of the paper, and the limit at which SLSQP stops.

    Returns
    -------
    WorstCase
        In probability space. ``value``, ``transport`` and the moves are SLSQP's own. ``price`` and
        ``dual_value`` are the exact follower's on the same groups and pieces, so that ``gap`` is what the
        solve lost.

    Raises
    ------
    ValueError
        As `worst_case`, and if a count is below 1.
    """
    margins = checked_margins(margins)
    radius = checked_radius(radius)
    group_size = checked_count(group_size, "group_size")
    max_iterations = checked_count(max_iterations, "max_iterations")
    pieces = tangents(n_pieces, space="probability")
    probabilities = 0.5 * (1 + np.tanh(0.5 * margins))
    parts = [
        _solve_group(probabilities[start : start + group_size], radius, pieces, max_iterations)
        for start in range(0, margins.size, group_size)
    ]
    return concatenate(parts, n_clipped=0)


def _solve_group(v: np.ndarray, radius: float, pieces: Pieces, max_iterations: int) -> WorstCase:
    from scipy.optimize import minimize

    shape = (v.size, len(pieces))
    line_values = np.multiply.outer(v, pieces.slopes) + pieces.intercepts

    def expected_loss(s: np.ndarray, q: np.ndarray) -> float:
        return (np.sum(s * line_values) - np.sum(q @ pieces.slopes)) / v.size

    def split(variables: np.ndarray) -> np.ndarray:
        return variables.reshape(2, *shape)

    def penalised(variables: np.ndarray) -> float:
        s, q = split(variables)
        excess = max(0.0, np.abs(q).sum() / v.size - radius)
        return -expected_loss(s, q) + _PENALTY * excess**2

    def above_zero(variables: np.ndarray) -> np.ndarray:
        s, q = split(variables)
        return (s * v[:, None] - q).ravel()

    def below_one(variables: np.ndarray) -> np.ndarray:
        s, q = split(variables)
        return (s * (1 - v[:, None]) + q).ravel()

    start = np.concatenate([np.full(v.size * len(pieces), 1 / len(pieces)), np.zeros(v.size * len(pieces))])
    solution = minimize(
        penalised,
        start,
        method="SLSQP",
        bounds=[(0, 1)] * (start.size // 2) + [(-radius, radius)] * (start.size // 2),
        constraints=[
            {"type": "eq", "fun": lambda variables: split(variables)[0].sum(axis=1) - 1},
            {"type": "ineq", "fun": above_zero},
            {"type": "ineq", "fun": below_one},
        ],
        options={"maxiter": max_iterations},
    )
    s, q = split(solution.x)
    exact = worst_case(v, radius, (0, 1), piecewise(pieces))
    return WorstCase(
        value=float(expected_loss(s, q)),
        dual_value=exact.dual_value,
        price=exact.price,
        nominal=exact.nominal,
        margins=exact.margins,
        support=exact.support,
        radius=radius,
        transport=float(np.abs(q).sum() / v.size),
        n_clipped=0,
        moves=moves_from_program(exact.margins, exact.support, s, q),
        loss=exact.loss,
    )
