"""Tokens a second of a leader's training step against TRL's own DPOTrainer, on the same pairs, in one run.

python benchmarks/leader_is_not_slower_than_stock_trl.py                 # the embedded model, prints Markdown
python benchmarks/leader_is_not_slower_than_stock_trl.py --pairs 16 --repeats 3
"""

import argparse
import os
import platform
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import trl
from datasets import Dataset
from transformers.trainer_callback import PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer

from sgpo_lib import annotation, data, leader
from sgpo_lib.leader import LOSS_COLUMNS, KnownReferencesTrainer, WeightedDPOTrainer
from sgpo_lib.leader.training import drop_trl_reference, plain_attention_on_cpu
from sgpo_lib.params import LeaderParams, load_params
from sgpo_lib.policy import Policy

PARAMS = "params/smollm2-135m.yaml"
SEED = 0


class Clock(TrainerCallback):
    """Takes the time of every step but the first, which also warms up."""

    def __init__(self):
        self.seconds = []

    def on_step_begin(self, *_, **__):
        self.start = time.perf_counter()

    def on_step_end(self, *_, **__):
        self.seconds.append(time.perf_counter() - self.start)


def step_seconds(policy: Policy, rows: pd.DataFrame, training: LeaderParams, beta: float, kind: str) -> list[float]:
    """Train on all rows and return the seconds of each step after the first."""
    policy.use(None)
    policy.make_trainable(SEED)
    known = ["prompt_ids", "chosen_ids", "rejected_ids"]
    references = ["ref_chosen_logps", "ref_rejected_logps"]
    trainer_class, columns = {
        "TRL, computing references": (DPOTrainer, None),
        "TRL, references known": (KnownReferencesTrainer, known + references),
        "leader": (WeightedDPOTrainer, known + references + list(LOSS_COLUMNS)),
    }[kind]
    if columns is None:  # stock TRL takes conversations, and tokenises them before it starts to train
        as_assistant = {
            side: [[{"role": "assistant", "content": text}] for text in rows[side]] for side in ("chosen", "rejected")
        }
        data = Dataset.from_dict({"prompt": rows["prompt"].tolist()} | as_assistant)
    else:
        data = Dataset.from_pandas(rows[columns], preserve_index=False)
    clock = Clock()
    with tempfile.TemporaryDirectory() as scratch, plain_attention_on_cpu(policy):
        config = DPOConfig(
            output_dir=scratch,
            beta=beta,
            seed=SEED,
            bf16=policy.computes_in_bfloat16,
            use_cpu=policy.device.type == "cpu",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            per_device_train_batch_size=training.per_device_train_batch_size,
            gradient_accumulation_steps=training.gradient_accumulation_steps,
            max_length=training.max_length,
            learning_rate=training.learning_rate,
        )
        trainer = trainer_class(
            model=policy.model, args=config, train_dataset=data, processing_class=policy.tokenizer, callbacks=[clock]
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    drop_trl_reference(policy)
    return clock.seconds[1:]


def main() -> None:
    """Time the three trainers in turn, so that a noisy machine is noisy for all of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--params", default=PARAMS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")

    params = load_params(arguments.params)
    policy = Policy.load(params.model)
    prompts = data.prepare(params.data, params.root, SEED).rounds[0].head(arguments.pairs)
    responses = annotation.respond(policy, prompts, params.generation, SEED)
    responses["order"] = np.arange(len(responses))
    pairs = annotation.rank(responses, by="order")
    rows = leader.with_references(pairs, "previous").assign(**dict.fromkeys(LOSS_COLUMNS, 0.0) | {"loss_weight": 1.0})
    lengths = 2 * rows["prompt_ids"].map(len) + rows["chosen_ids"].map(len) + rows["rejected_ids"].map(len)
    pairs_a_step = params.leader.per_device_train_batch_size * params.leader.gradient_accumulation_steps
    tokens_a_step = lengths.mean() * pairs_a_step

    kinds = ["TRL, computing references", "TRL, references known", "leader"]
    seconds = {kind: [] for kind in kinds}
    for _ in range(arguments.repeats):
        for kind in kinds:
            seconds[kind] += step_seconds(policy, rows, params.leader, params.beta, kind)
    best = {kind: float(np.median(values)) for kind, values in seconds.items()}
    print(f"Made by `python {Path(__file__).parent.name}/{Path(__file__).name}`:\n")
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"{policy.device.type}; torch {torch.__version__}, trl {trl.__version__}; {params.name}, steps of "
        f"{pairs_a_step} pairs ({tokens_a_step:.0f} tokens), median of {len(seconds['leader'])} steps.\n"
    )
    print("| trainer | seconds a step | tokens a second | times stock |\n|---|---:|---:|---:|")
    for kind in kinds:
        stock = best["TRL, computing references"]
        print(f"| {kind} | {best[kind]:.2f} | {tokens_a_step / best[kind]:.0f} | {stock / best[kind]:.2f} |")


if __name__ == "__main__":
    main()
