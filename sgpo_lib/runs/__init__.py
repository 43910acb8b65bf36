"""Where results live: the graph of steps, its artefacts and records, and the studies that hold runs together.

`step`, `graph`, `store` and `study` say what there is; `make` runs the graph, with `progress` told in one line and its
notebooks forked from a `warm` process.

This room knows which step reads what, whether it is up to date, and how a file is written whole or not at all. It
knows nothing of what a step computes: no model, no margin, no judge.
"""

from sgpo_lib.runs.by_hand import open_step
from sgpo_lib.runs.provenance import environment
from sgpo_lib.runs.step import STEPS, Run, Step
from sgpo_lib.runs.study import Study, Variant, find_study, study_of

__all__ = ["STEPS", "Run", "Step", "Study", "Variant", "environment", "find_study", "open_step", "study_of"]
