"""Whether finished steps are what is asked for now: made with these params, from each other's present outputs."""

import json
import warnings
from typing import TYPE_CHECKING, Any

from sgpo_lib.params.files import default_of
from sgpo_lib.runs.store import sha256_of

if TYPE_CHECKING:
    from sgpo_lib.runs.step import Step

_AGAIN = "Run the cells again, from the one that opens the step."


def differences(step: "Step", record: dict[str, Any]) -> list[str]:
    """Return what of the params that a step reads is asked for otherwise than its record says, a line each."""
    asked = step.params
    newer = {key: default_of(key) for key in asked}  # params that the record does not know were at their defaults
    made = newer | record["params"]
    return [
        f"{key}: made with {made.get(key)!r}, asked for {asked.get(key)!r}"
        for key in sorted(asked | made)
        if asked.get(key) != made.get(key)
    ]


def input_hashes(step: "Step") -> dict[str, str]:
    """Return the hash of what each input step left, by its record, and of the data file where the step reads one.

    Raises
    ------
    FileNotFoundError, ValueError : saying which notebook makes what is missing or broken.
    """
    hashes = {
        before.key: sha256_of(json.dumps(before.record()["outputs"], sort_keys=True).encode()) for before in step.inputs
    }
    if step.data_file:
        hashes[step.run.params.data.source] = sha256_of(step.data_file)
    return hashes


def changed_inputs(step: "Step", record: dict[str, Any]) -> list[str]:
    """Return those inputs that are no longer what a step was made from."""
    present = input_hashes(step.source)
    return [source for source, digest in record["inputs"].items() if present.get(source) != digest]


def is_current(step: "Step") -> bool:
    """Say whether a step is finished, with the params now asked for and from what its inputs now are."""
    try:
        record = step.record()
        made_from_others = differences(step, record) or changed_inputs(step, record)
    except (FileNotFoundError, ValueError):  # whatever is wrong with it, it can be made again
        return False
    return not made_from_others and all((step.source.folder / name).exists() for name in record["outputs"])


def check_all(steps: "list[Step]", round_at_hand: int | None) -> None:
    """Check steps and all that they build on, each once, the earliest first.

    Other follower or leader params are only warned of in rounds but the one at hand; None forgives no round.

    Raises
    ------
    FileNotFoundError, ValueError : saying what is missing, or differs, and which notebook makes it.
    """
    for each in {each.key: each for step in steps for each in step.history}.values():
        _check(each, round_at_hand)


def check_made_with(step: "Step", made_with: dict[str, Any]) -> None:
    """Check that a result was made with the step's params.

    Parameters
    ----------
    made_with : dotted keys and numbers that the result itself names; where the params have a rule, any number fits.

    Raises
    ------
    ValueError : naming the key and both numbers.
    """
    for key, made in made_with.items():
        asked = step.params.get(key)
        if isinstance(asked, int | float) and asked != made:
            raise ValueError(
                f"This result was made with {key} {made!r}, but the step was opened with {asked!r}. {_AGAIN}"
            )


def check_same_inputs(step: "Step", inputs: dict[str, str]) -> None:
    """Check that a step's inputs are still those, by their hashes, that it was opened on.

    Raises
    ------
    ValueError : naming those that have been made anew.
    """
    changed = [name for name, digest in input_hashes(step).items() if inputs.get(name) != digest]
    if changed:
        raise ValueError(f"{', '.join(changed)} has changed since this step was opened. {_AGAIN}")


def unchanged_since(step: "Step", record: dict[str, Any]) -> float | None:
    """Return since when the step's result is what the new record says; None where it differs.

    A step made again with the same result spoils nothing, and by the time of its record the graph knows.
    """
    if not step.record_file.exists():
        return None
    try:
        before = json.loads(step.record_file.read_bytes())
        same = all(before[part] == record[part] for part in ("params", "inputs", "outputs"))
    except (ValueError, TypeError, KeyError):
        return None
    records = [step.record_file, *(each.source.record_file for each in step.inputs)]
    return max(file.stat().st_mtime for file in records) if same else None


def _check(step: "Step", round_at_hand: int | None) -> None:
    record = step.record()
    differing = differences(step, record)
    if differing:
        message = f"{step.source.folder} was made with other params:\n  " + "\n  ".join(differing)
        if step.name in ("follower", "leader") and round_at_hand not in (None, step.round):
            # An earlier round's move is history, and to go on from it with another radius is a fair question.
            warnings.warn(message, stacklevel=6)
        else:
            apart = "" if step.owner != step.run.method else "a method label such as 'ssapo+radius-0.03' or "
            raise ValueError(
                f"{message}\nAsk for the same values, run {step.label} again, or keep both: {apart}a copied "
                "params file has its own folder."
            )
    for source in changed_inputs(step, record):
        raise ValueError(f"{source} has changed since {step.source.folder} was made from it: run {step.label} again.")
