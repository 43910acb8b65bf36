"""Where data comes from: the builtin prompts, a local file, or the hub."""

import hashlib
import json
import re
from pathlib import Path

import pandas as pd
import pyarrow
import pyarrow.parquet

from sgpo_lib.data import hub
from sgpo_lib.data.builtin_prompts import builtin_forms, builtin_prompts
from sgpo_lib.data.formats import to_frame
from sgpo_lib.data.prompts import as_user, with_ids

COMMIT = re.compile("[0-9a-f]{40}")
FILE_TYPES = (".jsonl", ".json", ".parquet")
SOURCES = "'builtin', an existing .jsonl, .json or .parquet file, or the id of a hub dataset (owner/name)"


def local_file(source: str, root: Path) -> Path | None:
    """Return where a source lies that is a file, relative to `root`; None for builtin prompts and hub datasets."""
    path = root / Path(source).expanduser()
    return path if path.suffix.lower() in FILE_TYPES or path.is_file() else None


def load(source: str, split: str = "train", bad_rows: str = "raise", revision: str | None = None) -> pd.DataFrame:
    """Load prompts or preference pairs.

    Parameters
    ----------
    source : str
        `"builtin"` (prompts written for this project), the path of a `.jsonl`, `.json` or `.parquet` file,
        or the id of a dataset on the hub.
    split : str
        Which split of a hub dataset; a file is one split, so there it says nothing.
    bad_rows : {"raise", "drop"}
        What to do when rows cannot be used. `"drop"` leaves them out with a warning that counts and shows
        them, for published data that one cannot correct.
    revision : str, optional
        Commit, tag or branch of a hub dataset; by default its newest commit.

    Returns
    -------
    DataFrame, one row per prompt or pair
        Columns `prompt_id`, `prompt`, for labelled data `chosen`, `rejected` and, where the source has it, `weight`
        (finite, at least 0), and every other column of the source that holds plain values, except its own
        `prompt_id` and names that later steps use; what is left out is warned of. `attrs["n_ties"]` and
        `attrs["n_bad_rows"]` count what was left out of a file or hub dataset, and `attrs["revision"]` is the
        commit that a hub dataset was at.

    Raises
    ------
    ValueError
        Rows cannot be used: names the file, the line (or row) and the field, and what was expected there.
    FileNotFoundError
        No such file or dataset.
    ConnectionError
        The hub does not answer within `sgpo_lib.data.hub.DEADLINE` seconds and the local cache does not have the
        dataset, or not the revision.

    Notes
    -----
    Understood are TRL's preference formats (conversational with explicit or implicit prompt, and plain),
    prompts alone (`prompt` or `instruction`), and alpaca-eval's annotations (`instruction`, `output_1`,
    `output_2`, `preference` from 1 to 2; ties at 1.5 are left out, counted and warned of). Transcripts as in
    Anthropic's HH (`Human: ... Assistant: ...`) are read as messages. Beside a prompt of one text, `input` is joined
    below it, `system` and `history` ([user, assistant] texts) before it, as LLaMA-Factory documents Alpaca's format.
    """
    if bad_rows not in ("raise", "drop"):
        raise ValueError(f"bad_rows must be 'raise' or 'drop', not {bad_rows!r}")
    if source == "builtin":
        prompts = [as_user(text) for text in builtin_prompts()]
        return with_ids(pd.DataFrame({"prompt": prompts, "form": builtin_forms()}))
    path = Path(source).expanduser()
    if path.suffix.lower() in FILE_TYPES:
        rows = _read_file(path)
    elif path.exists():
        raise ValueError(f"{source} is not a file of preference data: expected one of {', '.join(FILE_TYPES)}")
    else:
        rows, revision = _read_hub(source, split, revision)
        data = to_frame(source, rows, bad_rows)
        data.attrs["revision"] = revision
        return data
    return to_frame(source, rows, bad_rows)


def _read_file(path: Path) -> list[tuple[str, object]]:
    """Return the place and the content of each row; for a line that is no JSON, its content is the error."""
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path.absolute()}. data.source must be {SOURCES}")
    if path.suffix.lower() == ".parquet":
        try:
            rows = pyarrow.parquet.read_table(path).to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{path}: not a readable Parquet file ({error})") from error
        return [(f"row {i}", row) for i, row in enumerate(rows, 1)]

    content = path.read_bytes()
    if path.suffix.lower() == ".json" and content.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        try:
            return [(f"row {i}", row) for i, row in enumerate(json.loads(content), 1)]
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: invalid JSON ({error})") from error

    rows = []
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            row = error
        rows.append((f"line {number}", row))
    return rows


def _read_hub(source: str, split: str, revision: str | None) -> tuple[list[tuple[str, object]], str | None]:
    """Return the rows of a hub dataset with their places, and its commit."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
        raise FileNotFoundError(f"no such data: {source!r}. data.source must be {SOURCES}")
    # Imported here because it is slow to import, and runs on builtin or local data do without.
    import datasets

    # An unreachable hub costs `datasets` half a minute of retries; offline it goes to its cache at once.
    reason = hub.why_silent(datasets.config.HF_ENDPOINT)
    offline = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = offline or reason is not None
    try:
        dataset = datasets.load_dataset(source, split=split, revision=revision)
    except ConnectionError as error:
        raise ConnectionError(
            f"cannot reach the hub at {datasets.config.HF_ENDPOINT} for dataset '{source}' "
            f"({reason or error}), and the local cache does not have it. Use the embedded prompts "
            "(data.source: builtin), or a local file (data.source: the path of a .jsonl, .json or .parquet "
            "file), or try again when connected"
        ) from error
    except datasets.exceptions.DatasetNotFoundError as error:
        raise FileNotFoundError(f"{error} data.source must be {SOURCES}") from error
    finally:
        datasets.config.HF_HUB_OFFLINE = offline
    # `datasets` keeps each commit in a folder of its name, and without the hub takes the latest, whatever was asked.
    folder = Path(dataset.cache_files[0]["filename"]).parent.name if dataset.cache_files else ""
    commit = folder if COMMIT.fullmatch(folder) else None
    if revision not in (None, commit) and (COMMIT.fullmatch(revision) or offline or reason):
        raise ConnectionError(
            f"dataset '{source}' was asked for at revision {revision}, but the hub did not give it "
            f"({reason or 'offline'}) and the local cache has {commit}: try again when connected, or set data.revision "
            "to that"
        )
    return [(f"row {i}", row) for i, row in enumerate(dataset.to_list(), 1)], commit


def fingerprint_of(data: pd.DataFrame) -> str:
    """Return a hash of prompts, labels and weights in their order: data that differs in any has another."""
    columns = [data[name].tolist() for name in ("prompt", "chosen", "rejected", "weight") if name in data]
    digest = hashlib.sha256()
    for row in zip(*columns, strict=True):
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()[:16]
