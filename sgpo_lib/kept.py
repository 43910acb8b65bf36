"""Tables that took long to make, kept in files that know what they were made from, so that a kill does not cost them.

For what lies outside the steps of a run, such as answers to a public benchmark; a step's artefacts are for
`sgpo_lib.run`.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pandas as pd


def recall(file: Path, made_from: dict) -> pd.DataFrame | None:
    """Return the table in `file` if it was made from exactly this, else None.

    Parameters
    ----------
    made_from : JSON values that decide the table's content: params, seed, hash of a policy.
    """
    if not file.exists():
        return None
    try:
        table = pd.read_parquet(file)
    except Exception:  # whatever is wrong with it, it can be made again
        return None
    return table if table.attrs.get("made_from") == _canonical(made_from) else None


def keep(file: Path, table: pd.DataFrame, made_from: dict) -> pd.DataFrame:
    """Write a table of plain values, whole or not at all, for `recall`; returns it."""
    table = table.copy()
    table.attrs["made_from"] = _canonical(made_from)
    with replacing(file) as temporary:
        table.to_parquet(temporary, index=False)
    return table


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Give a temporary path to write to; it takes the file's name on success, and is removed on failure."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def _canonical(made_from: dict) -> str:
    return json.dumps(made_from, sort_keys=True)
