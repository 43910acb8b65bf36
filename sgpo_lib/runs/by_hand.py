"""How a notebook opens a step, so that nobody loses anything by looking.

A finished step is shown; it is made again when that is asked for, or when what it was made from has changed. What
differs from the params file or from a finished run goes to a run of one's own, `ssapo+mine`, beside it.
"""

import builtins
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

from sgpo_lib.params.files import as_overrides, load_params
from sgpo_lib.runs import kernel
from sgpo_lib.runs.checks import differences, is_current
from sgpo_lib.runs.step import Run, Step


def open_step(
    name: str,
    params_file: str | Path,
    seed: int = 0,
    method: str = "ssapo",
    round: int | None = None,
    overrides: dict[str, Any] | str | None = None,
    redo: bool = False,
    overwrite: bool = False,
) -> Step:
    """Open a step as a notebook does; `about` of what it returns says what was opened, and why.

    Parameters
    ----------
    name, round : see `Run.step`.
    params_file, seed, method, overrides : see `Run.open`.
    redo : make a finished step again. Without it the step is `finished`: it shows what there is, and changes nothing.
    overwrite : make the step in the run that is asked for, whatever is there: what the graph wants. Without it,
        what differs from the params file or from what the run has finished goes to `<method>+mine`, or to
        `+mine-2`, ... where that is taken.

    Raises
    ------
    FileNotFoundError, ValueError, ModuleNotFoundError : as `Run.open`, `Run.step` and `Step.begin`.
    """
    kernel.set_up()
    if round is builtins.round:
        raise ValueError("Which round is not known: run the parameters cell first, then this one.")
    asked = Run.open(params_file, seed, method, overrides)
    run, why = (asked, "") if overwrite else _beside(asked, params_file, overrides, name)
    step = run.step(name, round)
    if not (redo or overwrite) and is_current(step):
        finished = step.record()["finished"].replace("T", " ")
        about = f"finished {finished} and shown as it is, from {step.source.folder}; redo = True makes it again"
        opened = replace(step, finished=True, about=about)
    else:
        opened = replace(step.begin(), about=f"artefacts go to {step.folder}{why}")
    kernel.opened(repr((step.key, run.folder, run.params.flat())))
    return opened


def _beside(asked: Run, params_file: str | Path, overrides: dict[str, Any] | str | None, name: str) -> tuple[Run, str]:
    """Return the run asked for, or one's own beside it if something differs, and why."""
    why = _overridden(asked, params_file, overrides) or _differing(asked, name)
    if not why:
        return asked, ""
    labels = itertools.chain(["mine"], (f"mine-{i}" for i in itertools.count(2)))
    methods = (f"{asked.method}+{label}" for label in labels)
    run = next(run for run in (replace(asked, method=method) for method in methods) if not _differing(run, name))
    return run, f", a run of your own ({run.method}): {'; '.join(why)}. Steps that it has not made are {asked.method}'s"


def _overridden(asked: Run, params_file: str | Path, overrides: dict[str, Any] | str | None) -> list[str]:
    """Return what the overrides make differ from the params file."""
    given = as_overrides(overrides)
    try:
        plain = load_params(params_file, {}, asked.method.partition("+")[0]).flat() if given else {}
    except ValueError:  # a file that is nothing without overrides
        plain = {}
    values = asked.params.flat()
    return [
        f"{key} is {value!r}, not {plain.get(key)!r}"
        for key, value in values.items()
        if given and value != plain.get(key)
    ]


def _differing(run: Run, name: str) -> list[str]:
    """Return what the first step that a run has itself finished was made with and is not asked for now.

    Nothing builds on an evaluation, so it counts only if it is to be made.
    """
    steps = [run.step("seed_dpo")]
    steps += [run.step(each, t) for t in run.rounds for each in ("annotation", "follower", "leader")]
    steps += [run.step(name)] if name == "evaluation" else []
    for step in steps:
        if step.is_complete():
            try:
                found = differences(step, step.record())
            except ValueError:  # no record that can be read is no finished step
                continue
            if found:
                return found
    return []
