"""What finished runs have to say in figures/: their tables, timings and provenance, as files beside the pictures."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from sgpo_lib.evaluation.judgements import QUANTITIES
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
    for step in run.step("evaluation").history:
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


def summary_table(summary: dict[str, Any], spread: dict[str, dict[str, float]] | None = None) -> pd.DataFrame:
    """Lay the summary of one run out as text, `mean [low, high]`: a row per policy, a column per quantity.

    Parameters
    ----------
    spread : as `recorded_spread` returns it; adds to each mean the standard deviation between runs, `mean ± sd [...]`.
    """
    rows = {
        policy: {
            heading: _as_text(**values[name], digits=digits, spread=(spread or {}).get(policy, {}).get(name))
            for name, (heading, digits) in QUANTITIES.items()
            if name in values
        }
        for policy, values in summary.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").fillna("").rename_axis("policy")


def recorded_spread(folder: Path, method: str) -> dict[str, dict[str, float]]:
    """Return the standard deviations between runs of one method that a table of several seeds left in its folder.

    Returns
    -------
    `{policy: {quantity: standard deviation}}`, empty where no such table was made.
    """
    file = folder / "between_runs.json"
    return json.loads(file.read_text())["methods"].get(method, {}) if file.exists() else {}


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
    file = folder / "between_runs.json"
    if recorded_spread(folder, run.method):
        made = json.loads(file.read_text())
        apart = f"± is the standard deviation between runs of seeds {made['seeds']}. {made['made_with']}"
    else:
        apart = "How far another seed's run lies from it is not recorded here; a run with several SEEDS does that."
    note = (
        f"{run.method}, seed {run.seed}; mean and {confidence:.0%} bootstrap interval over {sft['n_prompts']} held-out "
        f"prompts in {sft['n_clusters']} clusters (prompts of one form are one). It holds this one training fixed. "
        f"{made_with([run], command)} {apart}"
    )
    (folder / "summary.md").write_text(f"{summary_table.to_markdown()}\n\n{note}\n")


def study_table(means: pd.DataFrame, contrasts: pd.DataFrame, followers: pd.DataFrame | None = None) -> pd.DataFrame:
    """Lay a study out as text, `mean [low, high]`.

    Parameters
    ----------
    means, contrasts : as `sgpo_lib.evaluation.comparison` and `contrasts` return them.
    followers : as `sgpo_lib.evaluation.rounds.solved_followers` returns it.

    Returns
    -------
    DataFrame : a row per variant, its last policy as trained, with the differences to each baseline and the mean
        influence of its follower. Of a single variant a row per policy, each mean with the standard deviation between
        runs, `mean ± sd [low, high]`.
    """
    single = means[["group", "variant"]].drop_duplicates().shape[0] == 1
    told = means["matched_kl"].isna() | means["quantity"].isin(["gold_reward_vs_sft"])
    rows: dict[str, dict[str, str]] = {}
    for row in means[told & (means["is_final"] | single)].itertuples():
        heading, digits = QUANTITIES[row.quantity]
        spread = row.between_runs if single else None
        table_row = rows.setdefault(row.policy if single else _full_name(row), {})
        table_row[heading + _at(row.matched_kl)] = _as_text(row.mean, row.low, row.high, digits, spread=spread)
        table_row["seeds"] = str(row.n_seeds)
    for row in contrasts[contrasts["verdict"].notna()].itertuples():
        heading = f"vs {row.baseline}{_at(row.at_kl)}"
        rows[row.variant][heading] = _as_text(row.mean, row.low, row.high, QUANTITIES[row.quantity][1], "+")
    if followers is not None and len(followers) and not single:
        for name, influence in followers.groupby(followers.apply(_full_name, axis=1))["influence"].mean().items():
            rows[name]["influence"] = f"{influence:.3f}"
    table = pd.DataFrame.from_dict(rows, orient="index").fillna("")
    return table.assign(seeds=table.pop("seeds")).rename_axis("policy" if single else "variant")


def _at(nats: float) -> str:
    return "" if math.isnan(nats) else f" at {nats:g} nats"


def _full_name(row: Any) -> str:
    return f"{row.group}: {row.variant}" if row.group else row.variant


def _as_text(mean: float, low: float, high: float, digits: int, sign: str = "", spread: float | None = None) -> str:
    text = f"{mean:{sign}.{digits}f}"
    if spread is not None and not math.isnan(spread):
        text += f" ± {spread:.{digits}f}"
    return text if math.isnan(low) else f"{text} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def write_study(
    folder: Path, study: Study, table: pd.DataFrame, sentences: list[str], means: pd.DataFrame, command: str
) -> None:
    """Write a study's `table.md`, `between_runs.json` and, last, `summary.md`, which says what the table means."""
    runs = [study.run(variant, seed) for variant in study.variants for seed in study.seeds]
    sft = runs[0].step("evaluation").load("summary.json")["sft"]
    n, made = len(study.seeds), made_with(runs, command)
    note = (
        f"Means over {n} seed{'s' * (n > 1)} and {sft['n_prompts']} held-out prompts in {sft['n_clusters']} clusters "
        f"(prompts of one form are one) with {runs[0].params.evaluation.confidence:.0%} intervals that contain both; "
        f"{'± is the standard deviation between runs; ' if len(study.variants) == 1 and n > 1 else ''}differences are "
        f"paired by seed and prompt. {made}"
    )
    measured = f"{table.to_markdown(disable_numparse=True)}\n\n{note}\n"
    (folder / "table.md").write_text(measured)
    if n > 1:
        methods: dict[str, dict] = {}
        for row in means[means["matched_kl"].isna()].itertuples():
            methods.setdefault(_full_name(row), {}).setdefault(row.policy, {})[row.quantity] = row.between_runs
        spread = {"seeds": study.seeds, "made_with": made, "methods": methods}
        (folder / "between_runs.json").write_text(json.dumps(spread, indent=1) + "\n")
    findings = "\n".join(f"- {line}" for line in sentences)
    parts = [study.title and f"**{study.title}**", study.claim, measured, findings]
    (folder / "summary.md").write_text("\n\n".join(part.strip() for part in parts if part) + "\n")


def _result(run: Run) -> dict[str, Any]:
    return {
        "params": run.params.flat(),
        "method": run.method,
        "seed": run.seed,
        "summary": run.step("evaluation").load("summary.json"),
        "metrics": {_name(step, run): step.record()["metrics"] for step in run.step("evaluation").history},
        "environment": run.step("evaluation").record()["environment"],
    }


def _name(step: Step, run: Run) -> str:
    """Name a step of a run by its notebook, with the folder of those that other methods share."""
    path = executed_notebook(step).relative_to(run.folder / "notebooks").with_suffix("")
    return path.as_posix().removeprefix(f"{run.method}/")
