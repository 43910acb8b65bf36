"""Long work in shards: what a kill interrupts goes on where it stopped, and ends with the same table.

Knows tables and files; knows nothing of what is asked or who answers.
"""

import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from sgpo_lib.runs.store import read_parquet, replacing, sha256_of


def in_shards(
    prompts: pd.DataFrame,
    answer: Callable[[pd.DataFrame], pd.DataFrame],
    folder: Path,
    size: int,
    key: dict[str, Any],
) -> pd.DataFrame:
    """Return `answer(prompts)`, made and kept in shards of `size` prompts, so that a kill costs at most one.

    A shard is a plain Parquet file whose name holds two hashes: of what made it (its prompts, where they
    stand, and `key`), so that one made from anything else is never found; and of its content, so that a
    damaged one is made again.

    Parameters
    ----------
    prompts : N rows of values that JSON can write.
    answer : gets `size` consecutive prompts (the last time perhaps fewer), whose index counts from 0 over all
        N, and gives any number of rows. It must depend on nothing but them and `key`.
    folder : where the shards are kept; made if missing. Whoever calls removes it when the work is done.
    key : everything else that decides the answers; values that JSON can write.

    Returns
    -------
    DataFrame : the answers in the order of the prompts, indexed from 0, with plain lists in list columns.
    """
    prompts = prompts.reset_index(drop=True)
    folder.mkdir(parents=True, exist_ok=True)
    answers = []
    starts = range(0, len(prompts), size)
    with tqdm(total=len(prompts), desc="shards", unit="prompt", disable=len(starts) < 5) as progress:
        for start, end in itertools.pairwise([*starts, len(prompts)]):
            part = prompts.iloc[start:end]
            name = f"{start:07d}-{_made_by(part, key)}"
            content = _kept(folder, name) or _keep(folder, name, answer(part))
            answers.append(
                read_parquet(io.BytesIO(content))
            )  # also when just made: a resumed table is the same to the last type
            progress.update(len(part))
    return pd.concat(answers, ignore_index=True)


def _made_by(part: pd.DataFrame, key: dict[str, Any]) -> str:
    return sha256_of(json.dumps([int(part.index[0]), part.to_dict("list"), key], sort_keys=True).encode())[:20]


def _kept(folder: Path, name: str) -> bytes | None:
    """Content of the shard of that name, if there is one and it is what was written."""
    for file in folder.glob(f"{name}-*.parquet"):
        content = file.read_bytes()
        if file.stem == f"{name}-{sha256_of(content)[:20]}":
            return content
    return None


def _keep(folder: Path, name: str, frame: pd.DataFrame) -> bytes:
    stream = io.BytesIO()
    frame.to_parquet(stream, index=False)
    content = stream.getvalue()
    file = folder / f"{name}-{sha256_of(content)[:20]}.parquet"
    with replacing(file) as temporary:
        temporary.write_bytes(content)
    return content
