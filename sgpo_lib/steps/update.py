"""An update of the policy, seed DPO's or a round's: from which policy, on which rows, by which objective."""

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from accelerate import PartialState

from sgpo_lib import annotation, data, leader
from sgpo_lib.follower import make_support
from sgpo_lib.policy.model import Policy
from sgpo_lib.runs.step import Step
from sgpo_lib.runs.store import read_parquet
from sgpo_lib.steps.seed import label_budget
from sgpo_lib.steps.until_kl import UntilKL


@dataclass(frozen=True)
class Update:
    """What a step trains on.

    Attributes
    ----------
    rows : DataFrame, a row per pair, as `sgpo_lib.leader.train` takes them.
    objective : which trainer lowers which loss on them; None is weighted DPO.
    counts : what the step's record says of the rows.
    """

    rows: pd.DataFrame
    objective: leader.Objective | None
    counts: dict[str, int]


def load_policy(step: Step) -> Policy:
    """Load the policy that a `seed_dpo`, `annotation` or `leader` step starts from: the SFT model, or pi_{t-1}.

    Raises
    ------
    FileNotFoundError, ValueError : if the step before has not been made, or its policy is damaged.
    """
    with step.timed("load"):
        weights = step.inputs[0].load("policy") if step.inputs else None
        return Policy.load(step.run.params.model, weights)


def seed_update(pairs: pd.DataFrame) -> Update:
    """Return seed DPO on labelled pairs: the SFT model, which scored them, is the reference.

    Parameters
    ----------
    pairs : as `label_seed` gives them; a label's own `weight`, where the data has one, multiplies its loss.

    Raises
    ------
    ValueError : if a weight is negative or not finite, or all are 0.
    """
    rows = leader.with_references(pairs, "previous").assign(loss_weight=data.loss_weights(pairs))
    return Update(rows, None, {"n_pairs": len(pairs)})


def round_update(step: Step) -> Update:
    """Return a round's update: the round's pairs, their worst case where the mode faces one, and the mode's loss.

    Parameters
    ----------
    step : `leader` of a round, whose `annotation` (`pairs.parquet`) and `follower` (`worst_case.parquet`, and the
        radius in its record) are complete. Pairs without a preference, which no follower has seen, become rows of
        weight 0 where the objective weighs rows, and are left out elsewhere.

    Raises
    ------
    FileNotFoundError, ValueError : saying which notebook makes what is missing or damaged.
    """
    run, params = step.run, step.run.params
    pairs, worst, radius = run.step("annotation", step.round).load("pairs.parquet"), None, 0.0
    if params.leader.faces_follower:
        faced = run.step("follower", step.round)
        worst, radius = faced.load("worst_case.parquet"), faced.record()["metrics"].get("radius")
    rows = leader.training_rows(annotation.preferred(pairs), worst, params.leader)
    support = make_support(params.follower.model_dump()["support"])
    n_moved = 0 if worst is None or "moved" not in worst else int((worst["moved"] > 0).sum())
    objective = leader.objective(params.leader, radius, support)
    n_tied = len(pairs) - len(rows)
    if n_tied and objective.weighs_rows:
        tied = leader.with_references(pairs[pairs["weight"] == 0], params.leader.reference).assign(loss_weight=0.0)
        rows = _joined(rows.set_index(pairs.index[pairs["weight"] > 0]), tied)
    return Update(rows, objective, {"n_rows": len(rows), "n_moved": n_moved})


def _joined(own: pd.DataFrame, others: pd.DataFrame) -> pd.DataFrame:
    """Join rows in the order of their index; what either does not say of the loss is neutral there."""
    rows = pd.concat([own, others.filter([*own, "loss_weight"])]).sort_index()
    return rows.fillna({name: value for name, value in leader.NEUTRAL.items() if name in rows})


