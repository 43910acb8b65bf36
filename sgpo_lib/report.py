"""What finished runs have to say in figures/: their tables, timings and provenance, as files beside the pictures."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from sgpo_lib.run import Run, Step, environment

PARTS = ["load", "generate", "score", "follower", "train", "judge"]


def timing_table(run: Run) -> pd.DataFrame:
    """Wall seconds and peak memory of every notebook of a run.

    Returns
    -------
    DataFrame, a row per notebook and one for all: `load`, `generate`, `score`, `follower`, `train`, `judge`
    and `other` (kernel start, imports, drawing, saving) in seconds, `total` in seconds, and `peak_gib`,
    the process's largest resident memory. `other` and `total` are missing where papermill did not run it.
    """
    rows = {}
    for step in _steps(run):
        record = step.record()
        row = {part: record["seconds"].get(part, 0.0) for part in PARTS}
        executed = executed_notebook(step)
        if executed.exists():
            row["total"] = json.loads(executed.read_text())["metadata"].get("papermill", {}).get("duration")
        row["peak_gib"] = record["peak_gib"]
        rows[executed.stem] = row
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("notebook")
    if "total" in table:
        table.insert(len(PARTS), "other", table["total"] - table[PARTS].sum(axis=1))
    everything = table.sum().to_frame("all").T.assign(peak_gib=table["peak_gib"].max())
    return pd.concat([table, everything]).rename_axis("notebook")


def executed_notebook(step: Step) -> Path:
    """Return where the batch leaves the executed copy of the notebook that makes a step."""
    part = "" if step.name == "seed_dpo" else step.owner
    round_ = "" if step.round is None else f"-{step.folder.name}"
    return step.run.folder / "notebooks" / part / f"{step.notebook}{round_}.ipynb"


def write(folder: Path, runs: list[Run], summary_table: pd.DataFrame, timing: pd.DataFrame) -> None:
    """Write `results.json` (all summaries and metrics, with what made them), `timing.md` and, last, `summary.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    results = [_result(run) for run in runs]
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "timing.md").write_text(timing.round(1).to_markdown() + "\n")
    made_with = environment(runs[0].params.root)
    note = (
        f"{runs[0].method}, seed {runs[0].seed}; mean and 95% bootstrap interval over "
        f"{results[0]['summary']['sft']['n_prompts']} held-out prompts. Made by `make reproduce` with "
        f"`params/{runs[0].params.name}.yaml` on {made_with['processor']}, {made_with['cores']} cores; "
        f"torch {made_with['packages']['torch']}, trl {made_with['packages']['trl']}."
    )
    (folder / "summary.md").write_text(f"{summary_table.to_markdown()}\n\n{note}\n")


def _result(run: Run) -> dict[str, Any]:
    return {
        "params": run.params.flat(),
        "method": run.method,
        "seed": run.seed,
        "summary": run.step("evaluation").load("summary.json"),
        "metrics": {executed_notebook(step).stem: step.record()["metrics"] for step in _steps(run)},
        "environment": run.step("evaluation").record()["environment"],
    }


def _steps(run: Run) -> list[Step]:
    """All steps that a run's evaluation was made from, the earliest first."""
    steps: dict[Path, Step] = {}

    def visit(step: Step) -> None:
        for before in step.inputs:
            visit(before)
        steps.setdefault(step.record_file, step)

    visit(run.step("evaluation"))
    return list(steps.values())
