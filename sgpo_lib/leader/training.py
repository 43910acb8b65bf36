"""The leader's move: pairs and their worst case in, updated policy out, by TRL's DPOTrainer.

Knows how rows are trained on; what each mode makes of pairs is in `modes`, and the optimisation is TRL's.
"""

import contextlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from datasets import Dataset
from peft import PeftModel
from peft.helpers import disable_input_dtype_casting
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer

from sgpo_lib.leader import block_attention
from sgpo_lib.leader.fused_lora import fused_lora
from sgpo_lib.leader.modes import Objective
from sgpo_lib.leader.trainer import LOSS_COLUMNS, WeightedDPOTrainer

if TYPE_CHECKING:  # the room below knows no params files and does not load policies
    from sgpo_lib.params import TrainingParams
    from sgpo_lib.policy import Policy


_NEEDED = ["prompt_ids", "chosen_ids", "rejected_ids", "ref_chosen_logps", "ref_rejected_logps"]
_SHORT_TRAINING = 50  # steps; in a longer one a first step without effect costs nothing that matters


def train(
    policy: "Policy",
    rows: pd.DataFrame,
    training: "TrainingParams",
    beta: float,
    seed: int,
    objective: Objective | None = None,
    log_folder: Path | None = None,
    save_to: Path | None = None,
    eval_rows: pd.DataFrame | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> pd.DataFrame:
    """Train the policy in place, by weighted DPO unless another objective is given.

    Parameters
    ----------
    rows : with `prompt_ids`, `chosen_ids`, `rejected_ids`, `ref_chosen_logps`, `ref_rejected_logps`, and any of
        `sgpo_lib.leader.trainer.LOSS_COLUMNS`.
    seed : fixes the order of the rows and a fresh adapter's start.
    log_folder : where the trackers named by `training.report_to`, such as TensorBoard, write.
    save_to : folder for the trained policy. Needed where FSDP or DeepSpeed has cut it into pieces; elsewhere
        `Policy.save` does the same.
    eval_rows : held-out rows, of the same columns, whose loss is taken after every epoch.
    callbacks : of the transformers kind, told of every step.

    Returns
    -------
    DataFrame, a row per logged step: `step`, `epoch`, `loss`, `learning_rate` (of that step), `rewards/margins`,
    `rewards/accuracies`, ... and, with held-out rows, `eval_loss` and its like after each epoch.
    `attrs["n_steps"]` counts the optimiser's steps and `attrs["lr_sum"]` adds up their learning rates: two methods
    are comparable where these agree.

    Raises
    ------
    ValueError : if a row is longer than `training.max_length`, or a loss column is not a number to train with.
    """
    _check_lengths(rows, training.max_length)
    policy.make_trainable(seed)
    drop_trl_reference(policy)
    objective = objective or Objective()
    kind = objective.trainer or WeightedDPOTrainer
    columns = _NEEDED + [name for name in LOSS_COLUMNS if name in rows and issubclass(kind, WeightedDPOTrainer)]
    learning_rates = _LearningRates()
    options = training.options() | objective.config
    with (
        tempfile.TemporaryDirectory() as scratch,
        warnings.catch_warnings(),
        fast_on_cpu(policy),
        # Under autocast products choose their type; PEFT would widen every input to the adapter's before, for nothing.
        disable_input_dtype_casting(policy.model, active=policy.computes_in_bfloat16),
        _trackers_writing_to(log_folder),
    ):
        warnings.simplefilter("ignore", FutureWarning)  # arguments that transformers is about to rename
        config = DPOConfig(
            output_dir=scratch,
            beta=beta,
            seed=seed,
            bf16=policy.computes_in_bfloat16,
            use_cpu=policy.device.type == "cpu",
            save_strategy="no",
            eval_strategy="no" if eval_rows is None else "epoch",
            logging_first_step=True,  # or a training of fewer steps than `logging_steps` leaves no log
            dataloader_pin_memory=policy.device.type == "cuda",
            **options,
        )
        config._n_gpu = min(
            config.n_gpu, 1
        )  # several need a process each (`sgpo_lib.steps.launch`), or the batch would grow
        trainer = kind(
            model=policy.model,
            args=config,
            train_dataset=Dataset.from_pandas(rows[columns], preserve_index=False),
            eval_dataset=None if eval_rows is None else Dataset.from_pandas(eval_rows[columns], preserve_index=False),
            processing_class=policy.tokenizer,
            callbacks=[learning_rates, *callbacks],
            **objective.arguments,
        )
        trainer.train()
        # Or the policy would go on computing under the trainer's autocast, unlike the one that is saved.
        trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
        if save_to is not None:
            _save(trainer, policy, save_to)
    drop_trl_reference(policy)
    policy.model.eval()
    return _log(trainer.state.log_history, learning_rates.of_steps)


def training_metrics(log: pd.DataFrame) -> dict[str, float]:
    """Return what a step's record says of its training, from the log that `train` returns."""
    kl = {"kl_last": float(log["kl"].dropna().iloc[-1])} if "kl" in log else {}
    return kl | {
        "n_steps": log.attrs["n_steps"],
        "lr_sum": log.attrs["lr_sum"],
        "loss_first": float(log["loss"].iloc[0]),
        "loss_last": float(log["loss"].iloc[-1]),
        "margin_last": float(log["rewards/margins"].iloc[-1]),
    }


class _LearningRates(TrainerCallback):
    """Notes the learning rate of every step of the optimiser, of which the log has one in `logging_steps`."""

    def __init__(self):
        self.of_steps: list[float] = []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.of_steps.append(float(optimizer.param_groups[0]["lr"]))


def _log(history: list[dict], learning_rates: list[float]) -> pd.DataFrame:
    log = pd.DataFrame([entry for entry in history if "loss" in entry])
    log = log.drop(columns=[name for name in log if name.startswith("total")])
    held_out = pd.DataFrame([entry for entry in history if "eval_loss" in entry])
    if len(held_out):
        held_out = held_out[["step", *(name for name in held_out if name.startswith("eval_"))]]
        log = log.merge(held_out, on="step", how="left")
    log.attrs |= {"n_steps": len(learning_rates), "lr_sum": sum(learning_rates)}
    if learning_rates[0] == 0 and len(learning_rates) < _SHORT_TRAINING:
        warnings.warn(
            f"The first of {len(learning_rates)} steps trained nothing: a warm-up begins with a learning rate of 0. "
            "Set warmup_steps to 0 for so short a training.",
            stacklevel=3,
        )
    return log


def _check_lengths(rows: pd.DataFrame, max_length: int) -> None:
    lengths = rows["prompt_ids"].str.len() + rows[["chosen_ids", "rejected_ids"]].map(len).max(axis=1)
    if (lengths > max_length).any():
        raise ValueError(
            f"{(lengths > max_length).sum()} of {len(rows)} rows are longer than max_length={max_length} tokens (the "
            f"longest has {lengths.max()}), but their reference log-probabilities are of the whole answer: raise "
            "max_length, or shorten prompts or answers."
        )


def _save(trainer: DPOTrainer, policy: "Policy", folder: Path) -> None:
    """Write the policy from the process that has it all; every process has to call this."""
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        trainer.save_model(str(folder))
        if trainer.accelerator.is_main_process:
            shutil.rmtree(folder / "ref", ignore_errors=True)  # TRL's copy of the adapter
    elif trainer.accelerator.is_main_process:
        drop_trl_reference(policy)
        policy.save(folder)
    trainer.accelerator.wait_for_everyone()


def drop_trl_reference(policy: "Policy") -> None:
    """TRL keeps a copy of the adapter as a reference, also where reference log-probabilities are known."""
    if isinstance(policy.model, PeftModel) and "ref" in policy.model.peft_config:
        policy.model.delete_adapter("ref")


@contextlib.contextmanager
def _trackers_writing_to(folder: Path | None) -> Iterator[None]:
    """Transformers takes TensorBoard's folder from the environment only."""
    variable = "TENSORBOARD_LOGGING_DIR"
    before = os.environ.get(variable)
    if folder is not None:
        os.environ[variable] = str(folder)
    try:
        yield
    finally:
        if folder is not None:
            os.environ.pop(variable)
            if before is not None:
                os.environ[variable] = before


@contextlib.contextmanager
def fast_on_cpu(policy: "Policy") -> Iterator[None]:
    """For the length of a block, compute attention and adapters in ways that are faster to train on CPUs."""
    model = policy.model.get_base_model() if isinstance(policy.model, PeftModel) else policy.model
    before = model.config._attn_implementation
    if policy.device.type == "cpu":
        model.set_attn_implementation(block_attention.NAME if block_attention.supports_blocks(model) else "eager")
    try:
        with fused_lora(policy.model):
            yield
    finally:
        model.set_attn_implementation(before)
