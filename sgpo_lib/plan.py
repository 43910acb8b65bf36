"""What a run will need, said before any money is spent: tokens, FLOPs, hours, memory per GPU, and whether it fits.

The model is built from its config alone, without weights, and prepared for training by the code that trains it;
what it holds is read off it. Nothing is fetched but the config, and nothing is generated or trained.

    python -m sgpo_lib.plan params/mistral-7b.yaml --gpu H100-80GB --n-gpus 8
"""

import argparse
import math
import os
from dataclasses import dataclass, field, replace

import pandas as pd
import torch

from sgpo_lib.params import Params, TrainingParams, load_params
from sgpo_lib.shape import Shape, find_config

GIB = 2**30
USABLE = 0.9  # of a GPU's memory: CUDA itself and fragmentation take the rest


@dataclass(frozen=True)
class Rates:
    """Effective speed of one device at each kind of work, in units per second.

    Attributes
    ----------
    generation, scoring, training : FLOP/s.
    bandwidth : bytes/s at which a decoding step reads weights and cache; infinite where arithmetic decides.
    """

    generation: float
    scoring: float
    training: float
    bandwidth: float = math.inf


@dataclass(frozen=True)
class Machine:
    """What the run is to be done on.

    Attributes
    ----------
    memory : bytes per device.
    n : devices; training shards over all of them.
    n_generating : devices that generate and score at the same time. The notebooks use one.
    rates : None where nothing is known about the speed.
    """

    name: str
    memory: float
    n: int = 1
    n_generating: int = 1
    rates: Rates | None = None

    @property
    def is_gpu(self) -> bool:
        """Whether it is planned as GPUs rather than as this computer's CPU."""
        return self.name != "CPU"


# Makers' data sheets: memory in GiB, dense bfloat16 TFLOP/s, memory bandwidth in TB/s.
GPUS = {
    "H200-141GB": (139.8, 989, 4.8),
    "H100-80GB": (79.6, 989, 3.35),
    "A100-80GB": (79.3, 312, 2.04),
    "A100-40GB": (39.5, 312, 1.56),
    "L40S-48GB": (44.5, 362, 0.864),
    "A6000-48GB": (47.5, 155, 0.768),
    "RTX4090-24GB": (23.6, 165, 1.01),
    "A10G-24GB": (22.1, 70, 0.6),
    "L4-24GB": (22.1, 121, 0.3),
}
# Shares of the peak that are assumed on GPUs, none of them measured for this project: training and scoring of long
# sequences in plain PyTorch, and of the bandwidth in transformers' decoding, where launching kernels costs the rest.
TRAINING, SCORING, DECODING = 0.35, 0.40, 0.20
# Measured on two cores of a Xeon with AMX: `benchmarks/plan_predicts_measured_times.py` prints them. Scoring is in
# float32, at a third of the 6.8e11 that were measured in bfloat16: the same answers took 2.9 times as long.
TWO_CPU_CORES = Rates(generation=1.7e11, scoring=2.3e11, training=2.8e11)


def find_machine(gpu: str | None = None, n_gpus: int | None = None, n_generating: int = 1) -> Machine:
    """Return the named GPUs, else those that torch finds, else this computer's CPU.

    Raises
    ------
    ValueError : if no such GPU is known.
    """
    if gpu is None and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        gib = properties.total_memory / GIB
        found = properties.name.replace(" ", "")
        same = [name for name, known in GPUS.items() if name.split("-")[0] in found and known[0] > gib - 2]
        rates = _gpu_rates(min(same, key=lambda name: GPUS[name][0])) if same else None
        n = n_gpus or torch.cuda.device_count()
        return Machine(properties.name, properties.total_memory, n, min(n, n_generating), rates)
    if gpu is None:
        return Machine("CPU", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), 1, 1, TWO_CPU_CORES)
    if gpu not in GPUS:
        raise ValueError(f"There is no GPU {gpu!r} in the table; there are: {', '.join(GPUS)}.")
    n = n_gpus or 1
    return Machine(gpu, GPUS[gpu][0] * GIB, n, min(n, n_generating), _gpu_rates(gpu))


def _gpu_rates(name: str) -> Rates:
    _, tflops, terabytes = GPUS[name]
    peak = tflops * 1e12
    return Rates(SCORING * peak, SCORING * peak, TRAINING * peak, DECODING * terabytes * 1e12)


