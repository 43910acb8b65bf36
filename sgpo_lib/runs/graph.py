"""Which step is made by which notebook, what it reads, and what it leaves behind."""

from dataclasses import dataclass

_SHARED = ["model", "data", "beta", "generation", "gold"]


# How the judge is reached, which its verdicts do not depend on: it may move and be asked faster.
JUDGE_REACHED_BY = tuple(
    f"judge.{name}." for name in ("url", "max_concurrency", "api_key_variable", "price_per_million", "max_tokens_name")
)


@dataclass(frozen=True)
class _Kind:
    notebook: str
    sections: tuple[str, ...]
    artefacts: tuple[str, ...]


STEPS = {
    "seed_dpo": _Kind(
        "01_seed_dpo",
        (*_SHARED, "seed_dpo"),
        ("prompts.parquet", "pairs.parquet", "training_log.parquet", "policy"),
    ),
    "annotation": _Kind(
        "02_self_annotation",
        (*_SHARED, "annotation", "judge", "leader.accumulate"),
        ("responses.parquet", "pairs.parquet"),
    ),
    "follower": _Kind("03_dro_reweighting", ("follower", "leader.mode", "leader.reference"), ("worst_case.parquet",)),
    "leader": _Kind("04_weighted_training", ("beta", "leader"), ("training_log.parquet", "policy")),
    "evaluation": _Kind(
        "05_evaluation",
        (*_SHARED, "judge", "evaluation"),
        ("responses.parquet", "judgements.parquet", "summary.json"),
    ),
}
"""What each step is made by, which params sections it reads, and what it leaves behind."""
