"""Prompts and preference pairs: where they come from, how they are split, which labels are wrong.

All data is a pandas DataFrame with one row per prompt or per pair:

- `prompt_id`: 12 hexadecimal digits, the same wherever the same prompt appears;
- `prompt`: a list of chat messages `{"role": ..., "content": ...}` that ends with the user's;
- `chosen`, `rejected` (labelled data only): the assistant's two replies, as text;
- `form` (builtin prompts, and data that has it): what prompts made from one template share. Such prompts are not
  independent, and the evaluation's intervals take those of one form together.

Nothing here knows a model or a judge.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet

from sgpo_lib import hub
from sgpo_lib.params import DataParams
from sgpo_lib.preference_formats import as_user, prompt_id, to_frame, user_text, with_ids
from sgpo_lib.prompt_pool import builtin_forms, builtin_prompts

__all__ = [
    "Splits",
    "farthest_point",
    "flip_labels",
    "load",
    "loss_weights",
    "prepare",
    "prompt_id",
    "random_subset",
    "split",
    "user_text",
]

COMMIT = re.compile("[0-9a-f]{40}")
FILE_TYPES = (".jsonl", ".json", ".parquet")
SOURCES = "'builtin', an existing .jsonl, .json or .parquet file, or the id of a hub dataset (owner/name)"


@dataclass(frozen=True)
class Splits:
    """Data split by prompt: no prompt is in two parts.

    Attributes
    ----------
    seed : DataFrame
        The labelled seed: every row of its prompts.
    calibration : DataFrame
        Labelled as the seed is, and kept out of its training: every row of its prompts.
    rounds : list of DataFrame
        For each round of self-annotation the distinct prompts, columns `prompt_id` and `prompt` only: a round
        cannot see labels that it is meant to make.
    evaluation : DataFrame
        Held out: every row of its prompts.
    fingerprint : str
        16 hexadecimal digits that change with any prompt, label or weight of the data, or with their order.
    revision : str or None
        The commit of a hub dataset.
    """

    seed: pd.DataFrame
    calibration: pd.DataFrame
    rounds: list[pd.DataFrame]
    evaluation: pd.DataFrame
    fingerprint: str = ""
    revision: str | None = None

    @property
    def labelled(self) -> pd.DataFrame:
        """What later steps need to know to draw the same split, for `prepare`: a row per labelled prompt.

        Columns `prompt_id`, `part` ("seed" or "calibration"), and the same in all rows `fingerprint`, `revision`.
        """
        parts = {"seed": self.seed, "calibration": self.calibration}
        ids = [rows[["prompt_id"]].drop_duplicates().assign(part=part) for part, rows in parts.items()]
        return pd.concat(ids, ignore_index=True).assign(fingerprint=self.fingerprint, revision=self.revision)


# --- loading


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
        The hub does not answer within `sgpo_lib.hub.DEADLINE` seconds and the local cache does not have the dataset,
        or not the revision.

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


def loss_weights(pairs: pd.DataFrame) -> pd.Series:
    """Return what each pair's loss is multiplied by, shape (N,): its own `weight` where the data has one, else 1.

    Raises
    ------
    ValueError : a weight is negative or not finite, or all are 0.
    """
    if "weight" not in pairs:
        return pd.Series(1.0, index=pairs.index)
    weights = pairs["weight"].astype(float)
    bad = ~(np.isfinite(weights) & (weights >= 0))
    if bad.any():
        raise ValueError(f"{bad.sum()} of {len(pairs)} pairs have a weight that is negative or not finite")
    if not weights.any():
        raise ValueError(f"all {len(pairs)} pairs have weight 0, so that there is nothing to train on")
    return weights


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


# --- splitting, seed selection, label noise


def split(
    data: pd.DataFrame,
    n_seed: int,
    n_rounds: Sequence[int],
    n_evaluation: int,
    shuffle_seed: int,
    seed: int | None = None,
    select: Callable[[pd.DataFrame], Sequence[int]] | None = None,
    n_calibration: int = 0,
) -> Splits:
    """Split data by distinct prompt into a labelled seed, one pool per round, and an evaluation set.

    Parameters
    ----------
    data : DataFrame with column `prompt`
    n_seed, n_evaluation : int
        Numbers of distinct prompts; where pairs share a prompt there are more rows than that.
    n_rounds : sequence of int
        Number of distinct prompts of each round.
    shuffle_seed : int
        Orders the prompts as `datasets.Dataset.shuffle` does. The evaluation prompts are the last of that
        order, so they depend on nothing else; the seed and the rounds follow each other from its start.
    seed : int, optional
        The run's seed: re-orders all prompts but the evaluation's.
    select : callable, optional
        Gets the candidate prompts (all but those of evaluation and calibration; columns `prompt_id`, `prompt`)
        and returns the positions of the `n_seed` to label, such as those of `farthest_point`. Default: the
        first ones.
    n_calibration : int
        Number of distinct prompts for calibration. They are the last of the candidates, so that rounds can be
        added without changing them.

    Returns
    -------
    Splits

    Raises
    ------
    ValueError
        There are fewer distinct prompts than asked for, a number is negative, or `select` returns anything
        but `n_seed` distinct positions.
    """
    if min(n_seed, n_evaluation, n_calibration, *n_rounds, 0) < 0:
        raise ValueError(
            f"sizes must not be negative: {n_seed=}, n_rounds={list(n_rounds)}, {n_evaluation=}, {n_calibration=}"
        )
    data = data if "prompt_id" in data else with_ids(data)
    prompts = data.drop_duplicates("prompt_id")[["prompt_id", "prompt"]]
    needed = n_seed + n_calibration + sum(n_rounds) + n_evaluation
    if needed > len(prompts):
        raise ValueError(
            f"the split needs {needed} distinct prompts ({n_seed} for the seed, {list(n_rounds)} for rounds, "
            f"{n_calibration} for calibration, {n_evaluation} for evaluation) but the data has {len(prompts)} in "
            f"{len(data)} rows: ask for fewer or bring more data"
        )
    order = np.random.default_rng(shuffle_seed).permutation(len(prompts))
    n_candidates = len(prompts) - n_evaluation
    candidates, evaluation = order[:n_candidates], order[n_candidates:]
    if seed is not None:
        candidates = np.random.default_rng(seed).permutation(candidates)
    candidates, calibration = np.split(candidates, [n_candidates - n_calibration])
    candidates = prompts.iloc[candidates].reset_index(drop=True)

    chosen = np.arange(n_seed) if select is None else np.asarray(select(candidates), dtype=int)
    if len(chosen) != n_seed or len(set(chosen.tolist()) & set(range(len(candidates)))) != n_seed:
        raise ValueError(f"select must return {n_seed} distinct positions from 0 to {len(candidates) - 1}")
    unlabelled = candidates.drop(index=chosen)
    ends = np.cumsum([0, *n_rounds])
    return Splits(
        seed=_rows_of(data, candidates["prompt_id"].iloc[chosen]),
        calibration=_rows_of(data, prompts["prompt_id"].iloc[calibration]),
        rounds=[unlabelled.iloc[start:end].reset_index(drop=True) for start, end in itertools.pairwise(ends)],
        evaluation=_rows_of(data, prompts["prompt_id"].iloc[evaluation]),
    )


def prepare(
    params: DataParams,
    root: Path,
    seed: int,
    embed: Callable[[list], np.ndarray] | None = None,
    labelled: pd.DataFrame | None = None,
) -> Splits:
    """Load and split what a params file's `data` section asks for.

    Parameters
    ----------
    root : folder that a relative path of a file in `source` is relative to.
    seed : the run's seed; draws the seed and round prompts if `reshuffle` is set, and nothing otherwise.
    embed : maps N prompts to embeddings, shape (N, d); needed to select the seed by `farthest-point`.
    labelled : `Splits.labelled` of the seed step, for a later step, whose data must be the same.

    Raises
    ------
    ValueError
        `farthest-point` has neither of the two, or the data is not what `labelled` was drawn from, so that a seed
        prompt could be among the evaluation's; besides what `load` and `split` raise.
    """

    def select(candidates: pd.DataFrame) -> np.ndarray:
        if labelled is not None:
            position = pd.Series(candidates.index, candidates["prompt_id"])
            return position.loc[labelled.loc[labelled["part"] == "seed", "prompt_id"]].to_numpy()
        if embed is None:
            raise ValueError("selecting the seed by farthest-point needs a model's embeddings: run notebook 01")
        return farthest_point(embed(candidates["prompt"].tolist()), params.n_seed, seed)

    if labelled is not None and "fingerprint" not in labelled:
        raise ValueError(
            "the seed was drawn by an earlier version, which did not note from what data: run 01_seed_dpo again"
        )
    revision = params.revision if labelled is None else labelled["revision"].iloc[0]
    data = load(str(local_file(params.source, root) or params.source), params.split, params.bad_rows, revision)
    fingerprint = _fingerprint(data)
    if labelled is not None and labelled["fingerprint"].iloc[0] != fingerprint:
        raise ValueError(
            f"data.source {params.source} is not what it was when the seed was drawn from it: its prompts, labels or "
            "weights, or their order, have changed, and a seed prompt could now be among the evaluation's. Bring back "
            "the data as it was, or run notebook 01_seed_dpo again"
        )
    parts = split(
        data,
        params.n_seed,
        params.n_prompts,
        params.n_evaluation,
        params.shuffle_seed,
        seed if params.reshuffle else None,
        select if params.seed_selection == "farthest-point" else None,
        params.n_calibration,
    )
    return replace(parts, fingerprint=fingerprint, revision=data.attrs.get("revision"))


def _fingerprint(data: pd.DataFrame) -> str:
    columns = [data[name].tolist() for name in ("prompt", "chosen", "rejected", "weight") if name in data]
    digest = hashlib.sha256()
    for row in zip(*columns, strict=True):
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()[:16]


def _rows_of(data: pd.DataFrame, ids: pd.Series) -> pd.DataFrame:
    """All rows of these prompts in the order of `ids`; without labels a repeated prompt says nothing new."""
    if "chosen" not in data:
        data = data.drop_duplicates("prompt_id")
    rank = {key: i for i, key in enumerate(ids)}
    ranks = data["prompt_id"].map(rank).to_numpy(dtype=float, na_value=np.nan)
    in_order = np.argsort(ranks, kind="stable")  # NaN, the prompts of other parts, sorts last
    return data.iloc[in_order[: np.isfinite(ranks).sum()]].reset_index(drop=True)


def random_subset(n_total: int, n: int, seed: int) -> np.ndarray:
    """Return `n` of `n_total` positions uniformly at random, shape (n,): the first n of one permutation."""
    if not 0 <= n <= n_total:
        raise ValueError(f"cannot choose {n} of {n_total}")
    return np.random.default_rng(seed).permutation(n_total)[:n]


def farthest_point(embeddings: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Choose points one by one, each the farthest in cosine distance from all chosen before it.

    Parameters
    ----------
    embeddings : ndarray, shape (N, d)
        Any length but zero: only directions count.
    n : int
        How many to choose, at most N.
    seed : int
        Draws the first point; the rest is determined by it.

    Returns
    -------
    ndarray of int, shape (n,)
        Positions in the order of choice, so the first m are the choice for n = m.

    Raises
    ------
    ValueError
        `n` is out of range, or an embedding is zero or not finite.

    Notes
    -----
    O(N n d) time and O(N d) memory: one running minimum of distances, never an N x N matrix. This is the
    farthest-first traversal of Gonzalez (1985), Clustering to minimize the maximum intercluster distance.
    """
    embeddings = np.asarray(embeddings)
    if not 0 <= n <= len(embeddings):
        raise ValueError(f"cannot choose {n} of {len(embeddings)}")
    directions = np.array(embeddings, dtype=np.float32)
    norms = np.linalg.norm(directions, axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(norms[:, 0]) | (norms[:, 0] == 0))
    if len(bad):
        raise ValueError(f"{len(bad)} embeddings are zero or not finite, the first at position {bad[0]}")
    directions /= norms

    # Cosine similarity to the nearest chosen point; while there is none, the drawn one counts as farthest.
    nearest = np.full(len(directions), -2.0, dtype=np.float32)
    nearest[np.random.default_rng(seed).integers(len(directions))] = -np.inf
    chosen = np.empty(n, dtype=int)
    for i in range(n):
        chosen[i] = nearest.argmin()
        np.maximum(nearest, directions @ directions[chosen[i]], out=nearest)
        nearest[chosen[i]] = np.inf
    return chosen


