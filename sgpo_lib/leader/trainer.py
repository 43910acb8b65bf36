"""TRL's DPOTrainer for preference data with weights, and for data whose log-probabilities are known.

Usable on its own with any preference dataset: it knows nothing of rounds, followers or runs.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import PeftModel
from transformers import DataCollator, TrainingArguments
from trl import DPOConfig
from trl.trainer.utils import add_fused_lm_head

from sgpo_lib.leader.known_references import (
    FINITE,
    REFERENCES,
    TOKENS,
    KnownReferencesTrainer,
    arguments_by_name,
    checked,
    columns_of,
    datasets_of,
)
from sgpo_lib.leader.losses import weighted_logistic
from sgpo_lib.leader.packed_batches import PackingCheck, pairs_in
from sgpo_lib.leader.packing import has_scoring_head, pack, packed_log_probs, row_length
from sgpo_lib.leader.step_order import SortedWithinSteps

_ROUNDING = 1e-6  # by which a sum of fractions may exceed 1
# Column of the loss: its value where a dataset lacks it.
NEUTRAL = {"loss_weight": 1.0, "loss_slope": 0.0, "loss_moved": 0.0, "loss_displacement": 0.0}
LOSS_COLUMNS = tuple(NEUTRAL)
_NOT_FOR_THE_MODEL = {"completion_mask", *REFERENCES, *LOSS_COLUMNS}
# Of the options that DPOConfig adds to transformers' own; any other, also one that a later TRL adds, must be left as
# it is, because the loss here would ignore it.
_HONOURED_OPTIONS = {
    "activation_offloading",
    "beta",
    "dataset_num_proc",
    "disable_dropout",
    "max_length",
    "model_init_kwargs",
    "pad_to_multiple_of",
    "pad_token",
    "padding_free",  # TRL itself says that it has no effect
    "precompute_ref_batch_size",
    "precompute_ref_log_probs",
    "ref_model_mixup_alpha",
    "ref_model_sync_steps",
    "router_aux_loss_coef",
    "sync_ref_model",
    "truncation_mode",
    "trust_remote_code",
}


def _check_options(config: DPOConfig) -> None:
    """Refuse every option of DPO that the weighted loss would ignore."""
    inherited = {field.name for field in dataclasses.fields(TrainingArguments)}
    for field in dataclasses.fields(config):
        if field.name in inherited | _HONOURED_OPTIONS:
            continue
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        asked = getattr(config, field.name)
        if asked != default:
            raise ValueError(
                f"WeightedDPOTrainer has the sigmoid loss with weights only and would ignore {field.name}={asked!r}: "
                f"leave it at {default!r}, or train with KnownReferencesTrainer, which has all of TRL's losses."
            )


@dataclass
class _LossColumnsCollator:
    """Passes the rows' loss columns on beside another collator's batch."""

    collator: DataCollator

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collator(examples)
        for column, default in NEUTRAL.items():
            batch[column] = torch.tensor([float(example.get(column, default)) for example in examples])
        return batch


def _model_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a batch the model itself takes."""
    return {key: value for key, value in inputs.items() if key not in _NOT_FOR_THE_MODEL} | {"use_cache": False}


