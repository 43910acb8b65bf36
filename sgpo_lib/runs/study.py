"""A study: which runs are compared with each other, and what was settled before any of them was made.

A study file is YAML in `params/studies/`: a params file, seeds, variants (each a method with overrides), and the
design: one primary contrast, and the numbers of seeds at which one may look at it. Only that contrast can be confirmed.
Variants with the same params file and method are the same runs in every study, and are run once. This module says what
to run, not what came out.
"""

import difflib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sgpo_lib.params import strict_yaml
from sgpo_lib.params.files import as_overrides, find_file
from sgpo_lib.params.methods import METHODS
from sgpo_lib.params.section import Count, Positive
from sgpo_lib.runs.step import Run


class Variant(BaseModel):
    """One method as a study runs it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str = Field(description="a method, with a label where overrides make it another: 'ssapo+radius-0.1'")
    name: str = Field("", description="in tables and figures; the method's where empty")
    group: str = Field("", description="variants of one group are compared with that group's baselines")
    params: str = Field("", description="a params file of its own, where the seed differs too")
    n_labels: Count | None = Field(None, description="labels it spends; of method dpo: a point of the label curve")
    overrides: dict[str, Any] = {}

    _accept_text = field_validator("overrides", mode="before")(as_overrides)

    @property
    def label(self) -> str:
        """What tables and figures call it, within its group."""
        return self.name or self.method

    @property
    def full_name(self) -> str:
        """What a design calls it: its label, after its group where it has one."""
        return f"{self.group}: {self.label}" if self.group else self.label


class Primary(BaseModel):
    """The one contrast that a study can confirm: last policy against last policy."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    treatment: str = Field(description="a variant, as 'group: name' where it has a group")
    control: list[str] = Field(min_length=1, description="a variant, or several, for which Holm's method adjusts")
    quantity: Literal[
        "gold_reward_vs_sft",
        "win_rate",
        "length_controlled_win_rate",
        "preference_accuracy",
        "length_balanced_accuracy",
    ] = "gold_reward_vs_sft"
    at_kl: Positive | None = Field(None, description="nats, one of evaluation.match_kl; null: as trained")
    test: Literal["difference", "non-inferiority"] = "difference"

    @field_validator("control", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, control: Any) -> Any:
        return [control] if isinstance(control, str) else control


class Study(BaseModel):
    """Variants, each run with every seed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    title: str = ""
    claim: str = Field("", description="what the paper says, with its table or figure")
    params: str
    seeds: list[int] = Field(min_length=1)
    primary: Primary | None = Field(None, description="without one, all that comes out is exploratory")
    looks: list[int] = Field([], description="numbers of seeds, the first so many, at which the primary may be tested")
    equivalence: Positive = Field(0.03, description="differences below this are none worth having")
    baselines: list[str] = Field([], description="names of variants that all others of the group are compared with")
    variants: list[Variant] = Field(min_length=1)

    @model_validator(mode="after")
    def _is_consistent(self) -> "Study":
        runs = [(self.params_of(variant), variant.method) for variant in self.variants]
        if len(set(runs)) < len(runs):
            raise ValueError("two variants share a params file and a method, so they would share a folder: label one")
        names = [variant.full_name for variant in self.variants]
        if len(set(names)) < len(names):
            raise ValueError("two variants of one group share a name")
        unknown = {variant.method.split("+")[0] for variant in self.variants} - set(METHODS)
        if unknown:
            raise ValueError(f"there is no method {', '.join(sorted(unknown))}; there are: {', '.join(METHODS)}")
        missing = set(self.baselines) - {variant.label for variant in self.variants}
        if missing:
            raise ValueError(f"the baselines {', '.join(sorted(missing))} are not among the variants' names")
        return self

    @model_validator(mode="after")
    def _has_a_design_that_it_can_follow(self) -> "Study":
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("a seed is named twice, and would count as two runs")
        if not self.primary:
            if self.looks:
                raise ValueError("looks without a primary contrast: say what is looked at")
            return self
        names = [variant.full_name for variant in self.variants]
        for name in (self.primary.treatment, *self.primary.control):
            if name not in names:
                near = difflib.get_close_matches(name, names, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names)}"
                raise ValueError(f"the primary contrast names {name!r}, which is no variant; {hint}")
        if self.primary.treatment in self.primary.control:
            raise ValueError(f"the primary contrast holds {self.primary.treatment!r} against itself")
        if self.looks != sorted(set(self.looks)) or not self.looks or self.looks[0] < 2:
            raise ValueError(
                f"looks are {self.looks}, but must be rising numbers of seeds of at least 2, such as [10, 20]: a "
                "primary contrast is tested at planned looks only"
            )
        if self.looks[-1] != len(self.seeds):
            raise ValueError(f"the last look is at {self.looks[-1]} seeds, but there are {len(self.seeds)} of them")
        return self

    def params_of(self, variant: Variant) -> str:
        """Return the params file of a variant."""
        return variant.params or self.params

    @property
    def root(self) -> Path:
        """The folder that `figures/` and runs are relative to."""
        return self.run(self.variants[0], self.seeds[0]).params.root

    def run(self, variant: Variant, seed: int) -> Run:
        """Open one run of the study; creates nothing."""
        return Run.open(self.params_of(variant), seed, variant.method, variant.overrides)

    def first(self, n_seeds: int | None) -> "Study":
        """Return the study with its first seeds only, for a look before the last; the design stays."""
        return self.model_copy(update={"seeds": self.seeds[:n_seeds]})


def find_study(path: str | Path) -> Study:
    """Read and validate a study file; its name is the file's.

    Parameters
    ----------
    path : a relative one is looked for in the working directory and then in its parents.

    Raises
    ------
    FileNotFoundError, ValueError : naming the file and what is wrong with it.
    """
    found = find_file(Path(path), "study")
    values = strict_yaml.read(found)
    try:
        return Study(name=found.stem, **values)
    except ValidationError as error:
        listing = "\n  ".join(_problem(each) for each in error.errors())
        raise ValueError(f"{found} is not a study:\n  {listing}") from None
    except TypeError as error:
        raise ValueError(f"{found} is not a study: {error}") from None


def _problem(error: dict[str, Any]) -> str:
    """Say one of pydantic's errors in a reader's words."""
    *sections, key = error["loc"] or ("",)
    if error["type"] == "extra_forbidden":
        owner = next((kind for name, kind in (("primary", Primary), ("variants", Variant)) if name in sections), Study)
        near = difflib.get_close_matches(str(key), owner.model_fields, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(owner.model_fields)}"
        return f"there is no key '{'.'.join(map(str, error['loc']))}'; {hint}"
    where = ".".join(str(part) for part in error["loc"])
    return f"'{where}': {error['msg']}" if where else error["msg"].removeprefix("Value error, ")


def study_of(
    params_file: str, seeds: list[int], methods: list[str], overrides: dict[str, Any] | str | None = None
) -> Study:
    """Make the study that has no file: methods with the same params and overrides, compared with the first one."""
    variants = [Variant(method=method, overrides=overrides) for method in methods]
    return Study(name=Path(params_file).stem, params=params_file, seeds=seeds, baselines=methods[:1], variants=variants)
