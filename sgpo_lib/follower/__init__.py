"""The follower of the game: margins in, worst-case margin distribution out.

Nothing here knows about language models. Importing this package loads numpy alone; CVXPY, SciPy
and torch are loaded by the functions that need them.
"""

from sgpo_lib.follower.compare import side_by_side
from sgpo_lib.follower.differentiable import sgpo_loss
from sgpo_lib.follower.exact import closed_form_value, grouped, worst_case
from sgpo_lib.follower.flips import WorstFlips, flip_loss, worst_flips, worst_flips_at_cost
from sgpo_lib.follower.influence import influence
from sgpo_lib.follower.loss import Loss, Pieces, logistic_loss, negative_log, piecewise, tangents
from sgpo_lib.follower.program import convex_program
from sgpo_lib.follower.radius import CalibratedRadius, calibrated_radius, resolve_radius, shift_radius
from sgpo_lib.follower.result import Atoms, Moves, WorstCase
from sgpo_lib.follower.slsqp import published
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
    "Loss",
    "Moves",
    "Pieces",
    "QuantileSupport",
    "RangeSupport",
    "Support",
    "WorstCase",
    "WorstFlips",
    "calibrated_radius",
    "closed_form_value",
    "convex_program",
    "flip_loss",
    "grouped",
    "influence",
    "logistic_loss",
    "make_support",
    "negative_log",
    "piecewise",
    "published",
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
