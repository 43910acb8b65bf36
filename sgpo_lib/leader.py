"""The leader's move: pairs and their worst case in, updated policy out, by TRL's DPOTrainer.

Knows how each leader mode and rival becomes rows to train on and a loss to lower; the optimisation is TRL's.
`sgpo_lib.launch` does the same on several devices.
"""

import contextlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset
from peft import PeftModel
from trl import DPOConfig, DPOTrainer

from sgpo_lib.follower import Support, sgpo_loss
from sgpo_lib.losses import dr_dpo_loss
from sgpo_lib.params import LeaderParams, TrainingParams
from sgpo_lib.policy import Policy
from sgpo_lib.spa import NoiseDetectingTrainer
from sgpo_lib.weighted_dpo import LOSS_COLUMNS, KnownReferencesTrainer, WeightedDPOTrainer


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
    return rows.assign(weight=rows["weight"] * len(rows) / rows["weight"].sum(), slope=0.0)


def training_rows(pairs: pd.DataFrame, worst: pd.DataFrame | None, leader: LeaderParams, beta: float) -> pd.DataFrame:
    """Turn a round's pairs into what the leader's mode trains on: rows of loss weight * l(xi) + slope * xi.

    | mode              | weight        | slope             | rows                                          |
    |-------------------|---------------|-------------------|-----------------------------------------------|
    | `transport`       | 1 - t_i, t_i  | 0                 | split; the second part has a lower margin     |
    | `envelope`        | 1 - t_i       | -t_i price        | the exact gradient of eq. (4), by Danskin     |
    | `pieces`          | 0             | sum_k s_ik a_k    | "weight the loss contributions by s_ik"       |
    | `weights`         | sum_k s_ik    | 0                 | Algorithm 1, line 7, as printed: DPO          |
    | `label-smoothing` | 1             | `label_smoothing` | (1 - a) l(xi) + a l(-xi) = l(xi) + a xi       |
    | all others        | 1             | 0                 | the pairs; `objective` has the loss           |

    Parameters
    ----------
    pairs : N rows, as `sgpo_lib.annotation` leaves them.
    worst : N rows with `moved`, `displacement`, `price`, `pair_weight` and, for `pieces`, `piece_slope`, as
        notebook 03 leaves them; None for a mode without follower.
    beta : the DPO temperature.

    Returns
    -------
    DataFrame with `weight`, `slope`, `ref_chosen_logps` and `ref_rejected_logps`. The mean of the rows' losses
    is the mode's objective, for `pieces` up to a constant.
    """
    pairs = with_references(pairs, leader.reference)
    if leader.mode == "transport":
        return transport_rows(pairs, worst["moved"], worst["displacement"], beta)
    pairs = pairs.reset_index(drop=True)
    if leader.mode == "envelope":
        counts = (pairs["margin"] == worst["margin"]).astype(float)  # a margin clipped to the support does not
        return pairs.assign(weight=counts * (1 - worst["moved"]), slope=-counts * worst["moved"] * worst["price"])
    if leader.mode == "pieces":
        return pairs.assign(weight=0.0, slope=worst["piece_slope"])
    if leader.mode == "weights":
        return pairs.assign(weight=worst["pair_weight"], slope=0.0)
    return pairs.assign(weight=1.0, slope=leader.label_smoothing if leader.mode == "label-smoothing" else 0.0)


@dataclass(frozen=True)
class Objective:
    """Which trainer lowers which loss.

    Attributes
    ----------
    trainer : a subclass of `trl.DPOTrainer`.
    arguments : keyword arguments of the trainer.
    config : options of `trl.DPOConfig`.
    needs_policy : whether the trainer asks for the `Policy` as well.
    """

    trainer: type[DPOTrainer] = WeightedDPOTrainer
    arguments: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    needs_policy: bool = False


