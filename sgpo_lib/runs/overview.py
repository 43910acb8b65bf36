"""What of a run is done, and what comes next: the map that a start page shows."""

import pandas as pd

from sgpo_lib.runs.checks import is_current
from sgpo_lib.runs.step import Run, Step


def overview(run: Run) -> pd.DataFrame:
    """List a run's steps in order; reads the run and changes nothing.

    Returns
    -------
    DataFrame, a row per step, indexed by notebook: `round` (empty where a step has none), `state` ("done", "to do", or
    "to do again" where what it was made from has changed), `minutes` that a finished one computed, and `finished`.
    The first row that is not done is the next to be made.
    """
    rows = [_row(step) for step in run.step("evaluation").history]
    return pd.DataFrame(rows).set_index("notebook")


def _row(step: Step) -> dict[str, object]:
    row = {"notebook": step.notebook, "round": "" if step.round is None else step.round}
    if not step.is_complete():
        return row | {"state": "to do", "minutes": "", "finished": ""}
    record = step.record()
    return row | {
        "state": "done" if is_current(step) else "to do again",
        "minutes": f"{sum(record['seconds'].values()) / 60:.1f}",
        "finished": record["finished"].replace("T", " ")[:16],
    }
