"""What a run is asked to do: typed, validated, one section per step of the method.

A params file is YAML. Its names are those of TRL, PEFT and transformers wherever these have one. A file
may say `extends: other.yaml` and then holds only what differs from that one.
This module knows nothing of what the values are used for.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    model_validator,
)

from sgpo_lib.leader.modes import MODES
from sgpo_lib.params.judge import KEY_VARIABLE, LLMJudgeParams, RewardModelParams
from sgpo_lib.params.section import Count, Positive, Section, Share
from sgpo_lib.params.training import SeedTrainingParams, TrainingParams


class LoraParams(Section):
    """Low-rank adapter; names as in `peft.LoraConfig`."""

    r: Count = 16
    lora_alpha: Positive = 32
    lora_dropout: Share = 0.0
    target_modules: str | list[str] = "all-linear"


class ModelParams(Section):
    """The language model that is both the leader and, with its adapter off, the SFT reference."""

    name_or_path: str = Field(description="'smollm2-135m', 'gemma3-270m' (embedded), a folder, or a hub id")
    revision: str | None = None
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of frozen weights and of matrix products in training; without lora all weights are float32"
    )
    scoring_dtype: Literal["float32", "auto"] = Field(
        "float32", description="of the passes that give log-probabilities, hence margins; 'auto' is that of the weights"
    )
    attn_implementation: str | None = None
    quantization: Literal["nf4"] | None = Field(None, description="4-bit frozen weights: lora, CUDA and bitsandbytes")
    lora: LoraParams | None = Field(None, description="null trains all weights")

    @model_validator(mode="after")
    def _quantized_cannot_be_trained_or_widened(self) -> "ModelParams":
        if self.quantization and self.lora is None:
            raise ValueError("quantization needs model.lora: 4-bit weights cannot be trained")
        if self.quantization and self.scoring_dtype != "auto":
            raise ValueError("quantization needs model.scoring_dtype: auto: 4-bit weights multiply in 16 bits")
        return self


class DataParams(Section):
    """Where prompts and seed labels come from, and how many go where."""

    source: str = Field(description="'builtin', a local .jsonl/.json/.parquet file, or a hub dataset id")
    split: str = "train"
    revision: str | None = Field(None, description="commit, tag or branch of a hub dataset; null: its newest commit")
    bad_rows: Literal["raise", "drop"] = Field("raise", description="of published data that one cannot correct")
    n_seed: Count = Field(description="prompts whose pairs are labelled by the judge or by people")
    n_seed_samples: int = Field(2, ge=2, description="answers per seed prompt")
    choose_seed: Literal["best-worst", "random", "aepo"] = Field(
        "best-worst", description="which of the answers the judge compares: all of them, or two"
    )
    seed_selection: Literal["random", "farthest-point"] = Field("random", description="which prompts to label")
    label_noise: Share = Field(0.0, description="share of the seed labels to flip")
    n_calibration: int = Field(
        0, ge=0, description="labelled prompts kept out of training, for the calibrated radius and mode flips"
    )
    n_prompts: list[Count] = Field(description="prompts of each round; none for seed DPO alone")
    n_evaluation: Count = Field(description="held-out prompts; never trained on, the same for every seed")
    held_out_forms: int = Field(
        0, ge=0, description="forms all of whose prompts are kept for the evaluation; 0: its prompts share forms"
    )
    shuffle_seed: int = 42
    reshuffle: bool = Field(False, description="let the run's seed draw its own seed and round prompts")


class GenerationParams(Section):
    """Sampling of responses; names as in `transformers.GenerationConfig`."""

    engine: Literal["transformers", "vllm"] = Field("transformers", description="'vllm' needs a GPU and vLLM")
    temperature: Positive = 0.7
    max_new_tokens: Count = 300
    max_prompt_length: Count = 512
    batch_size: Count = 64


class GoldParams(Section):
    """The simulated user: sentiment less a penalty per word past a limit."""

    word_limit: Count = 30
    word_penalty: float = Field(0.02, ge=0)


class AnnotationParams(Section):
    """Who ranks the policy's answers: its own implicit reward, or for comparison an external judge."""

    judge: Literal["implicit", "sentiment", "gold", "external"] = Field(
        "implicit",
        description="'sentiment' is the gold user without its dislike of words, 'gold' the gold user, 'external' "
        "the section judge",
    )
    n_samples: int = Field(2, ge=2, description="answers to a prompt; paper: 2")
    choose: Literal["best-worst", "random", "aepo", "min-margin", "max-margin"] = Field(
        "best-worst", description="which of them become the pair, margins being differences of implicit rewards"
    )
    length_penalty: Literal["none", "balanced"] = Field(
        "none", description="balanced: what makes chosen and rejected answers equally long on average, as in DICE"
    )

    @property
    def name(self) -> str:
        """Names the way of annotation among others, such as `implicit` and, of 8 answers, `implicit-8-aepo`."""
        kinds = [kind for kind in (self.choose, self.length_penalty) if kind not in ("best-worst", "none")]
        return "-".join([self.judge, *([str(self.n_samples)] if self.n_samples != 2 or kinds else []), *kinds])