@dataclass(frozen=True)
class Lengths:
    """Tokens per prompt and per answer: what is expected, and the limits that memory is planned for."""

    prompt: float
    response: float
    max_prompt: int
    max_response: int

    @property
    def is_bound(self) -> bool:
        """Whether the expected lengths are the limits themselves, so that times are upper bounds."""
        return self.prompt >= self.max_prompt and self.response >= self.max_response


@dataclass(frozen=True)
class Stage:
    """The work of one step of a run.

    Attributes
    ----------
    generated, scored, trained : tokens; of scored and trained ones prompts count too.
    flops : by kind of work, "generate", "score" and "train".
    read_bytes : that decoding reads from memory.
    """

    name: str
    generated: float = 0
    scored: float = 0
    trained: float = 0
    flops: dict[str, float] = field(default_factory=dict)
    read_bytes: float = 0

    @property
    def phases(self) -> list[str]:
        """Which of the `memory` of a run this step needs, one after the other."""
        answers = ["answering"] if {"generate", "score"} & set(self.flops) else []
        return answers + ([self.name.split()[0]] if "train" in self.flops else [])

    def seconds(self, machine: Machine) -> dict[str, float]:
        """Wall seconds by kind of work; loading, saving and the follower's own seconds are not in it."""
        rates = machine.rates
        if rates is None:
            return dict.fromkeys(self.flops, math.nan)
        generate = max(self.flops.get("generate", 0) / rates.generation, self.read_bytes / rates.bandwidth)
        return {
            "generate": generate / machine.n_generating,
            "score": self.flops.get("score", 0) / rates.scoring / machine.n_generating,
            "train": self.flops.get("train", 0) / rates.training / machine.n,
        }


def stages(params: Params, shape: Shape, lengths: Lengths, pairs_per_prompt: float = 1) -> list[Stage]:
    """Every step of the run, in order: seed DPO; annotation, follower and leader of each round; evaluation.

    Parameters
    ----------
    pairs_per_prompt : of data that people labelled, where a prompt may have several pairs.
    """
    data, by_people = params.data, params.gold is None
    pairs = pairs_per_prompt if by_people else 1  # of a labelled prompt
    n_labelled = data.n_seed + data.n_calibration
    n_samples = data.n_seed_samples
    answers = {"generate": n_labelled * n_samples, "samples": n_samples}
    # Whether answers that were sampled in 16 bits are scored by the policy once more.
    again = params.model.lora is not None and params.model.scoring_dtype == "float32" and shape.dtype.itemsize < 4
    of_seed = {"score": 2 * n_labelled * pairs} if by_people else answers | {"score": 2 * n_labelled * again}
    # What people wrote may be longer than what the policy may write.
    limit = params.seed_dpo.max_length - lengths.prompt
    of_people = replace(lengths, response=limit) if params.gold is None and lengths.is_bound else lengths
    of_seed |= {"pairs": data.n_seed * pairs}
    plan = [_stage("seed DPO", params, shape, of_people, **of_seed, training=params.seed_dpo)]
    for t, n in enumerate(data.n_prompts, start=1):
        earlier = sum(data.n_prompts[: t - 1]) if params.leader.accumulate else 0
        plan += [
            _stage(
                f"annotation {t}",
                params,
                shape,
                lengths,
                generate=2 * n,
                samples=2,
                score=2 * (n * (1 + again) + earlier + data.n_calibration * pairs),
            ),
            Stage(f"follower {t}"),
            # The worst case splits one pair in two.
            _stage(f"leader {t}", params, shape, lengths, pairs=n + earlier + 1, training=params.leader),
        ]
    held_out = 2 * (params.n_rounds + 2) * data.n_evaluation * pairs if by_people else 0
    generated, scored = (policies * data.n_evaluation for policies in (params.n_rounds + 2, params.n_rounds + 1))
    return [*plan, _stage("evaluation", params, shape, lengths, generated, score=scored * (1 + again) + held_out)]


