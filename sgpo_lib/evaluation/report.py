"""What finished runs have to say in figures/: their tables, timings and provenance, as files beside the pictures."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from sgpo_lib.evaluation.comparison import QUANTITIES
from sgpo_lib.runs.step import Run, Step
from sgpo_lib.runs.study import Study

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
        rows[_name(step, run)] = row
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


def summary_table(summary: dict[str, Any]) -> pd.DataFrame:
    """Lay the summary of one run out as text, `mean [low, high]`: a row per policy, a column per quantity."""
    rows = {
        policy: {
            heading: _as_text(**values[name], digits=digits)
            for name, (heading, digits) in QUANTITIES.items()
            if name in values
        }
        for policy, values in summary.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").fillna("").rename_axis("policy")


def made_with(runs: list[Run], command: str) -> str:
    """Return the sentence that says what made a table: command, and every machine, version and commit there was."""
    environments = [run.step("evaluation").record()["environment"] for run in runs]

    def each(describe: Callable[[dict], str]) -> str:
        return " and ".join(dict.fromkeys(describe(environment) for environment in environments))

    machines = each(lambda e: f"{e['processor']}, {e['cores']} cores")
    packages = each(lambda e: f"torch {e['packages']['torch']}, trl {e['packages']['trl']}")
    commits = each(lambda e: (e["git_commit"] or "unknown")[:9] + " with changes" * e["git_dirty"])
    return f"Made by `{command}` on {machines}; {packages}, commit {commits}."


def write_run(folder: Path, run: Run, summary_table: pd.DataFrame, timing: pd.DataFrame, command: str) -> None:
    """Write one run's `results.json` (summary, metrics, what made them), `timing.md` and, last, `summary.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    result = _result(run)
    (folder / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "timing.md").write_text(timing.round(1).to_markdown() + "\n")
    confidence, sft = run.params.evaluation.confidence, result["summary"]["sft"]
    note = (
        f"{run.method}, seed {run.seed}; mean and {confidence:.0%} bootstrap interval over {sft['n_prompts']} held-out "
        f"prompts in {sft['n_clusters']} clusters (prompts of one form are one). It holds this one training fixed. "
        f"{made_with([run], command)}"
    )
    (folder / "summary.md").write_text(f"{summary_table.to_markdown()}\n\n{note}\n")


def study_table(means: pd.DataFrame, differences: pd.DataFrame) -> pd.DataFrame:
    """Lay a study out as text, `mean [low, high]`: a row per variant, a column per quantity and baseline."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for row in means.itertuples():
        heading, digits = QUANTITIES[row.quantity]
        rows.setdefault((row.group, row.variant), {})[heading] = _as_text(row.mean, row.low, row.high, digits)
        rows[row.group, row.variant]["seeds"] = str(row.n_seeds)
    for row in differences.itertuples():
        rows[row.group, row.variant][f"vs {row.baseline} (paired)"] = _as_text(row.mean, row.low, row.high, 3, "+")
    table = pd.DataFrame.from_dict(rows, orient="index").fillna("")
    against = [f"vs {baseline} (paired)" for baseline in dict.fromkeys(differences["baseline"])]
    table = table[[name for name in table if name not in against] + against]
    table.index = [f"{group}: {variant}" if group else variant for group, variant in rows]
    seeds = table.pop("seeds")
    return table.assign(seeds=seeds).rename_axis("variant")


def _as_text(mean: float, low: float, high: float, digits: int, sign: str = "") -> str:
    if math.isnan(low):
        return f"{mean:{sign}.{digits}f}"
    return f"{mean:{sign}.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def write_study(
    folder: Path, study: Study, table: pd.DataFrame, verdicts: list[str], quantity: str | None, command: str
) -> None:
    """Write a study's `table.md`, what was measured and how, and, last, `summary.md`, which says what it means."""
    runs = [study.run(variant, seed) for variant in study.variants for seed in study.seeds]
    n_prompts = runs[0].step("evaluation").load("summary.json")["sft"]["n_prompts"]
    n, compared = len(study.seeds), QUANTITIES[quantity][0] if quantity else "nothing"
    note = (
        f"Means over {n} seed{'s' * (n > 1)} with {runs[0].params.evaluation.confidence:.0%} t intervals over seeds, "
        f"all on the same {n_prompts} held-out prompts, whose choice is not in the intervals; differences in "
        f"{compared}, paired by seed and not adjusted for their number. {made_with(runs, command)}"
    )
    measured = f"{table.to_markdown(disable_numparse=True)}\n\n{note}\n"
    (folder / "table.md").write_text(measured)
    findings = "\n".join(f"- {line}" for line in verdicts)
    parts = [study.title and f"**{study.title}**", study.claim, measured, findings]
    (folder / "summary.md").write_text("\n\n".join(part.strip() for part in parts if part) + "\n")


def _result(run: Run) -> dict[str, Any]:
    return {
        "params": run.params.flat(),
        "method": run.method,
        "seed": run.seed,
        "summary": run.step("evaluation").load("summary.json"),
        "metrics": {_name(step, run): step.record()["metrics"] for step in _steps(run)},
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


def _name(step: Step, run: Run) -> str:
    """Name a step of a run by its notebook, with the folder of those that other methods share."""
    path = executed_notebook(step).relative_to(run.folder / "notebooks").with_suffix("")
    return path.as_posix().removeprefix(f"{run.method}/")
