"""The leader's move: pairs and their worst case in, updated policy out, by TRL's DPOTrainer.

Knows how a worst-case distribution becomes rows to train on; the optimisation is TRL's.
"""

import contextlib
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import PeftModel
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import add_fused_lm_head

from sgpo_lib.params import TrainingParams
from sgpo_lib.policy import Policy


def with_references(pairs: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Add TRL's `ref_chosen_logps` and `ref_rejected_logps` (nats) from what annotation already knows.

    Parameters
    ----------
    reference : "previous": the policy that answered, pi_{t-1}, so every margin restarts at 0;
        "initial": the SFT model, so every margin starts where the follower found it.
    """
    known = {"previous": "log_prob", "initial": "reference_log_prob"}[reference]
    return pairs.assign(ref_chosen_logps=pairs[f"chosen_{known}"], ref_rejected_logps=pairs[f"rejected_{known}"])


def transport_rows(pairs: pd.DataFrame, moved: np.ndarray, displacement: np.ndarray, beta: float) -> pd.DataFrame:
    """Turn a worst-case distribution into weighted rows for DPO.

    Row i of the centre splits into a part 1 - t_i that stays and a part t_i whose margin is d_i lower
    throughout training. A lower margin is a larger reference log-ratio,

        beta * (Delta - Delta_ref) - d = beta * (Delta - (Delta_ref + d / beta)),

    so no loss function needs to know about it.

    Parameters
    ----------
    pairs : N rows with `ref_chosen_logps`.
    moved, displacement : t_i and d_i (margin units), each of shape (N,).
    beta : the DPO temperature.

    Returns
    -------
    N to 2 N rows with `weight`, of mean 1: the mean of weight * loss over the rows is E_{alpha*}[loss].
    """
    moved, displacement = np.asarray(moved, float), np.asarray(displacement, float)
    stays = pairs.assign(weight=1 - moved)
    shifted = pairs.assign(weight=moved, ref_chosen_logps=pairs["ref_chosen_logps"] + displacement / beta)
    rows = pd.concat([stays, shifted])
    rows = rows[rows["weight"] > 0].sort_index(kind="stable").reset_index(drop=True)
    return rows.assign(weight=rows["weight"] * len(rows) / rows["weight"].sum())


@dataclass
class _WeightCollator(DataCollatorForPreference):
    """Passes the rows' weights on beside TRL's own batch."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        batch["weight"] = torch.tensor([example.get("weight", 1.0) for example in examples])
        return batch


_LOSS_OPTIONS = {
    "loss_type": ["sigmoid"],
    "f_divergence_type": "reverse_kl",
    "ld_alpha": None,
    "label_smoothing": 0.0,
    "use_weighting": False,
}


class WeightedDPOTrainer(DPOTrainer):
    """TRL's DPOTrainer for preference datasets with a `weight` column: the loss is mean(weight * loss).

    Two more columns are used where the dataset has them: reference log-probabilities (`ref_chosen_logps`,
    `ref_rejected_logps`), which are then not computed, and token ids (`prompt_ids`, `chosen_ids`,
    `rejected_ids`), which are then not made from text again. Supports the sigmoid loss.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        """Take what `trl.DPOTrainer` takes.

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
        # TRL also has its head compute entropy and other metrics of every token; the loss needs none of them.
        add_fused_lm_head(self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model)
        collator = self.data_collator
        self.data_collator = _WeightCollator(
            collator.pad_token_id, collator.max_length, collator.truncation_mode, collator.pad_to_multiple_of
        )

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        if {"prompt_ids", "chosen_ids", "rejected_ids"} <= set(dataset.column_names):
            return dataset
        return super()._prepare_dataset(dataset, processing_class, args, dataset_name)

    def _precompute_ref_logps(self, dataset, name, batch_size):
        if {"ref_chosen_logps", "ref_rejected_logps"} <= set(dataset.column_names):
            return dataset
        return super()._precompute_ref_logps(dataset, name, batch_size)

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        if "weight" not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, "weight"]

    def _compute_loss(self, model, inputs, return_outputs):
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        batch = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
        # TRL's fused head: per-token log-probabilities through the wrapped model, so FSDP and DeepSpeed see it.
        log_probs = model(**batch, labels=labels, fused_lm_head=True, use_cache=False).log_probs.sum(dim=1)
        chosen, rejected = log_probs.chunk(2)
        if "ref_chosen_logps" in inputs:
            ref_chosen, ref_rejected = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        else:
            reference_inputs = {key: value for key, value in inputs.items() if key != "weight"}
            ref_chosen, ref_rejected = self.compute_ref_log_probs(self.ref_model or self.model, reference_inputs)
        chosen_rewards, rejected_rewards = (
            self.beta * (chosen - ref_chosen),
            self.beta * (rejected - ref_rejected),
        )
        margins = chosen_rewards - rejected_rewards
        loss = (inputs["weight"] * -F.logsigmoid(margins)).mean()

        mode = "train" if self.model.training else "eval"
        for name, values in {
            "rewards/chosen": chosen_rewards,
            "rewards/rejected": rejected_rewards,
            "rewards/margins": margins,
            "rewards/accuracies": (margins > 0).float(),
        }.items():
            self._metrics[mode][name].append(self.accelerator.gather(values.detach()).mean().item())
        return (loss, {}) if return_outputs else loss


