r"""The steps that train, on several devices: what notebooks 01 and 04 do, without their pictures, run by accelerate.

    accelerate launch --config_file params/accelerate/fsdp.yaml \
        -m sgpo_lib.steps.launch params/mistral-7b.yaml --round 1

Every process reads the same pairs and trains on its share of each batch; the first one writes. The step that is
left behind is the notebook's: whatever comes next cannot tell them apart.
"""

import argparse
import json
from collections.abc import Callable
from datetime import timedelta
from functools import partial

import pandas as pd
from accelerate import PartialState
from torch import distributed

from sgpo_lib import annotation, data, leader
from sgpo_lib.follower import make_support
from sgpo_lib.params.training import TrainingParams
from sgpo_lib.policy.model import Policy
from sgpo_lib.policy.scoring import embed
from sgpo_lib.runs.step import Run, Step

_LONGEST_SEED = timedelta(hours=12)


def make_seed(step: Step) -> None:
    """Choose and label the seed as notebook 01 does, on one process."""
    params = step.run.params
    policy = Policy.load(params.model)
    room = params.generation.max_prompt_length
    splits = data.prepare(params.data, params.root, step.run.seed, partial(_embed, policy, room))
    parts = {"seed": splits.seed, "calibration": splits.calibration}
    step.save("prompts.parquet", splits.labelled)
    of_parts = {"seed": ("pairs", 0, None), "calibration": ("calibration", 1, annotation.N_SAMPLES)}
    for part, (name, offset, n_samples) in of_parts.items():
        if len(parts[part]):
            pairs = annotation.labelled(policy, parts[part], params, step.seed + offset, step.shards, n_samples)
            if params.data.label_noise or part == "calibration":
                pairs = data.flip_labels(pairs, params.data.label_noise, step.seed + offset)
            step.save(f"{name}.parquet", pairs)


def _embed(policy: Policy, max_length: int, prompts: list):
    return embed(policy, prompts, max_length)


def by_the_first(state: PartialState, make: Callable[[], None]) -> None:
    """Call `make` on the first process while the others wait for it, for `_LONGEST_SEED` at most.

    They wait in a group of their own: in the group that trains, a process that hangs is to be found in minutes.
    """
    if not state.use_distributed:
        return make()
    waiting = distributed.new_group(timeout=_LONGEST_SEED, backend="gloo")
    if state.is_main_process:
        make()
    distributed.barrier(waiting)
    distributed.destroy_process_group(waiting)


def make_step(run: Run, round: int | None) -> None:
    """Make seed DPO (`round` None) or a round's update, together with the other processes."""
    state = PartialState()
    step = run.step("seed_dpo") if round is None else run.step("leader", round)
    if state.is_main_process:
        step.begin()
    state.wait_for_everyone()
    if round is None:
        by_the_first(state, partial(make_seed, step))

    training: TrainingParams = run.params.seed_dpo if round is None else run.params.leader
    objective = None
    if round is None:
        policy = Policy.load(run.params.model)
        pairs = pd.read_parquet(step.folder / "pairs.parquet")
        rows = leader.with_references(pairs, "previous").assign(loss_weight=data.loss_weights(pairs))
    else:
        policy = Policy.load(run.params.model, step.inputs[0].load("policy"))
        pairs, worst, radius = run.step("annotation", round).load("pairs.parquet"), None, 0.0
        if run.params.leader.faces_follower:
            worst = run.step("follower", round).load("worst_case.parquet")
            radius = run.step("follower", round).record()["metrics"]["radius"]
        rows = leader.training_rows(pairs, worst, run.params.leader)
        support = make_support(run.params.follower.model_dump()["support"])
        objective = leader.objective(run.params.leader, radius, support)

    unfinished = step.folder / ".policy.launched.tmp"
    log = leader.train(policy, rows, training, run.params.beta, step.seed, objective, step.folder / "logs", unfinished)
    if state.is_main_process:
        with step.replacing("policy") as folder:
            unfinished.rename(folder)
        step.save("training_log.parquet", log)
        step.finish({"n_rows": len(rows), "n_processes": state.num_processes} | leader.training_metrics(log))
    state.wait_for_everyone()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("params_file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--method", default="ssapo")
    parser.add_argument("--overrides", type=json.loads, default={}, help="JSON of dotted keys")
    parser.add_argument("--round", type=int, help="1, 2, ...; without it, seed DPO")
    asked = parser.parse_args()
    make_step(Run.open(asked.params_file, asked.seed, asked.method, asked.overrides), asked.round)
