"""Responses with implicit rewards, against plain `model.generate` and separate scoring passes, in one run.

Plain scoring is in the model's type, ours in `model.scoring_dtype`: with `--scoring-dtype auto` both do the same.

python benchmarks/annotation_is_faster_than_generate_and_score.py               # the embedded model, prints Markdown
python benchmarks/annotation_is_faster_than_generate_and_score.py --prompts 32 --repeats 1
"""

import argparse
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
import transformers
from peft import PeftModel
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from sgpo_lib import annotation, data
from sgpo_lib.params import load_params
from sgpo_lib.policy import Policy
from sgpo_lib.policy.embedded import EMBEDDED_MODELS, unpack

PARAMS = "params/smollm2-135m.yaml"
SEED = 0


@torch.inference_mode()
def plainly(model, policy: Policy, prompts: list, generation, n_samples: int) -> dict[str, float]:
    """Do what the documentation of transformers suggests; returns the seconds of each part."""
    tokenizer, stop = policy.tokenizer, sorted(policy.stop_tokens)
    seconds = {"generate": 0.0, "score": 0.0}
    encoded = policy.encode_prompts(prompts, generation.max_prompt_length)
    for start in range(0, len(encoded), generation.batch_size // n_samples):
        part = encoded[start : start + generation.batch_size // n_samples]
        inputs = tokenizer.pad({"input_ids": part}, return_tensors="pt").to(model.device)
        clock = time.perf_counter()
        output = model.generate(
            **inputs,
            do_sample=True,
            temperature=generation.temperature,
            top_k=0,
            num_return_sequences=n_samples,
            max_new_tokens=generation.max_new_tokens,
            eos_token_id=stop,
            pad_token_id=tokenizer.pad_token_id,
        )
        seconds["generate"] += time.perf_counter() - clock
        length = inputs["input_ids"].shape[1]
        mask = torch.cat(
            [inputs["attention_mask"].repeat_interleave(n_samples, 0), torch.ones_like(output[:, length:])], dim=1
        )

        def score(output=output, mask=mask, length=length) -> torch.Tensor:
            logits = model(output, attention_mask=mask).logits[:, length - 1 : -1]
            return logits.float().log_softmax(-1).gather(-1, output[:, length:, None]).sum((1, 2))

        clock = time.perf_counter()
        score()
        with model.disable_adapter():
            score()
        seconds["score"] += time.perf_counter() - clock
    return seconds


def ours(policy: Policy, prompts, params, n_samples: int) -> dict[str, float]:
    """Do what notebook 02 does; returns the seconds of each part."""
    clock = time.perf_counter()
    responses = annotation.respond(policy, prompts, params.generation, SEED, n_samples)
    generated = time.perf_counter()
    annotation.with_implicit_rewards(policy, responses, params.beta)
    return {"generate": generated - clock, "score": time.perf_counter() - generated}


def main() -> None:
    """Take turns, so that a noisy machine is noisy for both."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scoring-dtype", choices=["float32", "auto"], default="float32")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()

    params = load_params(PARAMS, {"model.scoring_dtype": arguments.scoring_dtype})
    policy = Policy.load(params.model)
    policy.make_trainable(SEED)
    with torch.no_grad():  # a fresh adapter is the SFT model; a small one of noise costs the same and answers alike
        for name, weight in policy.model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=1e-4)
    policy.model.eval()
    prompts = data.prepare(params.data, params.root, SEED).rounds[0].head(arguments.prompts)
    source = unpack(params.model.name_or_path) if params.model.name_or_path in EMBEDDED_MODELS else None
    with tempfile.TemporaryDirectory() as folder:
        policy.save(Path(folder))
        base = AutoModelForCausalLM.from_pretrained(source, dtype=policy.model.get_base_model().dtype)
        plain = PeftModel.from_pretrained(base, folder).eval()

    parts = {"plain": [], "ours": []}
    for _ in range(arguments.repeats):
        asked = prompts["prompt"].tolist()
        parts["plain"].append(plainly(plain, policy, asked, params.generation, arguments.samples))
        parts["ours"].append(ours(policy, prompts, params, arguments.samples))
    names = list(parts["plain"][0])
    median = {kind: {name: np.median([run[name] for run in runs]) for name in names} for kind, runs in parts.items()}
    total = {kind: sum(values.values()) for kind, values in median.items()}
    asked = " ".join(["python", f"{Path(__file__).parent.name}/{Path(__file__).name}", *sys.argv[1:]])
    print(f"Made by `{asked}`:\n")
    print(
        f"{len(prompts)} prompts, {arguments.samples} responses each of up to {params.generation.max_new_tokens} "
        f"tokens, {params.name} with an adapter on {policy.device.type}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads; median of {arguments.repeats}; torch {torch.__version__}, "
        f"transformers {transformers.__version__}.\n"
    )
    print(f"| seconds | {' | '.join(names)} | all | times plain |\n|---|{'---:|' * (len(names) + 2)}")
    for kind, label in {"plain": "`model.generate`, two scoring passes", "ours": "notebook 02"}.items():
        cells = [f"{median[kind][name]:.1f}" for name in names]
        print(f"| {label} | {' | '.join(cells)} | {total[kind]:.1f} | {total['plain'] / total[kind]:.2f} |")


if __name__ == "__main__":
    main()
