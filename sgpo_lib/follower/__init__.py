"""The follower of the game: margins in, worst-case margin distribution out.

This room knows numbers, and nothing of language models. Importing it loads numpy alone; CVXPY, SciPy
and torch are loaded by the functions that need them.
"""

from sgpo_lib.follower.compare import side_by_side
from sgpo_lib.follower.differentiable import flip_loss, sgpo_loss
from sgpo_lib.follower.exact import closed_form_value, worst_case
from sgpo_lib.follower.flips import WorstFlips, worst_flips, worst_flips_at_cost
from sgpo_lib.follower.grouped import Grouped
from sgpo_lib.follower.influence import influence
from sgpo_lib.follower.loss import Loss, Pieces, logistic_loss, tangents
from sgpo_lib.follower.program import ConvexProgram
from sgpo_lib.follower.published import Published
from sgpo_lib.follower.radius import CalibratedRadius, calibrated_radius, flip_radius, resolve_radius, shift_radius
from sgpo_lib.follower.result import Atoms, Follower, Moves, WorstCase
from sgpo_lib.follower.support import (
    SUPPORT_RULES,
    QuantileSupport,
    RangeSupport,
    Support,
    make_support,
    resolve_support,
)

__all__ = [
    "SUPPORT_RULES",
    "Atoms",
    "CalibratedRadius",
    "ConvexProgram",
    "Follower",
    "Grouped",
    "Loss",
    "Moves",
    "Pieces",
    "Published",
    "QuantileSupport",
    "RangeSupport",
    "Support",
    "WorstCase",
    "WorstFlips",
    "calibrated_radius",
    "closed_form_value",
    "flip_loss",
    "flip_radius",
    "influence",
    "logistic_loss",
    "make_support",
    "resolve_radius",
    "resolve_support",
    "sgpo_loss",
    "shift_radius",
    "side_by_side",
    "tangents",
    "worst_case",
    "worst_flips",
    "worst_flips_at_cost",
]
