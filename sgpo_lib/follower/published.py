"""The follower as the published implementation solves it, kept for comparison and never a default.

A general-purpose solver (SLSQP) is given the program of Theorem 3.3 in probability space, group by group,
without gradients and with 50 iterations, and stops long before the optimum.
"""

from dataclasses import dataclass

import numpy as np

from sgpo_lib.follower.exact import clip_to_support, worst_case
from sgpo_lib.follower.inputs import checked_count, checked_margins, checked_radius
from sgpo_lib.follower.loss import Pieces
from sgpo_lib.follower.program import checked_pieces, moves_from_program
from sgpo_lib.follower.result import WorstCase, concatenate
from sgpo_lib.follower.support import Support, resolve_support

_PENALTY = 1e5


@dataclass(frozen=True)
class Published:
    """Solve the follower's program as the paper's code does; its answer is neither optimal nor feasible.

    On values v_i in [low, high] = [0, 1], probabilities sigma(margin), SLSQP maximises

        (1/G) sum_ik s_ik (a_k v_i + b_k) - a_k q_ik - 1e5 max(0, (1/G) sum_ik |q_ik| - radius)^2

    over 0 <= s_ik <= 1 and |q_ik| <= radius with sum_k s_ik = 1 and low s_ik <= s_ik v_i - q_ik <= high s_ik,
    from s_ik = 1/K and q_ik = 0, with numerical gradients. A group of G = 100 with K = 6 takes minutes.

    Attributes
    ----------
    group_size, max_iterations : int >= 1
        G of the paper, and the limit at which SLSQP stops.
    """

    group_size: int = 100
    max_iterations: int = 50

    def __post_init__(self):
        """Check the counts."""
        checked_count(self.group_size, "group_size")
        checked_count(self.max_iterations, "max_iterations")

    def __call__(self, margins, radius: float, support: Support | None, loss: Pieces) -> WorstCase:
        """Take what `worst_case` does, with a loss of K lines; the paper's is in probability space.

        Parameters
        ----------
        margins : array_like, shape (N,)
            Probabilities, for the paper's problem.
        radius : float >= 0
            In the units of the margins.
        support : (a, b)
            (0, 1), for the paper's problem.
        loss : Pieces
            ``tangents(6, space="probability")``, for the paper's problem.

        Returns
        -------
        WorstCase
            ``value``, ``transport`` and the moves are SLSQP's own. ``price`` and ``dual_value`` are the exact
            follower's on the same groups and pieces, so that ``gap`` is what the solve lost.

        Raises
        ------
        ValueError
            As `worst_case`, and if the loss is not made of lines.
        """
        pieces, radius = checked_pieces(loss), checked_radius(radius)
        margins = checked_margins(margins)
        window = resolve_support(support, margins)
        n_clipped = clip_to_support(margins, *window)
        starts = range(0, margins.size, self.group_size)
        groups = [margins[i : i + self.group_size] for i in starts]
        parts = [_solve_group(group, radius, window, pieces, self.max_iterations) for group in groups]
        return concatenate(parts, n_clipped)


def _solve_group(
    v: np.ndarray, radius: float, window: tuple[float, float], pieces: Pieces, max_iterations: int
) -> WorstCase:
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

    def above_low_end(variables: np.ndarray) -> np.ndarray:
        s, q = split(variables)
        return (s * (v[:, None] - window[0]) - q).ravel()

    def below_high_end(variables: np.ndarray) -> np.ndarray:
        s, q = split(variables)
        return (s * (window[1] - v[:, None]) + q).ravel()

    start = np.concatenate([np.full(v.size * len(pieces), 1 / len(pieces)), np.zeros(v.size * len(pieces))])
    solution = minimize(
        penalised,
        start,
        method="SLSQP",
        bounds=[(0, 1)] * (start.size // 2) + [(-radius, radius)] * (start.size // 2),
        constraints=[
            {"type": "eq", "fun": lambda variables: split(variables)[0].sum(axis=1) - 1},
            {"type": "ineq", "fun": above_low_end},
            {"type": "ineq", "fun": below_high_end},
        ],
        options={"maxiter": max_iterations},
    )
    s, q = split(solution.x)
    exact = worst_case(v, radius, window, pieces)
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
