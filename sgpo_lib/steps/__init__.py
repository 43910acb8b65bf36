"""The steps that train, as functions on a `Step` of a run: notebooks 01 and 04 call them, and so does `launch`.

Each function does one thing that a reader may want to stop after, and leaves its artefact in the step's folder:
`load_policy`; for the seed `choose_prompts`, `label_seed`, `label_calibration` and `seed_update`, for a round
`round_update`; then `train` and `finish`. `talk` asks the policies that came out.

This room knows the order of things and what each leaves where. What the things are it asks of the rooms below
(data, annotation, leader); it draws nothing.
"""

from sgpo_lib.steps.seed import choose_prompts, label_calibration, label_seed
from sgpo_lib.steps.update import Update, finish, load_policy, round_update, seed_update, train, with_replay

__all__ = [
    "Update",
    "choose_prompts",
    "finish",
    "label_calibration",
    "label_seed",
    "load_policy",
    "round_update",
    "seed_update",
    "train",
    "with_replay",
]