class WeightedDPOTrainer(KnownReferencesTrainer):
    """TRL's DPOTrainer for preference datasets whose rows say how they count.

    A row's loss, with its margin x and l(x) = log(1 + e^-x), is

        loss_weight * [(1 - loss_moved) * l(x) + loss_moved * l(x - loss_displacement)] + loss_slope * x

    and the columns of these names are all optional: without them it is DPO. No other column enters the loss.

    Examples
    --------
    >>> dataset = dataset.add_column("loss_weight", [1.0, 0.5, 2.0])
    >>> WeightedDPOTrainer(model="hub/id", args=DPOConfig("out"), train_dataset=dataset).train()
    """

    def __init__(self, *args: Any, batch_loss: Callable[[torch.Tensor], torch.Tensor] | None = None, **kwargs: Any):
        """Take what `trl.DPOTrainer` takes.

        Parameters
        ----------
        batch_loss : optional
            Maps a batch of margins, shape (B,), to a scalar that replaces the loss above. B is the number of
            rows on one device at one time: gradient accumulation and further devices average over batches.

        Raises
        ------
        ValueError : if the config asks for what the loss here would silently ignore, if a row's loss column is not a
            finite number in its range (`loss_weight` >= 0, 0 <= `loss_moved` <= 1; of a streamed dataset when the
            row comes), if the weights are in a column `weight`, or if there are images.
        """
        given = arguments_by_name(args, kwargs)
        _check_options(given.get("args") or DPOConfig())
        for name, dataset in datasets_of(given).items():
            if columns_of(dataset) & {"image", "images"}:
                raise ValueError(f"WeightedDPOTrainer trains on text only, and the {name} data has images.")
        self._batch_loss = batch_loss
        super().__init__(**given)
        # TRL also has its head compute entropy and other metrics of every token; the loss needs none of them.
        add_fused_lm_head(self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model)
        # Without its GPU kernel the fused head takes more than half of a step; a CPU has room for the logits.
        self._uses_fused_head = self.accelerator.device.type != "cpu"
        self._can_be_packed = PackingCheck()
        self.data_collator = _LossColumnsCollator(self.data_collator)

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        columns = columns_of(dataset)
        if "weight" in columns and "loss_weight" not in columns:
            raise ValueError(
                f"The {dataset_name} data has a column `weight`, but the loss takes its weights from `loss_weight`. "
                'If they are that, rename it: dataset.rename_column("weight", "loss_weight"). Otherwise remove it.'
            )
        limits = {"loss_weight": (0.0, math.inf), "loss_moved": (0.0, 1.0 + _ROUNDING)}
        if self._batch_loss is not None:  # which would ignore any other value
            limits = {column: (default, default) for column, default in NEUTRAL.items()}
        dataset = checked(dataset, dataset_name, dict.fromkeys(LOSS_COLUMNS, FINITE) | limits)
        return super()._prepare_dataset(dataset, processing_class, args, dataset_name)

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        missing = [column for column in LOSS_COLUMNS if column not in self._signature_columns]
        self._signature_columns = [*self._signature_columns, *missing]

    def _get_train_sampler(self, train_dataset=None):
        dataset = self.train_dataset if train_dataset is None else train_dataset
        is_plain = self.args.train_sampling_strategy == "random" and self._batch_loss is None
        if not is_plain or not isinstance(dataset, Dataset) or not columns_of(dataset) >= TOKENS:
            return super()._get_train_sampler(train_dataset)
        columns = zip(*(dataset[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")), strict=True)
        lengths = [row_length(prompt, answers) for prompt, *answers in columns]
        per_step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return SortedWithinSteps(lengths, per_step, seed)

    def preference_loss(self, margins: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        """Return the loss of a batch, a scalar, given its margins, shape (B,)."""
        if self._batch_loss is not None:
            return self._batch_loss(margins)
        weight, slope, moved, displacement = (inputs[column] for column in LOSS_COLUMNS)
        return weighted_logistic(margins, weight, slope, moved, displacement)

    def compute_ref_log_probs(self, model, inputs):
        """As TRL's own, for batches that carry the loss columns."""
        return super().compute_ref_log_probs(model, {k: v for k, v in inputs.items() if k not in LOSS_COLUMNS})

    def _log_probs(self, model: torch.nn.Module, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return log pi(y|x) of the chosen and then the rejected completions, in nats, shape (2 B,).

        And the router loss of a mixture of experts, a scalar, where TRL would train on it.
        """
        # A router balances what the tokens of a padded batch take, and a shared prompt would count once. An accelerator
        # has no room for logits, which packed rows have where their head is trained.
        has_room = not self._uses_fused_head or has_scoring_head(model)
        if has_room and not self.aux_loss_enabled:
            packed = self._packed_log_probs(model, inputs)
            if packed is not None:
                return packed, None
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        batch = _model_inputs(inputs)
        if self.aux_loss_enabled:
            batch["output_router_logits"] = True
        if self._uses_fused_head:
            # TRL's fused head, through the wrapped model so that FSDP and DeepSpeed see it, never holds all logits.
            outputs = model(**batch, labels=labels, fused_lm_head=True)
            log_probs = outputs.log_probs.sum(dim=1, dtype=torch.float32)
        else:
            targets = labels[:, 1:]  # the first token has nothing before it to be predicted from
            scored = (targets != -100).any(dim=0).nonzero()
            first = int(scored[0]) if len(scored) else 0
            outputs = model(**batch, logits_to_keep=labels.shape[1] - first)
            logits, targets = outputs.logits[:, :-1].float(), targets[:, first:]
            losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
            log_probs = -losses.view(targets.shape).sum(dim=1)
        return log_probs, outputs.aux_loss if self.aux_loss_enabled else None

    def _packed_log_probs(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor | None:
        """Return the same log-probabilities with each prompt computed once, or None where it cannot be shared."""
        pairs = pairs_in(inputs)
        if pairs is None:
            return None
        with self.accelerator.autocast():  # also around what is not the model's: masks and tolerances have its type
            if not self._can_be_packed(model, *pairs):
                return None
            log_probs = packed_log_probs(model, pack(*pairs).to(inputs["input_ids"].device))
        return log_probs.view(-1, 2).T.flatten()

    def _compute_loss(self, model, inputs, return_outputs):
        log_probs, router_loss = self._log_probs(model, inputs)
        chosen, rejected = log_probs.chunk(2)
        if "ref_chosen_logps" in inputs:
            ref_chosen, ref_rejected = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        else:
            ref_chosen, ref_rejected = self.compute_ref_log_probs(self.ref_model or self.model, inputs)
        chosen_rewards = self.beta * (chosen - ref_chosen)
        rejected_rewards = self.beta * (rejected - ref_rejected)
        margins = chosen_rewards - rejected_rewards
        loss = self.preference_loss(margins, inputs)

        metrics = {
            "rewards/chosen": chosen_rewards,
            "rewards/rejected": rejected_rewards,
            "rewards/margins": margins,
            "rewards/accuracies": (margins > 0).float(),
        }
        if router_loss is not None:
            loss = loss + self.router_aux_loss_coef * router_loss
            metrics["aux_loss"] = router_loss
        mode = "train" if self.model.training else "eval"
        for name, values in metrics.items():
            self._metrics[mode][name].append(self.accelerator.gather(values.detach()).mean().item())
        if not return_outputs:
            return loss
        with torch.no_grad():  # for `compute_metrics` and `predict`, which want all logits
            return loss, model(**_model_inputs(inputs))
