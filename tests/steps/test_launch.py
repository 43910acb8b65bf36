"""Training on several processes: the same losses and the same policy as on one."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from processes import on_processes
from safetensors.numpy import load_file

from sgpo_lib.runs import Run

REPOSITORY = Path(__file__).parents[2]
CONFIGS = sorted((REPOSITORY / "params" / "accelerate").glob("*.yaml"))


TRAIN = """
import sys
import numpy as np, pandas as pd, torch
from sgpo_lib import annotation, follower, leader
from sgpo_lib.params import LeaderParams, LoraParams, ModelParams
from sgpo_lib.policy import Policy

model, n, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
lora = LoraParams(r=4, lora_alpha=8)
policy = Policy.load(ModelParams(name_or_path=model, dtype="float32", device="cpu", lora=lora))
rng = np.random.default_rng(3)
ids = [[rng.integers(2, 500, length).tolist() for _ in range(8)] for length in (12, 6, 4)]
pairs = annotation.rescore(policy, pd.DataFrame(dict(zip(["prompt_ids", "chosen_ids", "rejected_ids"], ids))))
for side in ("chosen", "rejected"):
    pairs[f"{side}_reference_log_prob"] = pairs[f"{side}_log_prob"] + rng.normal(0, 10, 8)
margins = rng.normal(0.3, 1, 8)
worst = pd.DataFrame(follower.worst_case(margins, 0.4).per_pair())
options = {"learning_rate": 1e-3, "num_train_epochs": 3, "max_length": 128, "warmup_steps": 0}
made = {}
for mode in ("transport", "envelope"):
    params = LeaderParams(**options, reference="initial", mode=mode)
    rows = leader.training_rows(pairs.assign(margin=margins), worst, params)
    rows = pd.concat([rows, rows.tail(len(rows) % 2)])
    # All rows in one step, as their order may differ, and as many for each process.
    params = params.model_copy(update={"per_device_train_batch_size": len(rows) // n})
    log = leader.train(policy, rows, params, 0.1, 0, save_to=None)
    weights = [w.detach().flatten() for name, w in policy.model.named_parameters() if ".default." in name]
    made |= {f"{mode} loss": log["loss"], f"{mode} weights": torch.cat(weights).numpy()}
if int(__import__("os").environ.get("RANK", 0)) == 0:
    np.savez(out, **made)
"""


def test_two_processes_train_as_one_with_weights_and_worst_case(tiny_model, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(TRAIN)
    made = []
    for n in (1, 2):
        out = tmp_path / f"{n}.npz"
        on_processes(n, str(script), str(tiny_model), str(n), str(out), cwd=tmp_path)
        made.append(np.load(out))
    alone, together = made
    assert len(together["transport loss"]) == 3
    for name in alone:
        np.testing.assert_allclose(together[name], alone[name], atol=1e-4, err_msg=name)


# Accelerate shards on accelerators only, though torch can on CPUs: it is told that these are some.
SHARDED = """
import accelerate.state
from accelerate.utils import DistributedType

State = accelerate.state.PartialState
begin = State.__init__

def begin_as_gpus(self, *args, **kwargs):
    begin(self, *args, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU

State.__init__ = begin_as_gpus
"""

LAUNCH_SHARDED = (
    SHARDED
    + """
import runpy
from trl.trainer import dpo_trainer

def load(*_, **__):
    raise AssertionError("loads a reference model")

dpo_trainer.create_model_from_path = load
runpy.run_module("sgpo_lib.steps.launch", run_name="__main__", alter_sys=True)
"""
)


def sharded_variables() -> dict[str, str]:
    """Return what `accelerate launch` makes of params/accelerate/fsdp.yaml, but for its precision."""
    config = yaml.safe_load((REPOSITORY / "params" / "accelerate" / "fsdp.yaml").read_text())
    return {"ACCELERATE_USE_FSDP": "true"} | {key.upper(): str(value) for key, value in config["fsdp_config"].items()}


def test_all_weights_sharded_over_two_processes_are_trained_and_saved_as_by_one(tiny_params_file, tmp_path):
    script = tmp_path / "launch_sharded.py"
    script.write_text(LAUNCH_SHARDED)
    made = {}
    for n, start, variables in ((1, ["-m", "sgpo_lib.steps.launch"], {}), (2, [str(script)], sharded_variables())):
        params_file = tiny_params_file.with_name(f"on{n}.yaml")
        params_file.write_text(tiny_params_file.read_text())
        overrides = {"model.lora": None, "data.n_seed": 8, "seed_dpo.per_device_train_batch_size": 8 // n}
        on_processes(n, *start, str(params_file), "--overrides", json.dumps(overrides), cwd=tmp_path, **variables)
        made[n] = Run.open(params_file, overrides=overrides).step("seed_dpo")
    alone, together = (step.load("training_log.parquet") for step in made.values())
    for column in ("loss", "grad_norm", "rewards/margins"):
        np.testing.assert_allclose(together[column], alone[column], rtol=2e-3, atol=1e-4, err_msg=column)
    alone, together = (load_file(step.load("policy") / "model.safetensors") for step in made.values())
    before = load_file(Path(made[1].run.params.model.name_or_path) / "model.safetensors")
    assert set(alone) == set(together)
    for name, weight in alone.items():
        # AdamW moves each weight by about its gradient's sign, which for the least ones is decided by rounding.
        assert np.quantile(np.abs(together[name] - weight), 0.8) < 0.1 * np.abs(weight - before[name]).max(), name


SCORE_SHARDED = (
    SHARDED
    + """
import copy, os, sys
import numpy as np, torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig
from trl.trainer.utils import add_fused_lm_head
from sgpo_lib.leader import WeightedDPOTrainer

rng = np.random.default_rng(0)
ids = {"prompt_ids": 10, "chosen_ids": 200, "rejected_ids": 150}
rows = [{name: rng.integers(2, 500, length).tolist() for name, length in ids.items()} for _ in range(4)]
rows = [row | {"ref_chosen_logps": 0.0, "ref_rejected_logps": 0.0} for row in rows]
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
rounded = copy.deepcopy(model)
for weight in rounded.parameters():
    weight.data = weight.data.bfloat16()
add_fused_lm_head(rounded)

class Comparing(WeightedDPOTrainer):
    def _log_probs(self, model, inputs):
        log_probs, _ = super()._log_probs(model, inputs)
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        batch = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "labels": labels}
        with torch.no_grad():
            unsharded = rounded(**batch, fused_lm_head=True).log_probs
        np.savez(sys.argv[2] + os.environ["RANK"], sharded=log_probs.detach(), unsharded=unsharded.double().sum(1))
        return log_probs, None

config = DPOConfig(sys.argv[2], use_cpu=True, bf16=True, max_steps=1, per_device_train_batch_size=2, report_to="none",
                   gradient_checkpointing=False, save_strategy="no")
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
trainer = Comparing(model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
trainer._uses_fused_head = True
trainer.train()
assert type(trainer.model_wrapped).__name__.startswith("FSDP"), type(trainer.model_wrapped)
"""
)


def test_sharding_does_not_round_the_log_probabilities_of_long_answers(tiny_model, tmp_path):
    script = tmp_path / "score_sharded.py"
    script.write_text(SCORE_SHARDED)
    on_processes(2, str(script), str(tiny_model), str(tmp_path / "rank"), cwd=tmp_path, **sharded_variables())
    for rank in range(2):
        made = np.load(tmp_path / f"rank{rank}.npz")
        print(made["sharded"], made["unsharded"])
        assert np.abs(made["unsharded"]).min() > 512  # where neighbours in bfloat16 are 4 apart
        np.testing.assert_allclose(made["sharded"], made["unsharded"], atol=0.05)


WAIT_LONGER_THAN_TRAINING_MAY = """
import sys, time
from datetime import timedelta
import torch
from accelerate import PartialState
from torch import distributed
from sgpo_lib.steps.launch import by_the_first

state = PartialState(timeout=timedelta(seconds=2))
by_the_first(state, lambda: time.sleep(4))
distributed.all_reduce(torch.ones(1))  # training goes on
if state.process_index == 0:
    time.sleep(4)
    sys.exit()
try:
    distributed.all_reduce(torch.ones(1))
except RuntimeError as error:
    assert "imed out" in str(error), error
else:
    raise AssertionError("training waits as long as the seed may take")
"""


def test_processes_wait_longer_for_the_seed_than_for_each_other_in_training(tmp_path):
    script = tmp_path / "wait.py"
    script.write_text(WAIT_LONGER_THAN_TRAINING_MAY)
    on_processes(2, str(script), cwd=tmp_path)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_every_config_as_it_is_meant(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.num_processes == 8
    assert config.distributed_type.value == {"fsdp": "FSDP", "deepspeed-zero3": "DEEPSPEED"}[path.stem]
