"""What a run is asked to do: typed, validated, one section per step of the method.

A params file is YAML. Its names are those of TRL, PEFT and transformers wherever these have one. A file
may say `extends: other.yaml` and then holds only what differs from that one.
This module knows nothing of what the values are used for.
"""

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticUndefined

from sgpo_lib import strict_yaml
from sgpo_lib.modes import MODES

UNPRINTABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")  # control characters, and halves of surrogate pairs

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]

# A params file may come from elsewhere, and the value of the variable that it names is sent away.
KEY_VARIABLE = re.compile(r"[A-Za-z0-9_]+_(API_KEY|TOKEN)")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _is_of_its_kind(cls, value: Any, info: ValidationInfo) -> Any:
        for part in value if isinstance(value, list | tuple) else [value]:
            if isinstance(part, bool) and cls.model_fields[info.field_name].annotation is not bool:
                raise ValueError("should not be a truth value")
            if isinstance(part, str) and UNPRINTABLE.search(part):
                raise ValueError("should be one line of valid Unicode text")
        return value


class LoraParams(_Section):
    """Low-rank adapter; names as in `peft.LoraConfig`."""

    r: Count = 16
    lora_alpha: Positive = 32
    lora_dropout: Share = 0.0
    target_modules: str | list[str] = "all-linear"


class ModelParams(_Section):
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


class DataParams(_Section):
    """Where prompts and seed labels come from, and how many go where."""

    source: str = Field(description="'builtin', a local .jsonl/.json/.parquet file, or a hub dataset id")
    split: str = "train"
    revision: str | None = Field(None, description="commit, tag or branch of a hub dataset; null: its newest commit")
    bad_rows: Literal["raise", "drop"] = Field("raise", description="of published data that one cannot correct")
    n_seed: Count = Field(description="prompts whose pairs are labelled by the judge or by people")
    n_seed_samples: int = Field(2, ge=2, description="answers per seed prompt; the judge picks best and worst")
    seed_selection: Literal["random", "farthest-point"] = Field("random", description="which prompts to label")
    label_noise: Share = Field(0.0, description="share of the seed labels to flip")
    n_calibration: int = Field(0, ge=0, description="labelled prompts kept out of training, for the calibrated radius")
    n_prompts: list[Count] = Field(description="prompts of each round; none for seed DPO alone")
    n_evaluation: Count = Field(description="held-out prompts; never trained on, the same for every seed")
    shuffle_seed: int = 42
    reshuffle: bool = Field(False, description="let the run's seed draw its own seed and round prompts")


class GenerationParams(_Section):
    """Sampling of responses; names as in `transformers.GenerationConfig`."""

    engine: Literal["transformers", "vllm"] = Field("transformers", description="'vllm' needs a GPU and vLLM")
    temperature: Positive = 0.7
    max_new_tokens: Count = 300
    max_prompt_length: Count = 512
    batch_size: Count = 64


class GoldParams(_Section):
    """The simulated user: sentiment less a penalty per word past a limit."""

    word_limit: Count = 30
    word_penalty: float = Field(0.02, ge=0)


class AnnotationParams(_Section):
    """Who ranks the policy's answers: its own implicit reward, or for comparison an external judge."""

    judge: Literal["implicit", "sentiment", "gold", "external"] = Field(
        "implicit",
        description="'sentiment' is the gold user without its dislike of words, 'gold' the gold user, 'external' "
        "the section judge",
    )


class LLMJudgeParams(_Section):
    """A language model behind an OpenAI-compatible endpoint; names as in `sgpo_lib.endpoint.Endpoint`."""

    kind: Literal["llm"]
    url: str
    model: str
    annotator: str = Field("alpaca_eval_clf_gpt4_turbo", description="whose prompt, of alpaca-eval's")
    max_tokens: Count = 8
    max_concurrency: Count = 8
    n_tries: Count = 3
    api_key_variable: str = Field("OPENAI_API_KEY", description="the environment's variable, never the key")
    price_per_million: tuple[float, float] | None = Field(None, description="of prompt and completion tokens")
    max_tokens_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    temperature: float | None = Field(0.0, ge=0, description="null leaves it to the server, as reasoning models want")
    max_unread: Share = Field(0.1, description="comparisons without a verdict that are borne, as ties; above it: stop")


class RewardModelParams(_Section):
    """A sequence classifier of transformers; `pairwise` reads two answers together."""

    kind: Literal["reward_model", "pairwise"]
    name_or_path: str
    revision: str | None = None
    batch_size: Count = 16
    max_length: Count = 4096


