"""Every figure of the project: one function a figure, one style for all.

Functions take arrays or data frames and return a `matplotlib.figure.Figure` (or a styled table); they
neither read artefacts nor write files. The follower's and the regret games' figures have modules of
their own, `sgpo_lib.plots.follower` and `sgpo_lib.plots.regret`.

This room knows what is drawn and how it looks. It computes nothing that a figure does not show.
"""

from sgpo_lib.plots.answering import ways_to_answer
from sgpo_lib.plots.evaluation import gains
from sgpo_lib.plots.pairs import answers_by_policy, margins_and_agreement, self_labels_by_round, side_by_side
from sgpo_lib.plots.studies import (
    label_curve,
    labels_by_decile,
    methods_compared,
    reward_against_kl,
    rounds_compared,
)
from sgpo_lib.plots.style import COLORS, new_figure, save_figure
from sgpo_lib.plots.training import starting_margins, training_curves

__all__ = [
    "COLORS",
    "answers_by_policy",
    "gains",
    "label_curve",
    "labels_by_decile",
    "margins_and_agreement",
    "methods_compared",
    "new_figure",
    "reward_against_kl",
    "rounds_compared",
    "save_figure",
    "self_labels_by_round",
    "side_by_side",
    "starting_margins",
    "training_curves",
    "ways_to_answer",
]
