"""The finite convex program of Theorem 3.3, as the paper states it: the reference for the exact follower."""

from dataclasses import dataclass

import numpy as np

from sgpo_lib.follower.exact import clip_to_support
from sgpo_lib.follower.inputs import checked_margins, checked_radius
from sgpo_lib.follower.loss import Loss, Pieces
from sgpo_lib.follower.result import Moves, WorstCase
from sgpo_lib.follower.support import Support, resolve_support

# As tight as HiGHS allows: a reference should not be what limits a comparison.
_TOLERANCES = {"HIGHS": {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}}


@dataclass(frozen=True)
class ConvexProgram:
    """Solve Theorem 3.3 with CVXPY.

    For pieces max_k (a_k x + b_k), over s_ik >= 0 and q_ik,

        maximise    (1/N) sum_ik s_ik (a_k xi_i + b_k) - a_k q_ik
        subject to  sum_k s_ik = 1,  (1/N) sum_ik |q_ik| <= radius,
                    a s_ik <= s_ik xi_i - q_ik <= b s_ik,

    whose solution puts mass s_ik / N at xi_i - q_ik / s_ik. A linear program of 2NK variables, slow by
    nature: use `worst_case` for work, and this to check it.

    Attributes
    ----------
    solver : str
        Any solver that CVXPY has for linear programs: "CLARABEL" (interior point), "HIGHS" (simplex), ...
    """

    solver: str = "CLARABEL"

    def __call__(self, margins, radius: float, support: Support | None, loss: Pieces) -> WorstCase:
        """Take what `worst_case` does, with a loss of K lines.

        Returns
        -------
        WorstCase
            ``value`` is the solver's objective and ``transport`` what its q spends, so that both show its
            tolerance. ``dual_value`` is computed here from the solver's price, and bounds every distribution
            in the ball whatever the solver did. Shifts within the solver's tolerance count as no move.

        Raises
        ------
        ValueError
            As `worst_case`, and if the loss is not made of lines.
        RuntimeError
            If the solver does not report a solution.
        """
        import cvxpy as cp

        pieces = checked_pieces(loss)
        margins = checked_margins(margins)
        radius = checked_radius(radius)
        low, high = resolve_support(support, margins)
        n_clipped = clip_to_support(margins, low, high)

        s = cp.Variable((margins.size, len(pieces)), nonneg=True)
        q = cp.Variable((margins.size, len(pieces)))
        line_values = np.multiply.outer(margins, pieces.slopes) + pieces.intercepts
        position = cp.multiply(margins[:, None], s) - q
        budget = cp.sum(cp.abs(q)) / margins.size <= radius
        constraints = [cp.sum(s, axis=1) == 1, budget, position >= low * s, position <= high * s]
        objective = (cp.sum(cp.multiply(line_values, s)) - cp.sum(q @ pieces.slopes)) / margins.size
        problem = cp.Problem(cp.Maximize(objective), constraints)
        problem.solve(solver=self.solver, **_TOLERANCES.get(self.solver.upper(), {}))
        if s.value is None:
            raise RuntimeError(
                f'{self.solver} stopped with status "{problem.status}" on {margins.size} pairs, {len(pieces)} '
                "pieces; try another solver, or worst_case, which solves the same problem exactly"
            )

        price = max(float(budget.dual_value), 0.0)
        nominal = pieces(margins)
        saved = np.maximum(float(pieces(low)) - price * (margins - low) - nominal, 0)
        return WorstCase(
            value=float(problem.value),
            dual_value=float(price * radius + np.mean(nominal + saved)),
            price=price,
            nominal=float(nominal.mean()),
            margins=margins,
            support=(low, high),
            radius=radius,
            transport=float(np.abs(q.value).sum() / margins.size),
            n_clipped=n_clipped,
            moves=moves_from_program(margins, (low, high), s.value, q.value),
            loss=pieces,
        )


def checked_pieces(loss: Loss) -> Pieces:
    """Return the loss if it is made of lines, as the program of Theorem 3.3 needs it."""
    if not isinstance(loss, Pieces):
        raise ValueError("the program needs a loss of K lines: give tangents(n_pieces, support) as the loss")
    return loss


def moves_from_program(margins: np.ndarray, support: tuple[float, float], s: np.ndarray, q: np.ndarray) -> Moves:
    """Read the moves out of an (s, q) that fulfils the program up to a solver's tolerance.

    Parameters
    ----------
    margins : ndarray, shape (N,)
    s, q : ndarray, shape (N, K)
        Masses are made to sum to 1 over each pair, positions are clipped to the support, and what has less
        mass or moves less far than 1e-7 stays.
    """
    share = np.clip(s, 0, None)
    share = share / share.sum(axis=1, keepdims=True)
    shift = np.divide(q, s, out=np.zeros_like(q), where=s > 1e-7)
    pair, piece = np.nonzero(np.abs(shift) > 1e-7)
    target = np.clip(margins[pair] - shift[pair, piece], *support)
    return Moves(pair, target, share[pair, piece])
