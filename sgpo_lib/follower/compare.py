"""Several followers on the same margins: what each returns, how far it breaks the budget, how long it takes."""

import time
from collections.abc import Mapping

from sgpo_lib.follower.loss import Loss, logistic_loss
from sgpo_lib.follower.result import Follower
from sgpo_lib.follower.support import Support


def side_by_side(
    followers: Mapping[str, Follower],
    margins,
    radius: float,
    support: Support | None = None,
    loss: Loss = logistic_loss,
) -> list[dict]:
    """Give each follower the same problem once.

    Parameters
    ----------
    followers : mapping of a name to a follower
        For instance ``{"exact": worst_case, "groups of 100": Grouped(100)}``.
    margins, radius, support, loss
        As in `worst_case`.

    Returns
    -------
    list of dict
        One row a follower: ``solver``, ``n_pairs``, ``value``, ``nominal``, ``bound`` (the dual value),
        ``lost`` (bound less value), ``radius``, ``excess`` (transport beyond the radius), ``seconds``.
    """
    rows = []
    for name, solve in followers.items():
        start = time.perf_counter()
        result = solve(margins, radius, support, loss)
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