def flip_labels(pairs: pd.DataFrame, share: float, seed: int) -> pd.DataFrame:
    """Swap chosen and rejected in exactly `round(share * N)` of the N rows.

    Parameters
    ----------
    pairs : DataFrame, N rows
        Columns that describe a reply move with it: `chosen_model` is swapped with `rejected_model`.
    share : float in [0, 1]
    seed : int
        With one seed, the rows flipped at a smaller share are among those flipped at a larger.

    Returns
    -------
    DataFrame, N rows
        A copy with the boolean column `flipped`.

    Raises
    ------
    ValueError
        `share` is not in [0, 1], or the pairs are marked as flipped already.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share of labels to flip must be from 0 to 1, not {share}")
    if "flipped" in pairs:
        raise ValueError("these pairs have a column 'flipped' already: flip the original labels instead")
    flipped = np.zeros(len(pairs), dtype=bool)
    flipped[random_subset(len(pairs), round(share * len(pairs)), seed)] = True
    noisy = pairs.copy()
    for name in pairs.columns:
        other = name.replace("chosen", "rejected", 1)
        if name.startswith("chosen") and other in pairs:
            noisy[name] = pairs[name].where(~flipped, pairs[other])
            noisy[other] = pairs[other].where(~flipped, pairs[name])
    noisy["flipped"] = flipped
    return noisy
