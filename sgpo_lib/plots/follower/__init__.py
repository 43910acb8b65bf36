"""Pictures of the follower: one worst case (`worst`), and how it changes with radius, groups, solver (`sweeps`)."""

from sgpo_lib.plots.follower.sweeps import grouping_cost, solvers_side_by_side, tangent_error, value_against_radius
from sgpo_lib.plots.follower.worst import (
    adversary,
    knapsack,
    labels_of_moved_pairs,
    margins_and_worst_case,
    pull_on_each_pair,
)

__all__ = [
    "adversary",
    "grouping_cost",
    "knapsack",
    "labels_of_moved_pairs",
    "margins_and_worst_case",
    "pull_on_each_pair",
    "solvers_side_by_side",
    "tangent_error",
    "value_against_radius",
]
