"""Two of anything, side by side: write the study of two methods or settings that are named in a line each.

    python -m sgpo_lib.runs.compare "self-dpo" "ssapo {follower.radius: 0.3}"

A line is a method and, in braces, what differs from the params file. The study is written to `runs/studies/`, its
path printed; `make compare A=... B=...` runs it too. Without a primary contrast settled beforehand all that comes out
is exploratory; docs/studies.md says how to write a study that can settle something.
"""

import argparse
import re
import sys
from pathlib import Path

import yaml

from sgpo_lib.params.files import as_overrides
from sgpo_lib.runs.step import Run
from sgpo_lib.runs.store import replacing
from sgpo_lib.runs.study import Study, Variant, find_study


def variant_of(line: str) -> Variant:
    """Read a method and its overrides off a line such as "ssapo {follower.radius: 0.3}".

    Raises
    ------
    ValueError : if the line is not a method with overrides in braces.
    """
    found = re.fullmatch(r"\s*([\w.+-]+)\s*(\{.*\})?\s*", line)
    if not found:
        raise ValueError(f"{line!r} is no method with settings, such as 'ssapo {{follower.radius: 0.3}}'.")
    method, settings = found.groups()
    overrides = as_overrides(settings) or {}
    label = "+".join(f"{key}-{value}" for key, value in overrides.items())
    label = re.sub(r"[^A-Za-z0-9._+-]+", "-", label)[:90].strip("-")
    return Variant(method=f"{method}+{label}" if label else method, name=line.strip(), overrides=overrides)


def write_study(first: str, second: str, params_file: str, seeds: list[int]) -> Path:
    """Write the study of two lines beside the runs of the params file; the first is what the second is held against.

    Raises
    ------
    ValueError : if a line cannot be run, or both are the same.
    """
    variants = [variant_of(first), variant_of(second)]
    name = "-vs-".join(variant.method for variant in variants)
    study = Study(name=name, params=params_file, seeds=seeds, baselines=[variants[0].label], variants=variants)
    run, _ = (Run.open(params_file, seeds[0], variant.method, variant.overrides) for variant in variants)
    path = run.params.root / run.params.output_dir / "studies" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    values = study.model_dump(exclude={"name"}, exclude_defaults=True)
    with replacing(path) as temporary:
        temporary.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    find_study(path)
    return path


def main() -> None:
    """Read the command line, write the study, print its path."""
    parser = argparse.ArgumentParser(prog="python -m sgpo_lib.runs.compare", description=__doc__.splitlines()[0])
    parser.add_argument("first")
    parser.add_argument("second")
    parser.add_argument("--params", default="params/quick.yaml")
    parser.add_argument("--seeds", default="0")
    asked = parser.parse_args()
    try:
        seeds = [int(seed) for seed in asked.seeds.split(",")]
        print(write_study(asked.first, asked.second, asked.params, seeds))
    except (ValueError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
