"""Pictures of the follower: one worst case, on margins (`worst`) or labels (`flips`), and many (`sweeps`)."""

from sgpo_lib.plots.follower.flips import flips_against_margin
from sgpo_lib.plots.follower.sweeps import (
    grouping_cost,
    influence_against_radius,
    solvers_side_by_side,
    tangent_error,
    value_against_radius,
)
from sgpo_lib.plots.follower.worst import (
    knapsack,
    labels_of_moved_pairs,
    margins_and_worst_case,
    pull_on_each_pair,
)

__all__ = [
    "flips_against_margin",
    "grouping_cost",
    "influence_against_radius",
    "knapsack",
    "labels_of_moved_pairs",
    "margins_and_worst_case",
    "pull_on_each_pair",
    "solvers_side_by_side",
    "tangent_error",
    "value_against_radius",
]
