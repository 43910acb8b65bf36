"""The plan of a run as text: stages, memory, hours, cost, and whether it fits."""

import argparse
import math

import pandas as pd

from sgpo_lib.params.files import load_params
from sgpo_lib.params.schema import Params
from sgpo_lib.plan.machines import DECODING, GIB, GPUS, SCORING, TRAINING, USABLE, Machine, find_machine
from sgpo_lib.plan.memory import memory
from sgpo_lib.plan.shape import Shape, find_config
from sgpo_lib.plan.stages import Lengths, Stage, stages


def plan(
    params: Params,
    machine: Machine,
    prompt_tokens: float | None = None,
    response_tokens: float | None = None,
    price: float | None = None,
    pairs_per_prompt: float = 1,
) -> str:
    """Lay the plan out as Markdown.

    Parameters
    ----------
    prompt_tokens, response_tokens : expected mean lengths; their limits where not given, so that times are bounds.
    price : per device and hour, in whatever currency.
    pairs_per_prompt : see `stages`.
    """
    generation = params.generation
    lengths = Lengths(
        min(prompt_tokens or math.inf, generation.max_prompt_length),
        min(response_tokens or math.inf, generation.max_new_tokens),
        generation.max_prompt_length,
        generation.max_new_tokens,
    )
    config, source = find_config(params.model)
    shape = Shape(config, params.model, machine.is_gpu)
    needs = memory(params, shape, machine, lengths)
    return "\n\n".join(
        [
            f"# Plan of {params.name} on {machine.n} x {machine.name}",
            _about(params, shape, machine, lengths, source, price),
            _stage_table(stages(params, shape, lengths, pairs_per_prompt), needs, machine, price).to_markdown(
                index=False, disable_numparse=True
            ),
            "Memory per device at its peak, GiB, by what it is for:",
            _memory_table(needs, memory(params, shape, machine, lengths, other_checkpointing=True), params).to_markdown(
                disable_numparse=True
            ),
            _verdict(needs, machine),
        ]
    )


def _about(params: Params, shape: Shape, machine: Machine, lengths: Lengths, source: str, price: float | None) -> str:
    how = "all weights, kept in float32" if params.model.lora is None else f"LoRA of rank {params.model.lora.r}"
    dtype = str(shape.dtype).removeprefix("torch.")
    lines = [
        f"- Model: {params.model.name_or_path}, sizes from {source}; {shape.total / 1e9:.3f} B parameters, "
        f"{shape.trainable / 1e9:.3f} B of them trained ({how}); matrix products in {dtype}.",
        f"- Lengths: {lengths.prompt:g} tokens a prompt and {lengths.response:g} an answer"
        + (": the limits of the params, so tokens and times are upper bounds." if lengths.is_bound else " expected.")
        + f" Memory is planned for {lengths.max_prompt} + {lengths.max_response}.",
    ]
    for name, training in (("seed DPO", params.seed_dpo), ("leader", params.leader)):
        size = training.per_device_train_batch_size * training.gradient_accumulation_steps * machine.n
        lines.append(
            f"- {name}: {size} pairs a step ({training.per_device_train_batch_size} a device x "
            f"{training.gradient_accumulation_steps} accumulated x {machine.n} devices)."
        )
    if machine.rates is None:
        lines.append("- Speed: this device is not in the table; no times are given.")
    elif machine.is_gpu:
        lines.append(
            f"- Speed: assumed, not measured: {TRAINING:.0%} of the peak in training, {SCORING:.0%} in scoring, "
            f"{DECODING:.0%} of the memory bandwidth in decoding with transformers, in lockstep until the token limit. "
            f"{machine.n_generating} of {machine.n} devices generate and score; all are paid for throughout."
        )
    else:
        lines.append("- Speed: as measured with SmolLM2-135M on two cores of a Xeon with AMX; yours will differ.")
    if price is not None:
        lines.append(f"- Cost: at {price:g} per device and hour, the price that you gave.")
    if params.generation.engine == "vllm":
        lines.append("- Generation is planned as transformers does it; vLLM takes less time and other memory.")
    lines.append("- Not in the times: loading and saving models, drawing, judging, and the follower's seconds.")
    return "\n".join(lines)