def with_replay(step: Step, policy: Policy, update: Update) -> Update:
    """Put pairs of the labelled seed in the place of a share `leader.replay` of a round's rows, drawn at random.

    The number of rows, and so of steps, stays. A replayed row is a plain DPO row with its label, its margin measured
    as the round's are. The follower has not seen it. So does DICE (Chen et al., ICLR 2025, arXiv 2406.09760) mix its
    rounds. Without replay the update is returned as it is.

    Parameters
    ----------
    policy : pi_{t-1}, which scores the replayed pairs where `leader.reference` is "previous".
    """
    run, params = step.run, step.run.params.leader
    if not params.replay:
        return update
    labelled = annotation.preferred(run.step("seed_dpo").load("pairs.parquet"))
    rng = np.random.default_rng([step.seed, 1])
    replaced = rng.permutation(len(update.rows))[: round(params.replay * len(update.rows))]
    n_times = -(-len(replaced) // len(labelled))
    drawn = np.concatenate([rng.permutation(len(labelled)) for _ in range(n_times)])[: len(replaced)]
    pairs = labelled.iloc[drawn].reset_index(drop=True)
    if params.reference == "previous":
        with step.timed("score"):
            pairs = annotation.rescore(policy, pairs)
    rows = leader.with_references(pairs, params.reference).assign(loss_weight=data.loss_weights(pairs))
    mixed = _joined(update.rows.drop(index=replaced), rows.set_index(replaced))
    return replace(update, rows=mixed, counts=update.counts | {"n_replayed": len(replaced)})


def train(step: Step, policy: Policy, update: Update) -> pd.DataFrame:
    """Train the policy in place; write it to `policy/` and the log to `training_log.parquet`.

    Of a finished step, the policy becomes the one that was trained, and the log is read. Several processes that train
    together all call this, and the first one writes.

    Returns
    -------
    DataFrame, a row per logged step, see `sgpo_lib.leader.train`, which also says what it raises; with
    `seed_dpo.target_kl` also `kl`, in nats, after the steps where it was estimated.

    Raises
    ------
    ValueError : if `seed_dpo.target_kl` is set and several processes train, each of which has but a part of the model.
    """
    if step.finished:
        policy.use(step.load("policy"))
        return step.load("training_log.parquet")
    params = step.run.params
    training = params.seed_dpo if step.name == "seed_dpo" else params.leader
    seed = step.seed + (0 if step.name == "seed_dpo" else params.leader.shuffle)
    logs = step.folder / "logs"  # of the trackers that `report_to` names, such as TensorBoard
    unfinished = step.draft / ".policy.trained.tmp"  # one name for all processes, as each may write its part
    until = _until_kl(step, policy) if step.name == "seed_dpo" and params.seed_dpo.target_kl else None
    with step.timed("train"):
        log = leader.train(
            policy,
            update.rows,
            training,
            params.beta,
            seed,
            update.objective,
            logs,
            save_to=unfinished,
            callbacks=[until] if until else [],
        )
    if until:
        log["kl"] = log["step"].map(until.curve)
        if log["kl"].max() < training.target_kl:
            warnings.warn(
                f"After seed_dpo.max_epochs = {training.max_epochs} the policy is {log['kl'].max():.1f} nats from the "
                f"SFT model, not seed_dpo.target_kl = {training.target_kl:g}: raise max_epochs or the learning rate, "
                "or ask for less.",
                stacklevel=2,
            )
    if PartialState().is_main_process:
        with step.replacing("policy") as folder:
            unfinished.rename(folder)
        step.save("training_log.parquet", log)
    return log


def _until_kl(step: Step, policy: Policy) -> UntilKL:
    if PartialState().num_processes > 1:
        raise ValueError("seed_dpo.target_kl needs training by one process: set it to null, or train on one device")
    params, labelled = step.run.params, read_parquet(step.draft / "prompts.parquet")
    pool = data.prepare(params.data, params.root, step.run.seed, labelled=labelled).training_pool["prompt"].tolist()
    least = params.seed_dpo.num_train_epochs
    return UntilKL(policy, pool, params.seed_dpo.target_kl, least, params.generation, step.seed)


def finish(step: Step, update: Update, log: pd.DataFrame, **more: Any) -> dict[str, Any]:
    """Write the step's record, which makes it complete, and return it; `more` joins its metrics.

    Raises
    ------
    RuntimeError : if an artefact of the step has not been written.
    """
    if step.finished:
        return step.record()
    labels = {"n_comparisons": label_budget(step)} if step.name == "seed_dpo" else {}
    return step.finish(update.counts | labels | more | leader.training_metrics(log))