# Of the names in transformers, those that need no further arguments and no validation loss.
SCHEDULERS = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
)
# Of the names in transformers, those that need neither further arguments nor, but for bitsandbytes, a package.
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop")
BITSANDBYTES_OPTIMIZERS = (
    "adamw_8bit",
    "adamw_bnb_8bit",
    "ademamix",
    "ademamix_8bit",
    "lion_8bit",
    "lion_32bit",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
    "paged_ademamix_8bit",
    "paged_ademamix_32bit",
    "paged_lion_8bit",
    "paged_lion_32bit",
    "rmsprop_bnb",
    "rmsprop_bnb_8bit",
    "rmsprop_bnb_32bit",
)
# Of the names in transformers, those that are the name of the one package they need.
Tracker = Literal[
    "none",
    "all",
    "clearml",
    "codecarbon",
    "comet_ml",
    "dagshub",
    "dvclive",
    "mlflow",
    "neptune",
    "swanlab",
    "tensorboard",
    "trackio",
    "wandb",
]


class TrainingParams(_Section):
    """One DPO training; names as in `trl.DPOConfig`."""

    learning_rate: Positive
    num_train_epochs: Positive = 1
    per_device_train_batch_size: Count = 8
    gradient_accumulation_steps: Count = 1
    lr_scheduler_type: Literal[SCHEDULERS] = "linear"
    warmup_steps: float = Field(
        0, ge=0, description="below 1: share of all steps; the first step of a warm-up trains nothing"
    )
    max_length: Count = 1024
    max_grad_norm: Positive = 1.0
    weight_decay: float = Field(0.0, ge=0)
    optim: Literal[(*OPTIMIZERS, *BITSANDBYTES_OPTIMIZERS)] = "adamw_torch"
    gradient_checkpointing: bool = False
    logging_steps: Count = 1
    report_to: Tracker | list[Tracker] = "none"

    @property
    def packages(self) -> set[str]:
        """Names of the optional packages, as one imports them, that the trackers and the optimiser need."""
        trackers = [self.report_to] if isinstance(self.report_to, str) else self.report_to
        return {name for name in trackers if name not in ("none", "all")} | (
            {"bitsandbytes"} if self.optim in BITSANDBYTES_OPTIMIZERS else set()
        )

    def options(self) -> dict[str, Any]:
        """Return what `trl.DPOConfig` is given, without what sections that build on this one have besides."""
        return self.model_dump(include=set(TrainingParams.model_fields))


class RangeRule(_Section):
    """The window [min - tau, max + tau] of the margins."""

    rule: Literal["range"] = "range"
    tau: float = Field(0.1, ge=0, description="in margin units")


class QuantileRule(_Section):
    """The window between the q and 1 - q quantiles of the margins."""

    rule: Literal["quantile"]
    q: float = Field(0.01, ge=0, lt=0.5)


class CalibratedRule(_Section):
    """The radius that the labels' own error rate implies, read off `data.n_calibration` labelled pairs."""

    rule: Literal["calibrated"]


class ShiftRule(_Section):
    """The distance between this round's margins and the last round's."""

    rule: Literal["shift"]
    first: float = Field(0.01, ge=0, description="radius of round 1, which has no round before it")


