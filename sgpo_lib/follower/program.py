"""The finite convex program of Theorem 3.3, as the paper states it: the reference for the exact follower."""

import math

import numpy as np

from sgpo_lib.follower.exact import clip_to_support
from sgpo_lib.follower.inputs import checked_margins, checked_radius
from sgpo_lib.follower.loss import Pieces, piecewise
from sgpo_lib.follower.result import Moves, WorstCase
from sgpo_lib.follower.support import Support, resolve_support

# As tight as HiGHS allows: a reference should not be what limits a comparison.
_TOLERANCES = {"HIGHS": {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}}


def convex_program(
    margins,
    radius: float,
    support: Support | None,
    pieces: Pieces,
    solver: str = "CLARABEL",
    max_transport: float | None = None,
) -> WorstCase:
    """Solve Theorem 3.3 with CVXPY.

    For pieces max_k (a_k x + b_k), over s_ik >= 0 and q_ik,

        maximise    (1/N) sum_ik s_ik (a_k xi_i + b_k) - a_k q_ik
        subject to  sum_k s_ik = 1,  (1/N) sum_ik |q_ik| <= radius,
                    a s_ik <= s_ik xi_i - q_ik <= b s_ik,

    whose solution puts mass s_ik / N at xi_i - q_ik / s_ik. A linear program of 2NK variables, slow by
    nature: use `worst_case` for work, and this to check it.

    Parameters
    ----------
    margins : array_like, shape (N,)
    radius : float >= 0, in the units of the margins
    support : (a, b), rule, or None for ``RangeSupport(0.1)``
    pieces : Pieces
        The K lines.
    solver : str
        Any solver that CVXPY has for linear programs: "CLARABEL" (interior point), "HIGHS" (simplex), ...
    max_transport : float >= 0, optional
        Limit on sum_k |q_ik| of each pair.

    Returns
    -------
    WorstCase
        ``value`` is the solver's objective and ``transport`` what its q spends, so that both show its
        tolerance. ``dual_value`` is computed here from the solver's price, and bounds every distribution in
        the ball whatever the solver did. Shifts within the solver's tolerance count as no move.

    Raises
    ------
    ValueError
        As `worst_case`.
    RuntimeError
        If the solver does not report a solution.
    """
    import cvxpy as cp

    margins = checked_margins(margins)
    radius = checked_radius(radius)
    cap = math.inf if max_transport is None else checked_radius(max_transport, "max_transport")
    low, high = resolve_support(support, margins)
    n_clipped = clip_to_support(margins, low, high)

    s = cp.Variable((margins.size, len(pieces)), nonneg=True)
    q = cp.Variable((margins.size, len(pieces)))
    line_values = np.multiply.outer(margins, pieces.slopes) + pieces.intercepts
    position = cp.multiply(margins[:, None], s) - q
    budget = cp.sum(cp.abs(q)) / margins.size <= radius
    constraints = [cp.sum(s, axis=1) == 1, budget, position >= low * s, position <= high * s]
    if cap < math.inf:
        constraints.append(cp.sum(cp.abs(q), axis=1) <= cap)
    objective = (cp.sum(cp.multiply(line_values, s)) - cp.sum(q @ pieces.slopes)) / margins.size
    problem = cp.Problem(cp.Maximize(objective), constraints)
    problem.solve(solver=solver, **_TOLERANCES.get(solver.upper(), {}))
    if s.value is None:
        raise RuntimeError(
            f'{solver} stopped with status "{problem.status}" on {margins.size} pairs, {len(pieces)} pieces; '
            "try another solver, or worst_case, which solves the same problem exactly"
        )

    loss = piecewise(pieces)
    price = max(float(budget.dual_value), 0.0)
    nominal = loss(margins)
    return WorstCase(
        value=float(problem.value),
        dual_value=_dual_value(margins, nominal, radius, cap, (low, high), float(loss(low)), price),
        price=price,
        nominal=float(nominal.mean()),
        margins=margins,
        support=(low, high),
        radius=radius,
        transport=float(np.abs(q.value).sum() / margins.size),
        n_clipped=n_clipped,
        moves=moves_from_program(margins, (low, high), s.value, q.value),
        loss=loss,
        max_transport=cap,
    )


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


def _dual_value(margins, losses, radius, cap, support, low_loss, price) -> float:
    """Return price radius + mean max_z {l(z) - price |z - xi_i|}, z being a or xi_i, within the cap."""
    costs = margins - support[0]
    limit = np.divide(cap, costs, out=np.ones_like(costs), where=costs > cap) if cap < math.inf else 1.0
    return float(price * radius + np.mean(losses + limit * np.maximum(low_loss - price * costs - losses, 0)))
