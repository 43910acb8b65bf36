"""The store: files written whole or not at all, Parquet with plain lists, hashes, tables that know their origin.

Knows paths and bytes, not what they mean.
"""

import contextlib
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pandas as pd
import pyarrow


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
def replacing(target: Path) -> Iterator[Path]:
    """Give a temporary path for a file or a folder; it takes the target's name on success, else it is removed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        yield temporary
        if target.is_dir():
            remove(target)
        os.replace(temporary, target)
    finally:
        remove(temporary)


def _canonical(made_from: dict) -> str:
    return json.dumps(made_from, sort_keys=True)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sha256_of(what: bytes | Path) -> str:
    """Return the SHA-256 of bytes, of a file, or of a folder's files and their names."""
    if isinstance(what, bytes):
        return hashlib.sha256(what).hexdigest()
    digest = hashlib.sha256()
    files = sorted(file for file in what.rglob("*") if file.is_file()) if what.is_dir() else [what]
    for file in files:
        if what.is_dir():
            digest.update(file.relative_to(what).as_posix().encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def write_parquet(table: pd.DataFrame, path: Path) -> None:
    """Write a table; what Parquet cannot hold is named by its column."""
    try:
        table.to_parquet(path, index=False)
    except (pyarrow.ArrowException, ValueError, TypeError, OverflowError) as error:
        unfit = [repr(name) for name in table if not _fits_parquet(table[name])]
        raise ValueError(
            f"{path.parent}: Parquet cannot hold column {', '.join(unfit)} of a table to be saved there ({error})."
        ) from error


def _fits_parquet(column: pd.Series) -> bool:
    try:
        pyarrow.array(column, from_pandas=True)
    except (pyarrow.ArrowException, ValueError, TypeError, OverflowError):
        return False
    return True


def read_parquet(source: Path | BinaryIO) -> pd.DataFrame:
    """Read a table, with plain lists in list columns, which chat templates and tokenizers want."""
    try:
        frame = pd.read_parquet(source)
    except Exception as error:
        raise ValueError(f"{source} cannot be read as Parquet ({error}).") from error
    # Lists come back as arrays, which chat templates and tokenizers do not take.
    for column in [name for name in frame if pd.api.types.is_object_dtype(frame[name])]:
        frame[column] = [x.tolist() if hasattr(x, "tolist") else x for x in frame[column]]
    return frame
