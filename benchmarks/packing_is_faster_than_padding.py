"""Tokens a second of log-probabilities and their gradient: packed rows against padded ones, in one run.

python benchmarks/packing_is_faster_than_padding.py                      # SmolLM2-135M's shape, prints Markdown
python benchmarks/packing_is_faster_than_padding.py --lengths 200/200 --repeats 3
"""

import argparse
import os
import platform
import time
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from sgpo_lib.leader.packing import pack, packed_log_probs, row_length

BETA = 0.1
N_PAIRS, PER_BATCH = 8, 4
VOCABULARY = 49152


def random_model() -> torch.nn.Module:
    """A model of SmolLM2-135M's shape with the default run's adapter, both with random weights."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).bfloat16()
    model.set_attn_implementation("eager")
    model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    adapter = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
    return get_peft_model(model, adapter).train()


def random_pairs(lengths: str, rng: np.random.Generator) -> list[tuple[list[int], list[list[int]]]]:
    """`N_PAIRS` prompts with two answers of "prompt/answer" tokens, or of the default run's ragged lengths."""

    def text(n: int) -> list[int]:
        return rng.integers(VOCABULARY, size=n).tolist()

    if lengths == "ragged":
        prompts = rng.integers(38, 52, N_PAIRS)
        spread = np.linspace(10, 118, 2 * N_PAIRS, dtype=int).clip(max=64)  # half of them end at the cap
        answers = rng.permutation(spread).reshape(N_PAIRS, 2)
    else:
        prompt, answer = map(int, lengths.split("/"))
        prompts, answers = np.full(N_PAIRS, prompt), np.full((N_PAIRS, 2), answer)
    return [(text(n), [text(k) for k in own]) for n, own in zip(prompts, answers, strict=True)]


def padded(model: torch.nn.Module, prompts: list, answers: list) -> torch.Tensor:
    """Log-probabilities of each prompt and answer in a row of its own, the head on answer positions, shape (2 B,)."""
    texts = [(p, a) for p, own in zip(prompts, answers, strict=True) for a in own]
    length = max(len(p) + len(a) for p, a in texts)
    input_ids, labels = torch.zeros(len(texts), length, dtype=torch.long), torch.full((len(texts), length), -100)
    for row, (p, a) in enumerate(texts):
        input_ids[row, : len(p) + len(a)] = torch.tensor([*p, *a])
        labels[row, len(p) : len(p) + len(a)] = torch.tensor(a)
    mask = torch.tensor([[1] * (len(p) + len(a)) + [0] * (length - len(p) - len(a)) for p, a in texts])
    first = min(len(p) for p, _ in texts)
    kept = length - first + 1
    logits = model(input_ids=input_ids, attention_mask=mask, use_cache=False, logits_to_keep=kept).logits[:, :-1]
    targets = labels[:, first:]
    losses = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
    return -losses.view(targets.shape).sum(1)


def packed(model: torch.nn.Module, prompts: list, answers: list) -> torch.Tensor:
    """The same from rows in which both answers share their prompt."""
    return packed_log_probs(model, pack(prompts, answers))


def step_seconds(model: torch.nn.Module, pairs: list, log_probs) -> float:
    """Seconds of the forward and backward passes of an optimiser step's pairs."""
    start = time.perf_counter()
    for first in range(0, len(pairs), PER_BATCH):
        prompts, answers = zip(*pairs[first : first + PER_BATCH], strict=True)
        with torch.autocast("cpu", torch.bfloat16):
            chosen, rejected = log_probs(model, prompts, answers).view(-1, 2).T
        (-F.logsigmoid(BETA * (chosen - rejected)).mean()).backward()
    model.zero_grad()
    return time.perf_counter() - start


def main() -> None:
    """Time all ways in turn, so that a noisy machine is noisy for all of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--lengths", nargs="+", default=["ragged", "40/50", "200/200"])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    model = random_model()
    print(f"Made by `python {Path(__file__).parent.name}/{Path(__file__).name}`:\n")
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; "
        f"torch {torch.__version__}, transformers {transformers.__version__}; forward and backward of {N_PAIRS} pairs, "
        f"{PER_BATCH} at once, median of {arguments.repeats}; tokens counted as if each answer had its own prompt.\n"
    )
    print("| prompt/answer tokens | rows | tokens a second | times padded |\n|---|---|---:|---:|")
    for lengths in arguments.lengths:
        pairs = random_pairs(lengths, np.random.default_rng(0))
        by_length = sorted(pairs, key=lambda pair: row_length(*pair))
        ways = {"padded": (padded, pairs), "packed": (packed, pairs), "packed, sorted": (packed, by_length)}
        seconds = {way: [] for way in ways}
        for _ in range(arguments.repeats + 1):
            for way, (log_probs, in_order) in ways.items():
                seconds[way].append(step_seconds(model, in_order, log_probs))
        n_tokens = sum(2 * len(prompt) + len(chosen) + len(rejected) for prompt, (chosen, rejected) in pairs)
        usual = {way: np.median(values[1:]) for way, values in seconds.items()}  # the first one warms up
        for way, value in usual.items():
            print(f"| {lengths} | {way} | {n_tokens / value:.0f} | {usual['padded'] / value:.2f} |", flush=True)


if __name__ == "__main__":
    main()
