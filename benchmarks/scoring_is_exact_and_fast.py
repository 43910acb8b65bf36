"""Seconds and errors of log-probabilities in bfloat16 and in float32, for what a round of self-annotation scores.

Errors are of margins, in reward units, against float64, and of the KL of one answer to each prompt, in nats.

python benchmarks/scoring_is_exact_and_fast.py > figures/scoring_benchmark.md     # the default run's 192 answers
python benchmarks/scoring_is_exact_and_fast.py --prompts 12 --repeats 1
"""

import argparse
import copy
import os
import platform
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import transformers
from transformers.utils import logging

from sgpo_lib import annotation, data
from sgpo_lib.params import load_params
from sgpo_lib.policy import Policy, sampled_kl, sequence_log_probs

PARAMS = "params/smollm2-135m.yaml"
SEED = 0


def some_policy(params) -> Policy:
    """The SFT model with a random adapter, of which a round's margins are about as large as after training."""
    policy = Policy.load(params.model)
    policy.make_trainable(SEED)
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, weight in policy.model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.01, generator=generator)
    policy.model.eval()
    return policy


def log_probs(policy: Policy, responses: pd.DataFrame, dtype: str, temperature: float = 1.0) -> np.ndarray:
    """Log-probabilities under the policy and under the SFT model, shape (2, N)."""
    ids = responses["prompt_ids"], responses["response_ids"]
    both = [sequence_log_probs(policy, *ids, which, temperature, dtype=dtype) for which in (False, True)]
    return np.array(both)


def main() -> None:
    """Take turns, so that a noisy machine is noisy for all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()

    params = load_params(PARAMS)
    beta, temperature = params.beta, params.generation.temperature
    policy = some_policy(params)
    prompts = data.prepare(params.data, params.root, SEED).rounds[0].head(arguments.prompts)
    responses = annotation.respond(policy, prompts, params.generation, SEED)
    one_each = responses[responses["sample"] == 0]

    def margins(both: np.ndarray) -> np.ndarray:
        return beta * (both[0] - both[1]).reshape(-1, 2) @ [1, -1]

    exact = copy.deepcopy(policy)
    exact.model.double()
    of_margins = margins(log_probs(exact, responses, "auto"))
    of_kl = np.subtract(*log_probs(exact, one_each, "auto", temperature))
    del exact

    ways = {
        "margins in bfloat16": lambda: margins(log_probs(policy, responses, "auto")),
        "**margins in float32**": lambda: margins(log_probs(policy, responses, "float32")),
        "KL, two passes in float32": lambda: np.subtract(*log_probs(policy, one_each, "float32", temperature)),
        "**KL, from sampling and one pass in its type**": lambda: sampled_kl(policy, one_each, temperature),
    }
    seconds, values = {way: [] for way in ways}, {}
    for way, score in [*ways.items()] * arguments.repeats:
        clock = time.perf_counter()
        values[way] = score()
        seconds[way].append(time.perf_counter() - clock)

    asked = " ".join(["python", f"{Path(__file__).parent.name}/{Path(__file__).name}", *sys.argv[1:]])
    print(f"Made by `{asked}`:\n")
    print(
        f"{len(responses)} answers to {len(prompts)} prompts for margins ({of_margins.std():.2g} in standard "
        f"deviation), {len(one_each)} for the KL ({of_kl.mean():.3g} nats); {params.name} with a random adapter, "
        f"weights in {policy.model.dtype}, on {policy.device.type}, {platform.processor() or platform.machine()}, "
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads; least of {arguments.repeats}; bold: what runs do; "
        f"torch {torch.__version__}, transformers {transformers.__version__}.\n"
    )
    print("| what | seconds | mean error | rms error |\n|---|---:|---:|---:|")
    for way, value in values.items():
        error = value - (of_margins if "margins" in way else of_kl)
        print(f"| {way} | {min(seconds[way]):.1f} | {error.mean():.1g} | {np.sqrt(np.mean(error**2)):.1g} |")


if __name__ == "__main__":
    main()