def train(policy: Policy, rows: pd.DataFrame, training: TrainingParams, beta: float, seed: int) -> pd.DataFrame:
    """Train the policy in place by weighted DPO.

    Parameters
    ----------
    rows : with `prompt_ids`, `chosen_ids`, `rejected_ids`, `ref_chosen_logps`, `ref_rejected_logps` and
        `weight`.
    seed : fixes the order of the rows and a fresh adapter's start.

    Returns
    -------
    DataFrame, a row per logged step: `step`, `epoch`, `loss`, `rewards/margins`, `rewards/accuracies`, ...
    """
    lengths = rows["prompt_ids"].str.len() + rows[["chosen_ids", "rejected_ids"]].map(len).max(axis=1)
    if (lengths > training.max_length).any():
        raise ValueError(
            f"{(lengths > training.max_length).sum()} of {len(rows)} rows are longer than max_length="
            f"{training.max_length} tokens (the longest has {lengths.max()}), but their reference log-probabilities "
            "are of the whole answer: raise max_length, or shorten prompts or answers."
        )
    policy.make_trainable(seed)
    _drop_trl_reference(policy)
    columns = ["prompt_ids", "chosen_ids", "rejected_ids", "ref_chosen_logps", "ref_rejected_logps", "weight"]
    options = training.model_dump(include=set(TrainingParams.model_fields))
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings(), _plain_attention_on_cpu(policy):
        warnings.simplefilter("ignore", FutureWarning)  # arguments that transformers is about to rename
        config = DPOConfig(
            output_dir=scratch,
            beta=beta,
            seed=seed,
            bf16=policy.computes_in_bfloat16,
            use_cpu=policy.device.type == "cpu",
            save_strategy="no",
            precompute_ref_log_probs=policy.params.lora is None,  # they are known; TRL would load a second model
            dataloader_pin_memory=policy.device.type == "cuda",
            **options,
        )
        trainer = WeightedDPOTrainer(
            model=policy.model,
            args=config,
            train_dataset=Dataset.from_pandas(rows[columns], preserve_index=False),
            processing_class=policy.tokenizer,
        )
        trainer.train()
    _drop_trl_reference(policy)
    policy.model.eval()
    log = pd.DataFrame([entry for entry in trainer.state.log_history if "loss" in entry])
    return log.drop(columns=[name for name in log if name.startswith("total")])


def _drop_trl_reference(policy: Policy) -> None:
    """TRL keeps a copy of the adapter as a reference, also where reference log-probabilities are known."""
    if isinstance(policy.model, PeftModel) and "ref" in policy.model.peft_config:
        policy.model.delete_adapter("ref")


@contextlib.contextmanager
def _plain_attention_on_cpu(policy: Policy) -> Iterator[None]:
    """On CPUs the backward pass of fused attention makes a step of short sequences a quarter slower."""
    model = policy.model.get_base_model() if isinstance(policy.model, PeftModel) else policy.model
    fused = model.config._attn_implementation
    if policy.device.type == "cpu":
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(fused)
