"""A policy of a finished run as a folder that plain PEFT or transformers loads elsewhere, with its model card.

    python -m sgpo_lib.steps.export params/smollm2-135m.yaml --method ssapo --round 3 --into my-policy

The run is read and never changed.
"""

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from sgpo_lib.params.files import as_overrides
from sgpo_lib.policy.export import merge, push_to_hub, refuse_filled
from sgpo_lib.runs.step import Run, Step
from sgpo_lib.runs.store import replacing
from sgpo_lib.steps.card import model_card


def export(
    step: Step,
    into: Path,
    merged: bool = False,
    place: str = "path/of/this/folder",
    overrides: dict[str, Any] | None = None,
) -> None:
    """Write the policy of a complete step, its tokenizer and its card; the folder appears whole or not at all.

    Parameters
    ----------
    step : `seed_dpo` or `leader`.
    into : new or empty.
    merged : fold an adapter into its base, in float32; a policy whose weights were all trained is whole as it is.
    place : where the card's reader loads it from.
    overrides : that the run was opened with, for the card.

    Raises
    ------
    FileExistsError : if `into` holds something.
    FileNotFoundError, ValueError : if the step, or one that it was made from, is missing, damaged, stale, or made with
        other params.
    """
    into = Path(into)
    refuse_filled(into)
    step.check()
    policy = step.load("policy")
    is_adapter = (policy / "adapter_config.json").exists()
    with replacing(into.absolute()) as temporary:
        if merged and is_adapter:
            merge(policy, temporary)
        else:
            shutil.copytree(policy, temporary)
        card = model_card(step, merged or not is_adapter, place, overrides or {})
        (temporary / "README.md").write_text(card, encoding="utf-8")


def main() -> None:
    """Read the command line, write the folder, and push it where asked."""
    parser = argparse.ArgumentParser(prog="python -m sgpo_lib.steps.export", description=__doc__.splitlines()[0])
    parser.add_argument("params_file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--method", default="ssapo")
    parser.add_argument("--overrides", default="", help="JSON of dotted keys, where the run was made with some")
    parser.add_argument("--round", type=int, help="1, 2, ...; without it, the last, or of method dpo the seed's policy")
    parser.add_argument("--into", type=Path, required=True, help="a new or empty folder")
    parser.add_argument(
        "--merge", action="store_true", help="fold the adapter into its base: a whole model, in float32"
    )
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload it to a private repository of the hub (HF_TOKEN)")
    asked = parser.parse_args()
    try:
        overrides = as_overrides(asked.overrides)
        run = Run.open(asked.params_file, asked.seed, asked.method, overrides)
        number = asked.round if asked.round is not None else run.params.n_rounds
        step = run.step("leader", number) if run.rounds or asked.round is not None else run.step("seed_dpo")
        export(step, asked.into, asked.merge, asked.push or "path/of/this/folder", overrides)
        print(f"written to {asked.into}")
        if asked.push:
            print(f"pushed to {push_to_hub(asked.into, asked.push)}")
    except (OSError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
