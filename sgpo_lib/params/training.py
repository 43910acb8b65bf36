"""One DPO training, as `trl.DPOConfig` names it, with the names that its schedulers, optimisers and trackers have."""

from typing import Any, Literal

from pydantic import Field, model_validator

from sgpo_lib.params.section import Count, Positive, Section

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


class TrainingParams(Section):
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


class SeedTrainingParams(TrainingParams):
    """Seed DPO, which may go on until the policy is as far from the SFT model as one that had more than the seed."""

    target_kl: Positive | None = Field(
        None,
        description="nats to the SFT model before which training does not end; its learning rate is then constant",
    )
    max_epochs: Count = Field(40, description="epochs after which it ends whatever its KL")

    @model_validator(mode="before")
    @classmethod
    def _by_a_constant_rate(cls, values: Any) -> Any:
        open_end = isinstance(values, dict) and values.get("target_kl") is not None
        return {"lr_scheduler_type": "constant"} | values if open_end else values

    @model_validator(mode="after")
    def _has_no_end_to_plan_for(self) -> "SeedTrainingParams":
        if self.target_kl is not None and self.lr_scheduler_type != "constant":
            raise ValueError(
                f"target_kl needs lr_scheduler_type: constant, because {self.lr_scheduler_type} lowers the learning "
                "rate towards the end of training, which nobody knows before it is there"
            )
        if self.target_kl is not None and self.num_train_epochs > self.max_epochs:
            raise ValueError("max_epochs must be at least num_train_epochs")
        return self

    def options(self) -> dict[str, Any]:
        """As for any training; with `target_kl` of the longest that it may become."""
        longest = {} if self.target_kl is None else {"num_train_epochs": self.max_epochs}
        return super().options() | longest
