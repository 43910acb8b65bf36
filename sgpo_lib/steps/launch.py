r"""The steps that train, on several devices: what notebooks 01 and 04 do, without their pictures, run by accelerate.

    accelerate launch --config_file params/accelerate/fsdp.yaml \
        -m sgpo_lib.steps.launch params/mistral-7b.yaml --round 1

Every process reads the same pairs and trains on its share of each batch; the first one writes. The step that is
left behind is the notebook's: whatever comes next cannot tell them apart.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import distributed

from sgpo_lib import steps
from sgpo_lib.runs.step import Run, Step
from sgpo_lib.runs.store import read_parquet

_LONGEST_SEED = timedelta(hours=12)


def make_seed(step: Step) -> None:
    """Choose and label the seed and the calibration pairs, on one process."""
    policy = steps.load_policy(step)
    splits = steps.choose_prompts(step, policy)
    steps.label_seed(step, policy, splits)
    if step.run.params.data.n_calibration:
        steps.label_calibration(step, policy, splits)


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
    step = replace(step, writer=broadcast_object_list([step.writer])[0])  # one draft for all
    if state.is_main_process:
        step.begin()
    state.wait_for_everyone()
    if round is None:
        by_the_first(state, partial(make_seed, step))
        update = steps.seed_update(read_parquet(step.draft / "pairs.parquet"))
    else:
        update = steps.round_update(step)
    policy = steps.load_policy(step)
    if round is not None:
        update = steps.with_replay(step, policy, update)
    log = steps.train(step, policy, update)
    if state.is_main_process:
        steps.finish(step, update, log, n_processes=state.num_processes)
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
