"""A saved policy scaled to given KLs: what each scale gives on other prompts, and what the two estimators cost.

python benchmarks/scaled_policies_reach_their_kl.py runs/smollm2-135m/seed-0/dpo/policy --kl 3 6 9    # prints Markdown
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd

from sgpo_lib import data
from sgpo_lib.params import load_params
from sgpo_lib.policy import Policy, generate, match_kl, sampled_kl, stepwise_kl


def with_error(values: np.ndarray) -> str:
    """Mean and standard error as text."""
    return f"{values.mean():.2f} ± {values.std(ddof=1) / np.sqrt(len(values)):.2f}"


def main() -> None:
    """Scale, answer the evaluation's prompts, and estimate the KL of these answers in both ways."""
    parser = argparse.ArgumentParser()
    parser.add_argument("policy", type=Path)
    parser.add_argument("--params", default="params/smollm2-135m.yaml")
    parser.add_argument("--kl", type=float, nargs="+", default=[3.0, 6.0, 9.0])
    parser.add_argument("--prompts", type=int, default=128)
    asked = parser.parse_args()
    params = load_params(asked.params)
    policy = Policy.load(params.model)
    policy.use(asked.policy)
    splits = data.prepare(params.data, params.root, seed=0)
    prompts = splits.evaluation["prompt"].tolist()[: asked.prompts]
    options = params.generation.model_dump(exclude={"engine"})

    start = time.perf_counter()
    matches = match_kl(policy, splits.training_pool["prompt"].tolist(), asked.kl, params.generation, seed=1)
    print(f"\n{len(asked.kl)} KLs matched in {time.perf_counter() - start:.0f} s\n")
    rows = []
    for target, alpha, estimate, error, why_not in [(np.nan, 1.0, np.nan, np.nan, ""), *matches]:
        row = {"asked for": target, "scale": alpha, "estimate": f"{estimate:.2f} ± {error:.2f}", "": why_not}
        if alpha is not None:
            with policy.scaled(alpha):
                responses = generate(policy, prompts, 1, 2, **options)
                clock = time.perf_counter()
                stepwise = stepwise_kl(
                    policy, responses["prompt_ids"], responses["response_ids"], options["temperature"]
                )
                between = time.perf_counter()
                ratio = sampled_kl(policy, responses, options["temperature"])
            row |= {"held out, stepwise": with_error(stepwise), "held out, log-ratio": with_error(ratio)}
            row |= {"stepwise s": between - clock, "log-ratio s": time.perf_counter() - between}
        rows.append(row)
    print(pd.DataFrame(rows).round(3).to_markdown(index=False))


if __name__ == "__main__":
    main()
