"""Tokens a second of a leader's training step against TRL's own DPOTrainer, on the same pairs, in one run.

python benchmarks/leader_is_not_slower_than_stock_trl.py                 # the embedded model, prints Markdown
python benchmarks/leader_is_not_slower_than_stock_trl.py --lengths 40/50 --repeats 3
"""

import argparse
import contextlib
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
from trl import DPOConfig

from sgpo_lib import leader
from sgpo_lib.leader import KnownReferencesTrainer, WeightedDPOTrainer
from sgpo_lib.leader.training import drop_trl_reference
from sgpo_lib.params import load_params
from sgpo_lib.policy import Policy

PARAMS = "params/smollm2-135m.yaml"
SEED = 0
TOKENS = ["prompt_ids", "chosen_ids", "rejected_ids"]
REFERENCES = ["ref_chosen_logps", "ref_rejected_logps"]
STOCK, KNOWN, PADDED, LEADER = "TRL", "TRL, references known", "the leader, padded", "the leader"


class Clock(TrainerCallback):
    """Takes the time of every step but the first, which also warms up."""

    def __init__(self):
        self.seconds = []

    def on_step_begin(self, *_, **__):
        self.start = time.perf_counter()

    def on_step_end(self, *_, **__):
        self.seconds.append(time.perf_counter() - self.start)


class PaddedTrainer(WeightedDPOTrainer):
    """The leader with a row for each answer, in any order."""

    _get_train_sampler = KnownReferencesTrainer._get_train_sampler

    def _packed_log_probs(self, model, inputs):
        return None


def random_rows(lengths: str, n: int, vocabulary: int) -> pd.DataFrame:
    """Pairs of random tokens: "prompt/answer" of these lengths, or "ragged" like those of the default run."""
    rng = np.random.default_rng(0)
    if lengths == "ragged":
        prompts = rng.integers(38, 52, n)
        answers = rng.permutation(np.linspace(10, 118, 2 * n, dtype=int).clip(max=64))  # half of them end at the cap
    else:
        prompt, answer = map(int, lengths.split("/"))
        prompts, answers = np.full(n, prompt), np.full(2 * n, answer)
    columns = {
        name: [rng.integers(vocabulary, size=size).tolist() for size in sizes]
        for name, sizes in zip(TOKENS, (prompts, answers[:n], answers[n:]), strict=True)
    }
    return pd.DataFrame(columns | dict.fromkeys(REFERENCES, -100.0))


@contextlib.contextmanager
def attention(policy: Policy, name: str):
    """For the length of a block, another attention function of transformers."""
    model = policy.model.get_base_model()
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    yield
    model.set_attn_implementation(before)


def step_seconds(policy: Policy, rows: pd.DataFrame, params, kind: str) -> list[float]:
    """Train on all rows and return the seconds of each step after the first."""
    policy.use(None)
    policy.make_trainable(SEED)
    clock, training = Clock(), params.leader
    if kind == LEADER:
        leader.train(policy, rows, training, params.beta, SEED, callbacks=[clock])
        return clock.seconds[1:]
    # TRL's own but for taking tokens as they are, so that all have the same.
    columns = TOKENS if kind == STOCK else TOKENS + REFERENCES
    with (
        tempfile.TemporaryDirectory() as scratch,
        # The leader's padded rows as they were at first; TRL has the attention that transformers gives it.
        attention(policy, "eager") if kind == PADDED else contextlib.nullcontext(),
    ):
        config = DPOConfig(
            output_dir=scratch,
            beta=params.beta,
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
        trainer = (PaddedTrainer if kind == PADDED else KnownReferencesTrainer)(
            model=policy.model,
            args=config,
            train_dataset=Dataset.from_pandas(rows[columns], preserve_index=False),
            processing_class=policy.tokenizer,
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    drop_trl_reference(policy)
    return clock.seconds[1:]


def main() -> None:
    """Time the trainers in turn, so that a noisy machine is noisy for all of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--lengths", nargs="+", default=["ragged", "40/50", "200/200"])
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--params", default=PARAMS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")

    params = load_params(arguments.params, overrides={"leader.max_length": 1024, "leader.warmup_steps": 0})
    policy = Policy.load(params.model)
    pairs_a_step = params.leader.per_device_train_batch_size * params.leader.gradient_accumulation_steps
    print(f"Made by `python {Path(__file__).parent.name}/{Path(__file__).name}`:\n")
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"{policy.device.type}; torch {torch.__version__}, trl {trl.__version__}; {params.name}, steps of "
        f"{pairs_a_step} pairs; medians, of all steps and of the ratios of the {arguments.repeats} rounds; tokens "
        "counted as if each answer had its own prompt.\n"
    )
    print("| prompt/answer tokens | trainer | seconds a step | tokens a second | times TRL | times padded |")
    print("|---|---|---:|---:|---:|---:|")
    for lengths in arguments.lengths:
        rows = random_rows(lengths, arguments.pairs, policy.model.config.vocab_size)
        n_tokens = sum(2 * len(r.prompt_ids) + len(r.chosen_ids) + len(r.rejected_ids) for r in rows.itertuples())
        seconds = {kind: [] for kind in (STOCK, KNOWN, PADDED, LEADER)}
        for _ in range(arguments.repeats):
            for kind, rounds in seconds.items():
                rounds.append(step_seconds(policy, rows, params, kind))
        each = {kind: np.array([np.median(of_round) for of_round in rounds]) for kind, rounds in seconds.items()}
        for kind, rounds in seconds.items():
            usual = np.median(np.concatenate(rounds))
            times = [f"{np.median(each[peer] / each[kind]):.2f}" for peer in (STOCK, PADDED)]
            rate = n_tokens * pairs_a_step / len(rows) / usual
            print(f"| {lengths} | {kind} | {usual:.2f} | {rate:.0f} | {times[0]} | {times[1]} |", flush=True)


if __name__ == "__main__":
    main()
