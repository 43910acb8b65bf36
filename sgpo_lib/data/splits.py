"""Prompts and preference pairs: where they come from, how they are split, which labels are wrong.

All data is a pandas DataFrame with one row per prompt or per pair:

- `prompt_id`: 12 hexadecimal digits, the same wherever the same prompt appears;
- `prompt`: a list of chat messages `{"role": ..., "content": ...}` that ends with the user's;
- `chosen`, `rejected` (labelled data only): the assistant's two replies, as text;
- `form` (builtin prompts, and data that has it): what prompts made from one template share. Such prompts are not
  independent, and the evaluation's intervals take those of one form together.

Nothing here knows a model or a judge.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from sgpo_lib.data.prompts import with_ids
from sgpo_lib.data.selection import farthest_point
from sgpo_lib.data.sources import fingerprint_of, load, local_file
from sgpo_lib.params.schema import DataParams


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
    training_pool : DataFrame
        All distinct prompts that may be trained on, columns `prompt_id` and `prompt`, in an order that only
        `shuffle_seed` draws, so that any end of it is the same prompts for every run seed and size of the parts.
    fingerprint : str
        16 hexadecimal digits that change with any prompt, label or weight of the data, or with their order.
    revision : str or None
        The commit of a hub dataset.
    """

    seed: pd.DataFrame
    calibration: pd.DataFrame
    rounds: list[pd.DataFrame]
    evaluation: pd.DataFrame
    training_pool: pd.DataFrame
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


def split(
    data: pd.DataFrame,
    n_seed: int,
    n_rounds: Sequence[int],
    n_evaluation: int,
    shuffle_seed: int,
    seed: int | None = None,
    select: Callable[[pd.DataFrame], Sequence[int]] | None = None,
    n_calibration: int = 0,
    held_out_forms: int = 0,
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
        order, so they depend on nothing else. The seed is at its start, and the rounds lie before evaluation and
        calibration, the first one last: labels can be added without changing a round, and rounds without
        changing another one or the labels; a smaller seed is part of a larger one.
    seed : int, optional
        The run's seed: re-orders all prompts but the evaluation's.
    select : callable, optional
        Gets the candidate prompts (all but those of evaluation and calibration; columns `prompt_id`, `prompt`)
        and returns the positions of the `n_seed` to label, such as those of `farthest_point`. Default: the
        first ones.
    n_calibration : int
        Number of distinct prompts for calibration. They are the last of the candidates, so that rounds can be
        added without changing them.
    held_out_forms : int
        Number of forms, drawn by `shuffle_seed`, whose prompts nothing but the evaluation sees; all its prompts are
        of these. By default the evaluation's prompts have the forms of those that are trained on.

    Returns
    -------
    Splits

    Raises
    ------
    ValueError
        There are fewer distinct prompts than asked for, a number is negative, `select` returns anything but
        `n_seed` distinct positions, or forms are to be held out of data in which not every prompt has one.
    """
    if min(n_seed, n_evaluation, n_calibration, *n_rounds, 0) < 0:
        raise ValueError(
            f"sizes must not be negative: {n_seed=}, n_rounds={list(n_rounds)}, {n_evaluation=}, {n_calibration=}"
        )
    data = data if "prompt_id" in data else with_ids(data)
    prompts = data.drop_duplicates("prompt_id")
    is_held_out = _of_held_out_forms(prompts, held_out_forms, shuffle_seed)
    prompts = prompts[["prompt_id", "prompt"]]
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
    if held_out_forms:
        candidates, held_out = order[~is_held_out[order]], order[is_held_out[order]]
        n_candidates, evaluation = len(candidates), held_out[len(held_out) - n_evaluation :]
        _check_room(n_candidates, needed - n_evaluation, len(held_out), n_evaluation, held_out_forms)
    training_pool = prompts.iloc[candidates].reset_index(drop=True)
    if seed is not None:
        candidates = np.random.default_rng(seed).permutation(candidates)
    candidates, calibration = np.split(candidates, [n_candidates - n_calibration])
    candidates = prompts.iloc[candidates].reset_index(drop=True)

    chosen = np.arange(n_seed) if select is None else np.asarray(select(candidates), dtype=int)
    if len(chosen) != n_seed or len(set(chosen.tolist()) & set(range(len(candidates)))) != n_seed:
        raise ValueError(f"select must return {n_seed} distinct positions from 0 to {len(candidates) - 1}")
    unlabelled = candidates.drop(index=chosen)
    ends = len(unlabelled) - np.cumsum([0, *n_rounds])
    return Splits(
        seed=_rows_of(data, candidates["prompt_id"].iloc[chosen]),
        calibration=_rows_of(data, prompts["prompt_id"].iloc[calibration]),
        rounds=[unlabelled.iloc[start:end].reset_index(drop=True) for end, start in itertools.pairwise(ends)],
        evaluation=_rows_of(data, prompts["prompt_id"].iloc[evaluation]),
        training_pool=training_pool,
    )


def _of_held_out_forms(prompts: pd.DataFrame, n_forms: int, shuffle_seed: int) -> np.ndarray:
    """Return which prompts (N rows) have one of `n_forms` forms drawn by `shuffle_seed`, shape (N,)."""
    if not n_forms:
        return np.zeros(len(prompts), bool)
    n_without = prompts["form"].isna().sum() if "form" in prompts else len(prompts)
    if n_without:
        raise ValueError(
            f"data.held_out_forms is {n_forms}, but {n_without} of {len(prompts)} prompts have no form, so that none "
            "can be kept from training: give the data a column form that names what prompts made from one template "
            "share, or set data.held_out_forms: 0"
        )
    forms = sorted(prompts["form"].unique())
    drawn = np.random.default_rng(shuffle_seed).permutation(len(forms))[:n_forms]
    return prompts["form"].isin([forms[i] for i in drawn]).to_numpy()


def _check_room(n_trainable: int, n_to_train: int, n_held_out: int, n_evaluation: int, n_forms: int) -> None:
    if n_to_train > n_trainable or n_evaluation > n_held_out:
        raise ValueError(
            f"with data.held_out_forms: {n_forms} there are {n_held_out} prompts to evaluate on and {n_trainable} for "
            f"all else, but data.n_evaluation is {n_evaluation} and seed, calibration and rounds take {n_to_train}: "
            "hold out more or fewer forms, or ask for fewer prompts"
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
    fingerprint = fingerprint_of(data)
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
        params.held_out_forms,
    )
    return replace(parts, fingerprint=fingerprint, revision=data.attrs.get("revision"))


def _rows_of(data: pd.DataFrame, ids: pd.Series) -> pd.DataFrame:
    """All rows of these prompts in the order of `ids`; without labels a repeated prompt says nothing new."""
    if "chosen" not in data:
        data = data.drop_duplicates("prompt_id")
    rank = {key: i for i, key in enumerate(ids)}
    ranks = data["prompt_id"].map(rank).to_numpy(dtype=float, na_value=np.nan)
    in_order = np.argsort(ranks, kind="stable")  # NaN, the prompts of other parts, sorts last
    return data.iloc[in_order[: np.isfinite(ranks).sum()]].reset_index(drop=True)