class RangeRule(Section):
    """The window [min - tau, max + tau] of the margins."""

    rule: Literal["range"] = "range"
    tau: float = Field(0.1, ge=0, description="in margin units")


class QuantileRule(Section):
    """The window between the q and 1 - q quantiles of the margins."""

    rule: Literal["quantile"]
    q: float = Field(0.01, ge=0, lt=0.5)


class CalibratedRule(Section):
    """The radius that `data.n_calibration` labelled pairs imply: their error rate, or for flips how few they are."""

    rule: Literal["calibrated"]


class ShiftRule(Section):
    """The distance between this round's margins and the last round's."""

    rule: Literal["shift"]
    first: float = Field(0.01, ge=0, description="radius of round 1, which has no round before it")


class FollowerParams(Section):
    """The adversary: a Wasserstein-1 ball around the margins or, in mode flips, a ball around flip probabilities."""

    radius: Annotated[float, Field(ge=0)] | CalibratedRule | ShiftRule = Field(
        0.01, description="mean transport per pair, in margin units, or a rule"
    )
    flip_radius: Annotated[float, Field(ge=0)] | CalibratedRule = Field(
        0.01, description="of mode flips: mean divergence per pair, in nats, or how far the calibration may be off"
    )
    support: RangeRule | QuantileRule | tuple[float, float] = RangeRule()
    n_pieces: int | None = Field(None, ge=2, description="tangents K of the loss; null: the logistic loss itself")
    group_size: Count | None = Field(None, description="pairs G that share a budget; null: all pairs of the round")


def _a_mode(name: str) -> str:
    if name not in MODES:
        raise ValueError(f"should be one of {', '.join(repr(mode) for mode in MODES)}")
    return name


class LeaderParams(TrainingParams):
    """The policy's update: how the worst case enters it, or which rival replaces it."""

    mode: Annotated[str, AfterValidator(_a_mode)] = Field(
        "transport", description="an entry of `sgpo_lib.leader.modes.MODES`"
    )
    reference: Literal["previous", "initial"] = "previous"
    accumulate: bool = Field(False, description="train round t on the pairs of rounds 1..t")
    replay: float = Field(
        0.0, ge=0, lt=1, description="share of a round's rows that are pairs of the labelled seed, in place of its own"
    )
    shuffle: int = Field(0, ge=0, description="another order of the rows and nothing else: a placebo")
    label_smoothing: float = Field(
        0.1, gt=0, lt=0.5, description="share of wrong labels that spa, label-smoothing and robust assume"
    )
    dr_beta: Positive = Field(1.0, description="Dr. DPO's beta': the smaller, the more it trusts pairs of low loss")
    kl_temperature: Positive = Field(
        0.05, description="KLDPO's tau: the smaller, the more it trusts pairs of high loss"
    )
    hoelder_gamma: Positive = Field(0.5, description="Hölder-DPO's gamma: the larger, the sooner a pair is an outlier")

    @property
    def faces_follower(self) -> bool:
        """Whether this mode trains on a worst case."""
        return MODES[self.mode].faces_follower


