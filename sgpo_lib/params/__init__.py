"""What a run is asked to do: typed sections, the methods and what they set, and the YAML files that hold them.

This room knows names, types and bounds of values, and which of them exclude each other. It knows nothing of what
the values are used for.
"""

from sgpo_lib.params.files import as_overrides, default_of, find_file, load_params
from sgpo_lib.params.methods import METHODS
from sgpo_lib.params.schema import (
    KEY_VARIABLE,
    AnnotationParams,
    CalibratedRule,
    DataParams,
    EvaluationParams,
    FollowerParams,
    GenerationParams,
    GoldParams,
    LeaderParams,
    LLMJudgeParams,
    LoraParams,
    ModelParams,
    Params,
    QuantileRule,
    RangeRule,
    RewardModelParams,
    ShiftRule,
)
from sgpo_lib.params.training import TrainingParams

__all__ = [
    "KEY_VARIABLE",
    "METHODS",
    "AnnotationParams",
    "CalibratedRule",
    "DataParams",
    "EvaluationParams",
    "FollowerParams",
    "GenerationParams",
    "GoldParams",
    "LLMJudgeParams",
    "LeaderParams",
    "LoraParams",
    "ModelParams",
    "Params",
    "QuantileRule",
    "RangeRule",
    "RewardModelParams",
    "ShiftRule",
    "TrainingParams",
    "as_overrides",
    "default_of",
    "find_file",
    "load_params",
]