def objective(leader: LeaderParams, radius: float = 0.0, support: Support | None = None) -> Objective:
    """Return what a leader's mode lowers on its `training_rows`.

    Parameters
    ----------
    radius, support : of the follower, which `sgpo` solves again in every step.
    """
    smoothing = leader.label_smoothing
    if leader.mode == "sgpo":
        return Objective(arguments={"batch_loss": partial(sgpo_loss, radius=radius, support=support)})
    if leader.mode == "dr-dpo":
        return Objective(arguments={"batch_loss": partial(dr_dpo_loss, beta=leader.dr_beta)})
    if leader.mode == "spa":
        return Objective(NoiseDetectingTrainer, {"label_smoothing": smoothing}, needs_policy=True)
    if leader.mode == "robust":
        return Objective(KnownReferencesTrainer, config={"loss_type": ["robust"], "label_smoothing": smoothing})
    if leader.mode == "ipo":
        return Objective(KnownReferencesTrainer, config={"loss_type": ["ipo"]})
    return Objective()


def train(
    policy: Policy,
    rows: pd.DataFrame,
    training: TrainingParams,
    beta: float,
    seed: int,
    objective: Objective | None = None,
    log_folder: Path | None = None,
    save_to: Path | None = None,
) -> pd.DataFrame:
    """Train the policy in place, by weighted DPO unless another objective is given.

    Parameters
    ----------
    rows : with `prompt_ids`, `chosen_ids`, `rejected_ids`, `ref_chosen_logps`, `ref_rejected_logps`, and any of
        `sgpo_lib.weighted_dpo.LOSS_COLUMNS`.
    seed : fixes the order of the rows and a fresh adapter's start.
    log_folder : where the trackers named by `training.report_to`, such as TensorBoard, write.
    save_to : folder for the trained policy. Needed where FSDP or DeepSpeed has cut it into pieces; elsewhere
        `Policy.save` does the same.

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
    drop_trl_reference(policy)
    objective = objective or Objective()
    columns = ["prompt_ids", "chosen_ids", "rejected_ids", "ref_chosen_logps", "ref_rejected_logps"]
    if issubclass(objective.trainer, WeightedDPOTrainer):
        columns += [name for name in LOSS_COLUMNS if name in rows]
    arguments = objective.arguments | ({"policy": policy} if objective.needs_policy else {})
    options = training.model_dump(include=set(TrainingParams.model_fields)) | objective.config
    with (
        tempfile.TemporaryDirectory() as scratch,
        warnings.catch_warnings(),
        plain_attention_on_cpu(policy),
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
            logging_first_step=True,  # or a training of fewer steps than `logging_steps` leaves no log
            dataloader_pin_memory=policy.device.type == "cuda",
            **options,
        )
        config._n_gpu = min(config.n_gpu, 1)  # several need a process each (`sgpo_lib.launch`), or the batch would grow
        trainer = objective.trainer(
            model=policy.model,
            args=config,
            train_dataset=Dataset.from_pandas(rows[columns], preserve_index=False),
            processing_class=policy.tokenizer,
            **arguments,
        )
        trainer.train()
        # Or the policy would go on computing under the trainer's autocast, unlike the one that is saved.
        trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
        if save_to is not None:
            _save(trainer, policy, save_to)
    drop_trl_reference(policy)
    policy.model.eval()
    log = pd.DataFrame([entry for entry in trainer.state.log_history if "loss" in entry])
    return log.drop(columns=[name for name in log if name.startswith("total")])


def _save(trainer: DPOTrainer, policy: Policy, folder: Path) -> None:
    """Write the policy from the process that has it all; every process has to call this."""
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        trainer.save_model(str(folder))
        if trainer.accelerator.is_main_process:
            shutil.rmtree(folder / "ref", ignore_errors=True)  # TRL's copy of the adapter
    elif trainer.accelerator.is_main_process:
        drop_trl_reference(policy)
        policy.save(folder)
    trainer.accelerator.wait_for_everyone()


def drop_trl_reference(policy: Policy) -> None:
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
def plain_attention_on_cpu(policy: Policy) -> Iterator[None]:
    """On CPUs the backward pass of fused attention makes a step of short sequences a quarter slower."""
    model = policy.model.get_base_model() if isinstance(policy.model, PeftModel) else policy.model
    fused = model.config._attn_implementation
    if policy.device.type == "cpu":
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(fused)
