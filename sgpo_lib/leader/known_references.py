"""TRL's DPOTrainer for data whose token ids and reference log-probabilities are known."""

import contextlib
import copy
import dataclasses
import inspect
import math
import warnings
from collections.abc import Iterator, Mapping
from numbers import Real
from typing import Any
from unittest import mock

from datasets import Dataset, IterableDataset
from trl import DPOConfig, DPOTrainer
from trl.trainer import dpo_trainer
from trl.trainer.utils import hash_module

FINITE = (-math.inf, math.inf)
TOKENS = {"prompt_ids", "chosen_ids", "rejected_ids"}
REFERENCES = {"ref_chosen_logps", "ref_rejected_logps"}


class KnownReferencesTrainer(DPOTrainer):
    """TRL's DPOTrainer, taking what a dataset already knows instead of computing it again.

    Columns used where a dataset has them: reference log-probabilities (`ref_chosen_logps`, `ref_rejected_logps`,
    in nats, of the tokens that `max_length` leaves) and token ids (`prompt_ids`, `chosen_ids`, `rejected_ids`).
    With known references no reference model is loaded, and `precompute_ref_log_probs` is on whatever the config
    says: a dataset beside it that lacks the columns is scored before training.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        """Take what `trl.DPOTrainer` takes.

        Raises
        ------
        ValueError : if a dataset has one of the two reference columns only, or a reference that is not finite (of a
            streamed dataset when the row comes), or there are known references and a reference model, which could
            contradict each other.
        """
        given = arguments_by_name(args, kwargs)
        columns = {name: columns_of(dataset) for name, dataset in datasets_of(given).items()}
        for name, names in columns.items():
            if len(names & REFERENCES) == 1:
                missing = (REFERENCES - names).pop()
                raise ValueError(
                    f"The {name} data has reference log-probabilities of one side only: `{missing}` is missing. "
                    "Add it, or remove the other."
                )
        knowing = [name for name, names in columns.items() if names >= REFERENCES]
        if knowing and given.get("ref_model") is not None:
            raise ValueError(
                f"The {knowing[0]} data has reference log-probabilities (`ref_chosen_logps`, `ref_rejected_logps`), "
                "and a `ref_model` is given that would compute others: leave out one of them."
            )
        loading = contextlib.nullcontext()
        if knowing:
            given["args"] = copy.copy(given.get("args") or DPOConfig())
            given["args"].precompute_ref_log_probs = True
            if len(knowing) == len(columns):
                loading = _no_reference_model(policy_is_loaded=not isinstance(given["model"], str))
        with loading:
            super().__init__(**given)

    def create_accelerator_and_postprocess(self):
        """As transformers' own, but log-probabilities leave a sharded model unrounded."""
        super().create_accelerator_and_postprocess()
        # Accelerate has FSDP round the model's outputs to the type it computes in, and these are log-probabilities.
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if plugin is not None and plugin.fsdp_version == 2 and plugin.mixed_precision_policy is not None:
            plugin.mixed_precision_policy = dataclasses.replace(plugin.mixed_precision_policy, output_dtype=None)

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        dataset = checked(dataset, dataset_name, dict.fromkeys(REFERENCES, FINITE))
        if not columns_of(dataset) >= TOKENS:
            return super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        if args.max_length is None or args.truncation_mode != "keep_start":
            return dataset
        # As TRL does with rows that it tokenises itself: nothing of their answers would be left.
        kept = dataset.filter(lambda row: len(row["prompt_ids"]) < args.max_length)
        if isinstance(dataset, Dataset) and len(kept) < len(dataset):
            warnings.warn(
                f"{len(dataset) - len(kept)} of {len(dataset)} rows of the {dataset_name} data are left out: their "
                f"prompts alone fill max_length={args.max_length} tokens.",
                stacklevel=2,
            )
        return kept

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """As TRL's own, but after training too where a dataset has references and TRL could not compute them."""
        if isinstance(eval_dataset, Dataset | IterableDataset) and columns_of(eval_dataset) >= REFERENCES:
            eval_dataset = self._prepare_dataset(eval_dataset, self.processing_class, self.args, "eval")
            return super(DPOTrainer, self).evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def _precompute_ref_logps(self, dataset, name, batch_size):
        if columns_of(dataset) >= REFERENCES:
            return dataset
        if self._precompute_model_hash is None:  # it was not needed so far, but names TRL's cache
            self._precompute_model_hash = hash_module(self.ref_model or self.model)
        return super()._precompute_ref_logps(dataset, name, batch_size)


def arguments_by_name(args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return DPOTrainer's arguments by name."""
    return dict(inspect.signature(DPOTrainer).bind(*args, **kwargs).arguments)


def datasets_of(given: Mapping[str, Any]) -> dict[str, Dataset | IterableDataset]:
    """Return the training and evaluation datasets by name."""
    evaluation = given.get("eval_dataset")
    evaluation = evaluation if isinstance(evaluation, Mapping) else {"eval": evaluation}
    named = {"train": given.get("train_dataset"), **evaluation}
    return {name: dataset for name, dataset in named.items() if isinstance(dataset, Dataset | IterableDataset)}


def columns_of(dataset: Dataset | IterableDataset) -> set[str]:
    """Return a dataset's columns; a streamed one may show them by its first row only."""
    return set(dataset.column_names or next(iter(dataset), {}))


def checked(
    dataset: Dataset | IterableDataset, name: str, limits: Mapping[str, tuple[float, float]]
) -> Dataset | IterableDataset:
    """Return the dataset if the columns that have limits hold finite numbers within them, or none are there.

    A streamed dataset is checked row by row on its way. Raises ValueError that names the row.
    """
    limits = {column: limits[column] for column in limits if column in columns_of(dataset)}
    options = {"name": name, "limits": limits}
    if not limits:
        return dataset
    if isinstance(dataset, IterableDataset):
        return dataset.map(_checked_row, with_indices=True, fn_kwargs=options)
    for index, row in enumerate(dataset.select_columns(list(limits))):
        _checked_row(row, index, **options)
    return dataset


def _checked_row(
    row: Mapping[str, Any], index: int, name: str, limits: Mapping[str, tuple[float, float]]
) -> Mapping[str, Any]:
    for column, (least, largest) in limits.items():
        value = row.get(column)
        if not (isinstance(value, Real) and math.isfinite(value) and least <= value <= largest):
            raise ValueError(
                f"Row {index} of the {name} data has {column}={value!r}, but this training takes finite numbers from "
                f"{least:g} to {largest:g} there. Correct it, or remove the row or the column."
            )
    return row


@contextlib.contextmanager
def _no_reference_model(policy_is_loaded: bool) -> Iterator[None]:
    """While TRL's constructor runs, let it load no model but the policy, and hash no weights.

    TRL loads a reference model where all log-probabilities are given, too: under FSDP, on every rank. And it hashes
    all weights to name a cache that stays empty.
    """
    load = dpo_trainer.create_model_from_path

    def load_policy_only(*args: Any, **kwargs: Any):
        nonlocal policy_is_loaded
        if policy_is_loaded:
            return None
        policy_is_loaded = True
        return load(*args, **kwargs)

    with (
        mock.patch.object(dpo_trainer, "create_model_from_path", load_policy_only),
        mock.patch.object(dpo_trainer, "hash_module", return_value=None),
    ):
        yield
