"""What a run will need, said before any money is spent: tokens, FLOPs, hours, memory per GPU, and whether it fits.

The model is built from its config alone, without weights, and prepared for training by the code that trains it;
what it holds is read off it. Nothing is fetched but the config, and nothing is generated or trained.

    python -m sgpo_lib.plan params/mistral-7b.yaml --gpu H100-80GB --n-gpus 8
"""

import math
from dataclasses import dataclass, field, replace

from sgpo_lib.params.schema import Params
from sgpo_lib.params.training import TrainingParams
from sgpo_lib.plan.machines import Machine
from sgpo_lib.plan.shape import Shape
from sgpo_lib.policy.kl_matching import N_PROMPTS

# How many KLs are estimated to match one.
_ESTIMATES = 3

# What scoring in 16 bits takes of the time in float32: SmolLM2-135M on one core of an Intel with AMX.
_IN_16_BITS = 0.35


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
    n_labelled, samples = data.n_seed + data.n_calibration, params.annotation.n_samples
    n_answers = data.n_seed * data.n_seed_samples + data.n_calibration * params.annotation.n_samples
    answers = {"generate": n_answers, "samples": n_answers / n_labelled}
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
                generate=samples * n,
                samples=samples,
                score=samples * n * (1 + again) + 2 * (earlier + data.n_calibration * pairs),
            ),
            Stage(f"follower {t}"),
            _stage(f"leader {t}", params, shape, lengths, pairs=n + earlier, training=params.leader),
        ]
    held_out = 2 * (params.n_rounds + 2) * data.n_evaluation * pairs if by_people else 0
    n_rounds = params.n_rounds if params.evaluation.rounds == "all" else min(1, params.n_rounds)
    samples, n_trained = params.evaluation.n_samples, n_rounds + 1
    n_scaled = n_trained * len(params.evaluation.match_kl)
    search = n_scaled * _ESTIMATES * N_PROMPTS
    generated, scored = (n * data.n_evaluation * samples for n in (1 + n_trained + n_scaled, n_trained + n_scaled))
    in_16_bits, score = (scored + 2 * search) * again, scored + 2 * search + held_out
    answering = {"generate": generated + search, "samples": samples, "score": score, "in_16_bits": in_16_bits}
    return [*plan, _stage("evaluation", params, shape, lengths, **answering)]


def _stage(
    name: str,
    params: Params,
    shape: Shape,
    lengths: Lengths,
    generate: int = 0,
    samples: float = 1,
    score: float = 0,
    in_16_bits: float = 0,
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
        as_float32 = score - in_16_bits * (1 - _IN_16_BITS)
        flops["score"] = as_float32 * shape.forward_flops(length, length, lengths.response)
    if training:
        sequences = 2 * pairs * training.options()["num_train_epochs"]
        trained = sequences * length
        checkpointing = training.gradient_checkpointing
        flops["train"] = shape.training_flops(trained, length, sequences * lengths.response, checkpointing)
    return Stage(name, generate * lengths.response, score * length, trained, flops, read)
