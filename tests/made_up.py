"""Steps without a model: their artefacts are numbers that follow from params and inputs, as a real step's do."""

import pandas as pd

from sgpo_lib.runs import STEPS, Run, Step
from sgpo_lib.runs.store import sha256_of


def write_params(root):
    path = root / "params" / "small.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "model: {name_or_path: none}\n"
        "data: {source: builtin, n_seed: 6, n_prompts: [4, 4], n_evaluation: 5}\n"
        "seed_dpo: {learning_rate: 1.0e-4}\n"
        "leader: {learning_rate: 1.0e-4}\n"
    )
    return path


def artefacts(step: Step) -> dict[str, str]:
    """What each artefact of a step has to hold: a number for all that it is made from."""
    before = [each.record()["outputs"] for each in step.inputs]
    return {
        name: sha256_of(f"{name} {step.params} {before} {step.seed}".encode()) for name in STEPS[step.name].artefacts
    }


def save(step: Step, name: str) -> None:
    content = artefacts(step)[name]
    if name.endswith(".parquet"):
        step.save(name, pd.DataFrame({"x": [content]}))
    elif name.endswith(".json"):
        step.save(name, {"x": content})
    elif not step.finished:
        with step.replacing(name) as folder:
            folder.mkdir()
            (folder / "weights").write_text(content)


def compute(step: Step) -> Step:
    for name in STEPS[step.name].artefacts:
        save(step, name)
    step.finish()
    return step


def steps_of(run: Run) -> list[Step]:
    """All steps of a run in the order of the graph."""
    rounds = [run.step(name, t) for t in run.rounds for name in ("annotation", "follower", "leader")]
    return [run.step("seed_dpo"), run.seed_only.step("evaluation"), *rounds, run.step("evaluation")]


def make_graph(run: Run) -> list[str]:
    """Make, as Snakemake would, what has no record or one older than an input's; return the names of what was made."""
    made = []
    for step in steps_of(run):
        record = step.record_file
        inputs = [before.record_file.stat().st_mtime_ns for before in step.inputs]
        if not record.exists() or record.stat().st_mtime_ns < max(inputs, default=0):
            compute(step.begin())
            made.append(step.key)
    return made


def contents(run: Run) -> dict[str, str]:
    """Hash of every artefact of a run's own steps and of those it shares, by place."""
    found = {}
    for step in steps_of(run):
        found |= {f"{step.key} {name}": sha256_of(step.folder / name) for name in STEPS[step.name].artefacts}
    return found