def _stage_table(
    steps: list[Stage], needs: dict[str, dict[str, float]], machine: Machine, price: float | None
) -> pd.DataFrame:
    table = pd.DataFrame(
        {
            "stage": step.name,
            **{name: getattr(step, name) for name in ("generated", "scored", "trained")},
            "FLOP": sum(step.flops.values()),
            "hours": sum(step.seconds(machine).values()) / 3600,
            "GiB": max((sum(needs[phase].values()) / GIB for phase in step.phases), default=0.0),
        }
        for step in steps
    )
    everything = table.drop(columns="stage").sum().to_frame("all").T.assign(GiB=table["GiB"].max())
    table = pd.concat([table, everything.rename_axis("stage").reset_index()], ignore_index=True)
    shown = table[["stage"]].copy()
    for column in ("generated", "scored", "trained"):
        shown[f"{column} tokens"] = table[column].map(_counted)
    shown["FLOP"] = table["FLOP"].map(lambda x: f"{x:.2e}" if x else "")
    shown["hours"] = table["hours"].map(lambda x: "?" if math.isnan(x) else f"{x:.2f}" if x else "seconds, on the CPU")
    if price is not None:
        cost = table["hours"] * machine.n * price
        shown["cost"] = cost.map(lambda x: "?" if math.isnan(x) else f"{x:,.2f}" if x else "")
    shown["GiB per device"] = table["GiB"].map(lambda x: f"{x:.1f}" if x else "")
    shown["fits"] = table["GiB"].map(lambda x: ("yes" if x * GIB <= USABLE * machine.memory else "NO") if x else "")
    return shown


def _counted(tokens: float) -> str:
    if not tokens:
        return ""
    return f"{tokens / 1e6:.2f} M" if tokens >= 1e6 else f"{tokens / 1e3:.1f} K"


def _memory_table(
    needs: dict[str, dict[str, float]], otherwise: dict[str, dict[str, float]], params: Params
) -> pd.DataFrame:
    headings = {"answering": "annotation, evaluation", "seed": "seed DPO, training", "leader": "leader, training"}
    kinds = ["weights", "SFT copy", "gradients", "optimiser", "activations", "logits", "KV cache", "working"]
    rows = {}
    for phase, parts in needs.items():
        row = {kind: f"{parts[kind] / GIB:.1f}" if parts.get(kind) else "" for kind in kinds}
        row |= {"total": f"{sum(parts.values()) / GIB:.1f}", "gradient checkpointing": ""}
        if phase != "answering":
            on = (params.seed_dpo if phase == "seed" else params.leader).gradient_checkpointing
            other = f"{sum(otherwise[phase].values()) / GIB:.1f} GiB if {'off' if on else 'on'}"
            row["gradient checkpointing"] = f"{'on' if on else 'off'}; {other}"
        rows[headings[phase]] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("phase")


def _verdict(needs: dict[str, dict[str, float]], machine: Machine) -> str:
    need, have = max(sum(parts.values()) for parts in needs.values()), machine.memory
    numbers = f"{need / GIB:.1f} GiB per device are needed, and {USABLE:.0%} of {have / GIB:.1f} GiB can be used"
    if need <= USABLE * have:
        return f"**Fits**: {numbers}."
    return (
        f"**DOES NOT FIT**: {numbers}. More devices to shard over, smaller batches, gradient checkpointing or an "
        "adapter (model.lora) would help."
    )


def main(arguments: list[str] | None = None) -> None:
    """Print the plan of a params file."""
    parser = argparse.ArgumentParser(prog="python -m sgpo_lib.plan", description=plan.__doc__.splitlines()[0])
    parser.add_argument("params_file")
    parser.add_argument("--gpu", help=f"default: what torch finds, else the CPU. One of {', '.join(GPUS)}")
    parser.add_argument("--n-gpus", type=int, help="default: as many as torch finds, else 1")
    parser.add_argument("--n-generating", type=int, default=1, help="GPUs that generate and score (default 1)")
    parser.add_argument("--price", type=float, help="per GPU hour; look it up, prices change by the week")
    parser.add_argument("--prompt-tokens", type=float, help="expected mean; default: generation.max_prompt_length")
    parser.add_argument("--response-tokens", type=float, help="expected mean; default: generation.max_new_tokens")
    parser.add_argument("--pairs-per-prompt", type=float, default=1, help="of data that people labelled (default 1)")
    asked = parser.parse_args(arguments)
    try:
        machine = find_machine(asked.gpu, asked.n_gpus, asked.n_generating)
        params = load_params(asked.params_file)
        lengths = asked.prompt_tokens, asked.response_tokens
        print(plan(params, machine, *lengths, asked.price, asked.pairs_per_prompt))
    except (ValueError, OSError) as error:
        raise SystemExit(f"{error}") from None
