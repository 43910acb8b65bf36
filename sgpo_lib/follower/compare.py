"""Several solvers on the same margins: what each returns, how far it breaks the budget, how long it takes."""

import time
from collections.abc import Callable, Mapping

import numpy as np

from sgpo_lib.follower.result import WorstCase


def side_by_side(margins: np.ndarray, solvers: Mapping[str, Callable[[np.ndarray], WorstCase]]) -> list[dict]:
    """Run each solver once on the same margins.

    Parameters
    ----------
    margins : ndarray, shape (N,)
    solvers : mapping of a name to a function of the margins
        For instance ``{"exact": lambda m: worst_case(m, 0.01)}``.

    Returns
    -------
    list of dict
        One row a solver: ``solver``, ``n_pairs``, ``value``, ``nominal``, ``bound`` (the dual value),
        ``lost`` (bound less value), ``radius``, ``excess`` (transport beyond the radius), ``seconds``.
    """
    rows = []
    for name, solve in solvers.items():
        start = time.perf_counter()
        result = solve(margins)
        seconds = time.perf_counter() - start
        rows.append(
            {
                "solver": name,
                "n_pairs": result.margins.size,
                "value": result.value,
                "nominal": result.nominal,
                "bound": result.dual_value,
                "lost": result.gap,
                "radius": result.radius,
                "excess": max(0.0, result.transport - result.radius),
                "seconds": seconds,
            }
        )
    return rows