def _stage(
    name: str,
    params: Params,
    shape: Shape,
    lengths: Lengths,
    generate: int = 0,
    samples: int = 1,
    score: float = 0,
    pairs: float = 0,
    training: TrainingParams | None = None,
) -> Stage:
    length = lengths.prompt + lengths.response
    flops, read, trained = {}, 0.0, 0.0
    if generate:
        flops["generate"], read = shape.decoding(
            generate, samples, params.generation.batch_size, lengths.prompt, params.generation.max_new_tokens
        )
    if score:
        flops["score"] = score * shape.forward_flops(length, length, lengths.response)
    if training:
        sequences = 2 * pairs * training.num_train_epochs
        trained = sequences * length
        checkpointing = training.gradient_checkpointing
        flops["train"] = shape.training_flops(trained, length, sequences * lengths.response, checkpointing)
    return Stage(name, generate * lengths.response, score * length, trained, flops, read)


def memory(
    params: Params, shape: Shape, machine: Machine, lengths: Lengths, other_checkpointing: bool = False
) -> dict[str, dict[str, float]]:
    """Bytes per device at the peak, by what they are for, of "answering" (generation and scoring), "seed" and "leader".

    Parameters
    ----------
    other_checkpointing : gradient checkpointing as the params do not have it.
    """
    own = lengths.max_prompt + lengths.max_response
    longest = {"seed": own if params.gold else params.seed_dpo.max_length, "leader": own}
    trainings = {"seed": params.seed_dpo, "leader": params.leader}
    return {"answering": _answering_memory(params, shape, lengths)} | {
        name: _training_memory(
            shape,
            machine,
            training,
            min(longest[name], training.max_length),
            training.gradient_checkpointing != other_checkpointing,
        )
        for name, training in trainings.items()
    }


def _answering_memory(params: Params, shape: Shape, lengths: Lengths) -> dict[str, float]:
    """Nothing is sharded here. With all weights trained, the SFT model waits in host memory, and all is float32."""
    rows, vocab, full = params.generation.batch_size, shape.config.vocab_size, shape.params.lora is None
    width = 4 if full else shape.dtype.itemsize
    wider = width / shape.dtype.itemsize
    scored = max(1024, lengths.max_response)  # positions whose logits scoring holds at once
    widened = params.model.scoring_dtype == "float32" and width < 4
    return {
        "weights": shape.total * 4 if full else shape.frozen_bytes + shape.trainable * 4,
        "float32 copy for scoring": (shape.total - shape.trainable) * 4 if widened else 0,
        "KV cache": rows * (lengths.max_prompt + lengths.max_response) * shape.cache_bytes * wider,
        "activations": wider * shape.passing_bytes(max(rows * lengths.max_prompt, scored)),
        "logits": max(16 * rows, (width + 8) * scored) * vocab,
    }


def _training_memory(
    shape: Shape, machine: Machine, training: TrainingParams, longest: int, checkpointing: bool
) -> dict[str, float]:
    """Fully sharded: float32 master weights where all are trained, else frozen ones in the type of the products."""
    n, full = machine.n, shape.params.lora is None
    sequences = 2 * training.per_device_train_batch_size
    tokens = sequences * longest
    # While gradients accumulate, sharded training does not exchange them, and each device keeps them all.
    shards_of_gradients = n if training.gradient_accumulation_steps == 1 else 1
    working = shape.passing_bytes(tokens)
    if n > 1:  # two layers gathered, a layer's gradients, and embedding and head with their gradients
        outside = shape.total - shape.layer * shape.config.num_hidden_layers
        working += (4 if full else shape.dtype.itemsize) * (3 * shape.layer + 2 * outside)
    tile = min(4096, tokens) * min(32768, shape.config.vocab_size)  # of TRL's fused head
    parts = {
        "weights": (4 * shape.trainable + shape.frozen_bytes) / n,
        "gradients": 4 * shape.trainable / shards_of_gradients,
        "optimiser": 8 * shape.trainable / n,
        "activations": shape.activation_bytes(sequences, longest, checkpointing),
        "logits": tile * (2 if machine.is_gpu else 14) + (4 * shape.head if full else 0),
        "working": working,
    }
    # AdamW's own step needs a copy of what it updates, when the activations are gone.
    passing = parts["activations"] + parts["logits"] + parts["working"]
    parts["working"] += max(0, 4 * shape.trainable / n - passing)
    return parts


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


if __name__ == "__main__":
    main()
