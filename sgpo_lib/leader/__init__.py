"""The leader's move: pairs and their worst case in, updated policy out.

This room knows what each leader mode and rival lowers (`modes`, `losses`, `spa`), and how TRL does it (`trainer`,
`training`). It knows nothing of where pairs come from, how the worst case was found, or of runs and params files.

Importing it loads neither torch nor TRL; the names that need them do so when they are asked for.
"""

from importlib import import_module

from sgpo_lib.leader.modes import MODES, Objective, as_table, objective, training_rows, with_references
from sgpo_lib.leader.readout import in_words

_LATER = {
    "KnownReferencesTrainer": "known_references",
    "LOSS_COLUMNS": "trainer",
    "NEUTRAL": "trainer",
    "WeightedDPOTrainer": "trainer",
    "train": "training",
    "training_metrics": "training",
}

__all__ = ["MODES", "Objective", "as_table", "in_words", "objective", "training_rows", "with_references", *_LATER]


def __getattr__(name: str):
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