class EvaluationParams(Section):
    """Answers and intervals of the evaluation."""

    n_samples: Count = Field(1, description="answers of each policy to a held-out prompt; win rates are over all pairs")
    match_kl: list[Positive] = Field([], description="nats to the SFT model to which policies are scaled besides")
    rounds: Literal["all", "last"] = Field("all", description="whose policies answer the held-out prompts")
    confidence: float = Field(0.95, gt=0, lt=1)
    n_bootstrap: Count = 10_000


class Params(Section):
    """Everything one run is asked to do. `name` and `root` are where the file was found."""

    name: str
    root: Path = Field(exclude=True)
    output_dir: str = Field("runs", exclude=True)

    model: ModelParams
    data: DataParams
    beta: Positive = 0.1
    generation: GenerationParams = GenerationParams()
    gold: GoldParams | None = GoldParams()
    annotation: AnnotationParams = AnnotationParams()
    judge: LLMJudgeParams | RewardModelParams | None = Field(None, description="ranks for iter-dpo, and evaluates")
    seed_dpo: SeedTrainingParams
    follower: FollowerParams = FollowerParams()
    leader: LeaderParams
    evaluation: EvaluationParams = EvaluationParams()

    @model_validator(mode="after")
    def _fit_together(self) -> "Params":
        if isinstance(self.follower.radius, CalibratedRule) and not self.data.n_calibration:
            raise ValueError("follower.radius {rule: calibrated} needs labelled pairs: set data.n_calibration")
        if self.data.n_calibration and self.data.label_noise >= 0.5:
            raise ValueError("data.n_calibration needs data.label_noise below 0.5: at half, labels say nothing")
        obstacle = MODES[self.leader.mode].obstacle(self)
        if obstacle:
            raise ValueError(f"leader.mode {self.leader.mode} {obstacle}")
        if self.annotation.length_penalty != "none" and self.annotation.judge != "implicit":
            raise ValueError("annotation.length_penalty balances implicit rewards: set annotation.judge: implicit")
        if self.annotation.judge in ("sentiment", "gold") and self.gold is None:
            raise ValueError(f"annotation.judge {self.annotation.judge} needs a gold user: set gold")
        longest = self.generation.max_prompt_length + self.generation.max_new_tokens
        trained = {"seed_dpo": self.seed_dpo} if self.gold else {}
        for name, training in (trained | ({"leader": self.leader} if self.data.n_prompts else {})).items():
            if longest > training.max_length:
                raise ValueError(
                    f"{name}.max_length {training.max_length} is less than generation.max_prompt_length + "
                    f"max_new_tokens = {longest}, so that answers could be sampled and not be trained on: raise the "
                    "one or lower the others"
                )
        if self.evaluation.match_kl and (self.model.lora is None or self.generation.engine != "transformers"):
            raise ValueError(
                "evaluation.match_kl needs model.lora, because only an adapter can be scaled, and generation.engine: "
                "transformers, because vLLM serves adapters as they were trained"
            )
        if isinstance(self.judge, LLMJudgeParams) and re.search(r"[@?#]", self.judge.url):
            raise ValueError(  # a message of its own, because others repeat the value
                "judge.url must be a plain address such as http://localhost:8000/v1: what it holds ends up in records, "
                "so put a key into the environment variable that judge.api_key_variable names"
            )
        if isinstance(self.judge, LLMJudgeParams) and not KEY_VARIABLE.fullmatch(self.judge.api_key_variable):
            raise ValueError(
                "judge.api_key_variable must name an environment variable that ends in _API_KEY or _TOKEN, such as "
                "OPENAI_API_KEY; what it is now is not shown, because it may be a key"
            )
        if self.annotation.judge == "external" and self.judge is None:
            raise ValueError(
                "annotation.judge external needs a judge: set judge, such as {kind: llm, url: ..., model: ...}"
            )
        return self

    @property
    def n_rounds(self) -> int:
        """Number of self-annotation rounds T."""
        return len(self.data.n_prompts)

    def flat(self) -> dict[str, Any]:
        """The values as `{dotted key: JSON value}`."""
        return flatten(self.model_dump(mode="json", exclude={"name"}))


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested sections as `{dotted key: value}`."""
    if isinstance(values, dict) and values:
        rows: dict[str, Any] = {}
        for key, value in values.items():
            rows |= flatten(value, f"{prefix}.{key}" if prefix else key)
        return rows
    return {prefix: values}