class FollowerParams(_Section):
    """The adversary: a Wasserstein-1 ball around the empirical margin distribution."""

    radius: Annotated[float, Field(ge=0)] | CalibratedRule | ShiftRule = Field(
        0.01, description="mean transport per pair, in margin units, or a rule"
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

    mode: Annotated[str, AfterValidator(_a_mode)] = Field("transport", description="an entry of `sgpo_lib.modes.MODES`")
    reference: Literal["previous", "initial"] = "previous"
    accumulate: bool = Field(False, description="train round t on the pairs of rounds 1..t")
    label_smoothing: float = Field(
        0.1, gt=0, lt=0.5, description="share of wrong labels that spa, label-smoothing and robust assume"
    )
    dr_beta: Positive = Field(1.0, description="Dr. DPO's beta': the smaller, the more it trusts pairs of low loss")

    @property
    def faces_follower(self) -> bool:
        """Whether this mode trains on a worst case."""
        return MODES[self.mode].faces_follower


class EvaluationParams(_Section):
    """Intervals of the evaluation."""

    confidence: float = Field(0.95, gt=0, lt=1)
    n_bootstrap: Count = 10_000


_SELF = {"annotation.judge": "implicit"}
METHODS: dict[str, dict[str, Any]] = {
    "dpo": {},
    "iter-dpo": {"leader.mode": "dpo", "annotation.judge": "sentiment"},
    "iter-dpo-gold": {"leader.mode": "dpo", "annotation.judge": "gold"},
    "iter-dpo-external": {"leader.mode": "dpo", "annotation.judge": "external"},
} | {mode.method: _SELF | {"leader.mode": name} | mode.sets for name, mode in MODES.items()}
"""What each method sets, as dotted overrides: those of leader modes as `sgpo_lib.modes` has them.

`dpo` stops at the labelled seed: it has no rounds, whatever the params say. `self-dpo` trains on the
self-labels as they are, which is SSAPO at radius 0. `iter-dpo` has the pairs ranked by an external judge that
shares the gold user's taste in part, `iter-dpo-gold` by the gold user itself, a ceiling, and `iter-dpo-external` by
the section `judge`, such as PairRM.
"""


class Params(_Section):
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
    seed_dpo: TrainingParams
    follower: FollowerParams = FollowerParams()
    leader: LeaderParams
    evaluation: EvaluationParams = EvaluationParams()

    @model_validator(mode="after")
    def _fit_together(self) -> "Params":
        if isinstance(self.follower.radius, CalibratedRule) and not self.data.n_calibration:
            raise ValueError("follower.radius {rule: calibrated} needs labelled pairs: set data.n_calibration")
        obstacle = MODES[self.leader.mode].obstacle(self)
        if obstacle:
            raise ValueError(f"leader.mode {self.leader.mode} {obstacle}")
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
        return _flatten(self.model_dump(mode="json", exclude={"name"}))


def as_overrides(overrides: dict[str, Any] | str | None) -> dict[str, Any]:
    """Return overrides as a dict, also where they come as JSON or YAML text, as from `papermill -p overrides '{...}'`.

    Raises
    ------
    ValueError : they are no mapping of dotted keys to values.
    """
    try:
        values = strict_yaml.parse(overrides) if isinstance(overrides, str) else overrides
    except ValueError as error:
        raise ValueError(f"overrides {overrides!r} cannot be read: {error}.") from None
    values = {} if values is None else values
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ValueError(
            f'overrides must be dotted keys with their values, such as {{"follower.radius": 0.03}}, not {overrides!r}.'
        )
    return values


def load_params(
    params_file: str | Path, overrides: dict[str, Any] | str | None = None, method: str | None = None
) -> Params:
    """Read and validate a params file, with what the method sets and dotted-key overrides laid over it.

    Parameters
    ----------
    params_file : path of the YAML file. A relative path is looked for in the working directory and
        then in its parents, so that a notebook finds it from wherever it is run. The folder that holds
        its `params/` folder is the root that `output_dir` and local data files are relative to.
    overrides : e.g. ``{"follower.radius": 0.03}``, or the same as text.
    method : a key of `METHODS`. A file that says otherwise than the method is refused; overrides may.

    Raises
    ------
    FileNotFoundError, ValueError : naming the file, each offending key, and the nearest valid one.
    """
    path = find_file(Path(params_file), "params")
    root = next((parent.parent for parent in path.parents if parent.name == "params"), path.parent)
    values, files = _read(path)
    flat, preset = _flatten(values), METHODS[method] if method else {}
    contradicted = [
        f"'{key}' is {flat[key]!r}, but method {method} sets it to {value!r}: leave it out and ask for the method "
        "that sets what you want, or give it as an override."
        for key, value in preset.items()
        if flat.get(key, value) != value
    ]
    overrides = as_overrides(overrides)
    for key, value in (preset | overrides).items():
        _set(values, key, value)
    problems = _unknown_keys(values, [Params]) + contradicted
    if not problems:
        try:
            return Params(**{**values, "name": path.stem, "root": root})
        except ValidationError as error:
            problems = [_explain(item, files, preset | overrides) for item in error.errors()]
    listing = "\n  ".join(problems).encode(errors="backslashreplace").decode()
    raise ValueError(f"{path}{' with overrides' if overrides else ''} cannot be used:\n  {listing}")


def default_of(key: str) -> Any:
    """Return what a dotted key is where nobody sets it; None also where it has to be set, or there is no such key."""
    sections, value = [Params], None
    for name in key.split("."):
        field = next((section.model_fields[name] for section in sections if name in section.model_fields), None)
        if field is None:
            return None
        sections, value = _section_types(field.annotation), field.default
    return None if value is PydanticUndefined else value


def _read(path: Path, above: tuple[Path, ...] = ()) -> tuple[dict[str, Any], list[Path]]:
    """Read a YAML file and lay it over the one that it `extends`; also return the files read, the topmost first."""
    if path.resolve() in above:
        chain = " extends ".join(str(file) for file in (*above, path.resolve()))
        raise ValueError(f"{above[0]} extends itself: {chain}. Take one 'extends' out.")
    values = strict_yaml.read(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold sections such as 'model:' and 'data:', but holds {values!r}.")
    base = values.pop("extends", None)
    if base is None:
        return values, [path]
    if not isinstance(base, str) or UNPRINTABLE.search(base) or not (path.parent / base).is_file():
        raise ValueError(f"{path} extends {base!r}, but there is no such file in {path.parent}.")
    below, files = _read(path.parent / base, (*above, path.resolve()))
    return _laid_over(below, values), [path, *files]


def _laid_over(below: Any, above: Any) -> Any:
    """Sections are merged; anything else, and what follows a `rule`, is replaced."""
    if not (isinstance(below, dict) and isinstance(above, dict)) or "rule" in above:
        return above
    return below | {key: _laid_over(below.get(key), value) for key, value in above.items()}


def find_file(path: Path, kind: str) -> Path:
    """Find a file in the working directory or above it, so that notebooks find it from wherever they run.

    Raises
    ------
    FileNotFoundError : naming the files of its kind that there are.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / path).is_file():
            return (folder / path).resolve()
    beside = next(
        (f for f in ((folder / path).parent for folder in (here, *here.parents)) if any(f.glob("*.yaml"))), here
    )
    available = sorted(file.name for file in beside.glob("*.yaml"))
    hint = f" There are: {', '.join(available)}." if available else ""
    raise FileNotFoundError(f"No {kind} file {str(path)!r} in {here} or the folders above it.{hint}")


def _set(values: dict, key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        inner = values.get(section)
        values[section] = dict(inner) if isinstance(inner, dict) else {}
        values = values[section]
    values[last] = value


def _flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(values, dict) and values:
        rows: dict[str, Any] = {}
        for key, value in values.items():
            rows |= _flatten(value, f"{prefix}.{key}" if prefix else key)
        return rows
    return {prefix: values}


def _section_types(annotation: Any) -> list[type[_Section]]:
    if get_origin(annotation) in (Union, type(int | str)):
        return [kind for part in get_args(annotation) for kind in _section_types(part)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, _Section) else []


def _fields(sections: list[type[_Section]]) -> dict[str, list[type[_Section]]]:
    """Name -> the sections its value may be, over all alternatives of a section."""
    fields: dict[str, list[type[_Section]]] = {}
    for section in sections:
        for name, field in section.model_fields.items():
            fields.setdefault(name, []).extend(_section_types(field.annotation))
    if Params in sections:
        del fields["name"], fields["root"]
    return fields


def _keys(sections: list[type[_Section]], prefix: str = "") -> list[str]:
    keys = []
    for name, inner in _fields(sections).items():
        keys += [f"{prefix}{name}", *_keys(inner, f"{prefix}{name}.")]
    return keys


def _unknown_keys(values: dict, sections: list[type[_Section]], prefix: str = "") -> list[str]:
    fields = _fields(sections)
    problems = []
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        if key in fields:
            if isinstance(value, dict) and fields[key]:
                problems += _unknown_keys(value, fields[key], f"{dotted}.")
            continue
        near = difflib.get_close_matches(dotted, [f"{prefix}{name}" for name in fields], 1, 0.5)
        near = near or difflib.get_close_matches(dotted, _keys([Params]), 1, 0.3)
        problems.append(f"'{dotted}' is not a parameter" + (f"; did you mean '{near[0]}'?" if near else "."))
    return problems


def _explain(error: dict, files: list[Path], overridden: dict[str, Any]) -> str:
    names = [str(part) for part in error["loc"] if not (isinstance(part, str) and part[:1].isupper())]
    keys = [name for name in names if "[" not in name and name != "constrained-float"]
    where, message = ".".join(keys), error["msg"].removeprefix("Value error, ")
    if not where:  # a rule about several parameters names them itself
        return f"{message}."
    if error["type"] == "missing":
        return f"'{where}' is missing."
    place = "" if any(f"{where}.".startswith(f"{key}.") for key in overridden) else _place(keys, files)
    return f"'{where}' is {error['input']!r}: {message[0].lower()}{message[1:]}{place}."


def _place(keys: list[str], files: list[Path]) -> str:
    """Where the topmost file that sets the key does so; an item of a list is where the list is."""
    keys = [key for key in keys if not key.isdigit()]
    lines = ((file, strict_yaml.line_of(file, keys)) for file in files)
    return next((f" (line {line} of {file.name})" for file, line in lines if line), "")
