"""A study: which runs are compared with each other. It says what to run, not what came out.

A study file is YAML in `params/studies/`: a params file, seeds, and variants, each a method with overrides.
Variants with the same params file and method are the same runs in every study, and are run once.
"""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sgpo_lib.params import strict_yaml
from sgpo_lib.params.files import as_overrides, find_file
from sgpo_lib.params.methods import METHODS
from sgpo_lib.runs.step import Run


class Variant(BaseModel):
    """One method as a study runs it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str = Field(description="a method, with a label where overrides make it another: 'ssapo+radius-0.1'")
    name: str = Field("", description="in tables and figures; the method's where empty")
    group: str = Field("", description="variants of one group are compared with that group's baselines")
    params: str = Field("", description="a params file of its own, where the seed differs too")
    overrides: dict[str, Any] = {}

    _accept_text = field_validator("overrides", mode="before")(as_overrides)


class Study(BaseModel):
    """Variants, each run with every seed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    title: str = ""
    claim: str = Field("", description="what the paper says, with its table or figure")
    params: str
    seeds: list[int] = Field(min_length=1)
    baselines: list[str] = Field([], description="methods that every other variant of the group is compared with")
    variants: list[Variant] = Field(min_length=1)

    @model_validator(mode="after")
    def _is_consistent(self) -> "Study":
        runs = [(self.params_of(variant), variant.method) for variant in self.variants]
        if len(set(runs)) < len(runs):
            raise ValueError("two variants share a params file and a method, so they would share a folder: label one")
        names = [(variant.group, self.label(variant)) for variant in self.variants]
        if len(set(names)) < len(names):
            raise ValueError("two variants of one group share a name")
        methods = [(variant.group, variant.method) for variant in self.variants]
        if len(set(methods)) < len(methods):
            raise ValueError("two variants of one group share a method, so a baseline would be ambiguous: label one")
        unknown = {variant.method.split("+")[0] for variant in self.variants} - set(METHODS)
        if unknown:
            raise ValueError(f"there is no method {', '.join(sorted(unknown))}; there are: {', '.join(METHODS)}")
        missing = set(self.baselines) - {variant.method for variant in self.variants}
        if missing:
            raise ValueError(f"the baselines {', '.join(sorted(missing))} are not among the variants' methods")
        return self

    def params_of(self, variant: Variant) -> str:
        """Return the params file of a variant."""
        return variant.params or self.params

    @property
    def root(self) -> Path:
        """The folder that `figures/` and runs are relative to."""
        return self.run(self.variants[0], self.seeds[0]).params.root

    @staticmethod
    def label(variant: Variant) -> str:
        """Return what tables and figures call a variant."""
        return variant.name or variant.method

    def run(self, variant: Variant, seed: int) -> Run:
        """Open one run of the study; creates nothing."""
        return Run.open(self.params_of(variant), seed, variant.method, variant.overrides)


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
    except (ValidationError, TypeError) as error:
        raise ValueError(f"{found} is not a study: {error}") from None


def study_of(
    params_file: str, seeds: list[int], methods: list[str], overrides: dict[str, Any] | str | None = None
) -> Study:
    """Make the study that has no file: methods with the same params and overrides, compared with the first one."""
    variants = [Variant(method=method, overrides=overrides) for method in methods]
    return Study(name=Path(params_file).stem, params=params_file, seeds=seeds, baselines=methods[:1], variants=variants)
