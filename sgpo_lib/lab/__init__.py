"""A lab of a thousand seeds: the whole loop on a policy small enough for closed forms, in numpy.

`policy` has the closed forms, `pairs` the annotation, `training` the leader, `arms` the comparison's arms, `report`
the tables. Followers are the library's own, `sgpo_lib.follower`. What the lab shows holds for the lab: a linear
policy, a uniform SFT model, a utility that the policy can represent. This room knows arrays and nothing of language
models, tokens or files of runs.
"""

from sgpo_lib.lab.arms import ARMS, Arm, End, Setting, Start, follow, play, start
from sgpo_lib.lab.pairs import Pairs, draw_pairs, labelled, self_annotated
from sgpo_lib.lab.policy import World, divergence, expected_utility, log_probabilities, make_world, scaled_to, scores
from sgpo_lib.lab.report import BASELINE, compare, label_curve, label_equivalent, summary, sweep, write_predictions
from sgpo_lib.lab.training import Distortion, batches, gradient, train

__all__ = [
    "ARMS",
    "BASELINE",
    "Arm",
    "Distortion",
    "End",
    "Pairs",
    "Setting",
    "Start",
    "World",
    "batches",
    "compare",
    "divergence",
    "draw_pairs",
    "expected_utility",
    "follow",
    "gradient",
    "label_curve",
    "label_equivalent",
    "labelled",
    "log_probabilities",
    "make_world",
    "play",
    "scaled_to",
    "scores",
    "self_annotated",
    "start",
    "summary",
    "sweep",
    "train",
    "write_predictions",
]
