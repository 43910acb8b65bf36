"""Which step is made by which notebook, what it reads, and what it leaves behind."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgpo_lib.data.sources import local_file
from sgpo_lib.params.schema import ShiftRule

if TYPE_CHECKING:
    from sgpo_lib.runs.step import Run

_SHARED = ["model", "data", "beta", "generation", "gold"]
# How the judge is reached, which its verdicts do not depend on: it may move and be asked faster.
_JUDGE_REACHED_BY = tuple(
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


@dataclass(frozen=True)
class Node:
    """A step's place among the others: what it is made by, what it reads, where it lies, with which params."""

    run: "Run"
    name: str
    round: int | None = None

    @property
    def owner(self) -> str:
        """The method whose folder holds the step: "dpo" for what all methods share.

        These are the seed, and the first round's pairs, which pi_0 makes alone. A run of one's own has its own of both.
        """
        shared = self.name == "seed_dpo" or (self.name == "annotation" and self.round == 1)
        return self.run.seed_only.method if shared else self.run.method

    @property
    def folder(self) -> Path:
        """Where the step's artefacts lie."""
        folder = self.run.folder / self.owner
        if self.name == "seed_dpo":
            return folder
        if self.name == "evaluation":
            return folder / "evaluation"
        if self.owner != self.run.method:
            return folder / f"round-1-{self.run.params.annotation.name}"
        return folder / f"round-{self.round}"

    @property
    def notebook(self) -> str:
        """Name of the notebook that makes this step."""
        return STEPS[self.name].notebook

    @property
    def record_file(self) -> Path:
        """The step's record; it exists exactly if the step is complete, and stays until another takes its place."""
        return self.folder / f"{self.name}.json"

    @property
    def data_file(self) -> Path | None:
        """The local file of prompts and labels, where the step reads one."""
        file = local_file(self.run.params.data.source, self.run.params.root)
        return file if file and "data" in STEPS[self.name].sections and file.is_file() else None

    @property
    def shards(self) -> Path:
        """Where finished parts of a long answer wait, until the step is complete, for a run that was killed."""
        return self.folder / f"{self.name}-shards"

    @cached_property
    def inputs(self) -> list["Node"]:
        """The steps that this one reads from."""
        step = self.run.step
        if self.name == "seed_dpo":
            return []
        before = step("seed_dpo") if self.round in (None, 1) else step("leader", self.round - 1)
        if self.name == "annotation":
            earlier = range(1, self.round) if self.run.params.leader.accumulate else []
            seed = [step("seed_dpo")] if self.round > 1 else []
            return [before, *seed, *(step("annotation", t) for t in earlier)]
        if self.name == "follower":
            compared = self.round > 1 and isinstance(self.run.params.follower.radius, ShiftRule)
            return [step("annotation", t) for t in ((self.round, self.round - 1) if compared else (self.round,))]
        if self.name == "leader":
            follower = [step("follower", self.round)] if self.run.params.leader.faces_follower else []
            seed = [step("seed_dpo")] if self.run.params.leader.replay and self.round > 1 else []
            return [before, step("annotation", self.round), *follower, *seed]
        if not self.run.rounds:
            return [step("seed_dpo")]
        return [self.run.seed_only.step("evaluation"), *(step("leader", t) for t in self.run.rounds)]

    @property
    def history(self) -> list["Node"]:
        """All steps that this one was made from, each once and the earliest first, and itself."""
        nodes: dict[Path, Node] = {}

        def visit(node: Node) -> None:
            for before in node.inputs:
                if before.record_file not in nodes:
                    visit(before)
            nodes.setdefault(node.record_file, node)

        visit(self)
        return list(nodes.values())

    @property
    def seed(self) -> int:
        """Random seed of this step: differs between run seeds, steps and rounds, is the same for all methods."""
        text = f"{self.run.seed}/{self.name}/{self.round}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])

    @property
    def label(self) -> str:
        """How to make this step, for messages; what all methods share is not made with every one of them."""
        where = "" if self.round is None else f" with round={self.round}"
        if self.name == "evaluation" and not self.run.rounds:
            where = f' with method="{self.run.method}"'
        return f"notebook {self.notebook}{where}"

    @property
    def params(self) -> dict[str, Any]:
        """The params that this step reads, as `{dotted key: value}`."""
        values = self.run.params.flat()
        mine = {
            k: v for k, v in values.items() if f"{k}.".startswith(tuple(f"{s}." for s in STEPS[self.name].sections))
        }
        if self.name == "seed_dpo":
            mine.pop("data.n_prompts")
            if self.run.params.data.n_calibration:  # whose pairs are made as self-annotation makes them
                mine |= {key: values[key] for key in ("annotation.n_samples", "annotation.choose")}
        elif self.round is not None and "data.n_prompts" in mine:
            mine["data.n_prompts"] = mine["data.n_prompts"][: self.round]
        if self.round == 1:
            mine.pop("leader.accumulate", None)
        asked = self.run.params
        judged = asked.annotation.judge == "external" if self.name == "annotation" else asked.gold is None
        unread = _JUDGE_REACHED_BY if judged else "judge."
        return {key: value for key, value in mine.items() if not f"{key}.".startswith(unread)}
