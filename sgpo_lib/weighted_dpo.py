"""TRL's DPOTrainer for preference data with weights, and for data whose log-probabilities are known.

Usable on its own with any preference dataset: it knows nothing of rounds, followers or runs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import add_fused_lm_head

from sgpo_lib.losses import weighted_logistic


class KnownReferencesTrainer(DPOTrainer):
    """TRL's DPOTrainer, taking what a dataset already knows instead of computing it again.

    Columns used where the dataset has them: reference log-probabilities (`ref_chosen_logps`,
    `ref_rejected_logps`, in nats) and token ids (`prompt_ids`, `chosen_ids`, `rejected_ids`).
    """

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        if {"prompt_ids", "chosen_ids", "rejected_ids"} <= set(dataset.column_names):
            return dataset
        return super()._prepare_dataset(dataset, processing_class, args, dataset_name)

    def _precompute_ref_logps(self, dataset, name, batch_size):
        if {"ref_chosen_logps", "ref_rejected_logps"} <= set(dataset.column_names):
            return dataset
        return super()._precompute_ref_logps(dataset, name, batch_size)


_WEIGHTS = {"weight": 1.0, "slope": 0.0}


@dataclass
class _WeightCollator(DataCollatorForPreference):
    """Passes the rows' weights and slopes on beside TRL's own batch."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        for column, default in _WEIGHTS.items():
            batch[column] = torch.tensor([float(example.get(column, default)) for example in examples])
        return batch


_LOSS_OPTIONS = {
    "loss_type": ["sigmoid"],
    "f_divergence_type": "reverse_kl",
    "ld_alpha": None,
    "label_smoothing": 0.0,
    "use_weighting": False,
}


class WeightedDPOTrainer(KnownReferencesTrainer):
    """TRL's DPOTrainer for preference datasets with a `weight` column: the loss is mean(weight * loss).

    A column `slope` adds slope * margin to a row's loss. Supports the sigmoid loss.
    """

    def __init__(self, *args: Any, batch_loss: Callable[[torch.Tensor], torch.Tensor] | None = None, **kwargs: Any):
        """Take what `trl.DPOTrainer` takes.

        Parameters
        ----------
        batch_loss : optional
            Maps a batch of margins, shape (B,), to a scalar that replaces the weighted loss. B is the number of
            rows on one device at one time: gradient accumulation and further devices average over batches.

        Raises
        ------
        ValueError : if the config asks for what the loss here would silently ignore.
        """
        config = next((value for value in (*args, *kwargs.values()) if isinstance(value, DPOConfig)), None)
        for option, value in _LOSS_OPTIONS.items():
            asked = getattr(config, option, value)
            if asked != value:
                raise ValueError(
                    f"WeightedDPOTrainer has TRL's sigmoid loss only: {option} must be {value}, not {asked}."
                )
        super().__init__(*args, **kwargs)
        self._batch_loss = batch_loss
        # TRL also has its head compute entropy and other metrics of every token; the loss needs none of them.
        add_fused_lm_head(self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model)
        collator = self.data_collator
        self.data_collator = _WeightCollator(
            collator.pad_token_id, collator.max_length, collator.truncation_mode, collator.pad_to_multiple_of
        )

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        missing = [column for column in _WEIGHTS if column not in self._signature_columns]
        self._signature_columns = [*self._signature_columns, *missing]

    def preference_loss(self, margins: torch.Tensor, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        """Return the loss of a batch, a scalar, given its margins, shape (B,)."""
        if self._batch_loss is not None:
            return self._batch_loss(margins)
        return weighted_logistic(margins, inputs["weight"], inputs["slope"])

    def _log_probs(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        """Return log pi(y|x) of the chosen and then the rejected completions, in nats, shape (2 B,)."""
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        batch = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "use_cache": False}
        if labels.device.type != "cpu":
            # TRL's fused head, through the wrapped model so that FSDP and DeepSpeed see it, never holds all logits.
            return model(**batch, labels=labels, fused_lm_head=True).log_probs.sum(dim=1)
        # Without its GPU kernel the fused head takes more than half of a step; a CPU has room for the logits.
        first = int((labels != -100).int().argmax(dim=1).min())
        logits = model(**batch, logits_to_keep=labels.shape[1] - first + 1).logits[:, :-1]
        targets = labels[:, first:]
        losses = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
        return -losses.view(targets.shape).sum(dim=1)

    def _compute_loss(self, model, inputs, return_outputs):
        chosen, rejected = self._log_probs(model, inputs).chunk(2)
        if "ref_chosen_logps" in inputs:
            ref_chosen, ref_rejected = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        else:
            reference_inputs = {key: value for key, value in inputs.items() if key not in _WEIGHTS}
            ref_chosen, ref_rejected = self.compute_ref_log_probs(self.ref_model or self.model, reference_inputs)
        chosen_rewards = self.beta * (chosen - ref_chosen)
        rejected_rewards = self.beta * (rejected - ref_rejected)
        margins = chosen_rewards - rejected_rewards
        loss = self.preference_loss(margins, model, inputs)

        mode = "train" if self.model.training else "eval"
        for name, values in {
            "rewards/chosen": chosen_rewards,
            "rewards/rejected": rejected_rewards,
            "rewards/margins": margins,
            "rewards/accuracies": (margins > 0).float(),
        }.items():
            self._metrics[mode][name].append(self.accelerator.gather(values.detach()).mean().item())
        return (loss, {}) if return_outputs else loss
