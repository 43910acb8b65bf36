"""The labelled seed: which prompts get a label, and the pairs that seed DPO and the calibration read."""

import pandas as pd

from sgpo_lib import annotation, data
from sgpo_lib.policy.model import Policy
from sgpo_lib.policy.scoring import embed
from sgpo_lib.runs.step import Step
from sgpo_lib.runs.store import read_parquet


def choose_prompts(step: Step, policy: Policy) -> data.Splits:
    """Split the prompts of the run's data, and write which are labelled to `prompts.parquet`; of a finished step, read.

    Parameters
    ----------
    step : `seed_dpo`.
    policy : the SFT model; `data.seed_selection: farthest-point` asks it which prompts are alike.

    Raises
    ------
    ValueError : if the data has fewer prompts than the params ask for.
    """
    params = step.run.params
    longest = params.generation.max_prompt_length
    labelled = step.load("prompts.parquet") if step.finished else None
    splits = data.prepare(
        params.data, params.root, step.run.seed, lambda prompts: embed(policy, prompts, longest), labelled
    )
    step.save("prompts.parquet", splits.labelled)
    return splits


def label_seed(step: Step, policy: Policy, splits: data.Splits) -> pd.DataFrame:
    """Return the labelled seed, a share `data.label_noise` of it flipped, and write it to `pairs.parquet`.

    Answers sampled before a kill are taken from `step.shards`, and the pairs of a finished step as they are.

    Returns
    -------
    DataFrame, a row per pair: see `sgpo_lib.annotation.labelled`; with label noise also `flipped`.

    Raises
    ------
    ValueError : as `sgpo_lib.annotation.labelled`, where nobody can label the prompts or a pair is too long.
    """
    if step.finished:
        return step.load("pairs.parquet")
    params = step.run.params
    with step.timed("generate"):
        pairs = annotation.labelled(policy, splits.seed, params, step.seed, step.shards)
    if params.data.label_noise:
        pairs = data.flip_labels(pairs, params.data.label_noise, step.seed)
    step.save("pairs.parquet", pairs)
    return pairs


def label_calibration(step: Step, policy: Policy, splits: data.Splits) -> pd.DataFrame:
    """Return the pairs kept for calibration, labelled and flipped as the seed is; written to `calibration.parquet`.

    Each is of as many answers as self-annotation samples, and chosen of them alike, so that the policy's errors on them
    are those it will make. Margins, though, are not known yet: where they choose, best and worst are taken.

    Returns
    -------
    DataFrame, a row per pair, as `label_seed` gives it, always with `flipped`.
    """
    if step.finished:
        return step.load("calibration.parquet")
    params, seed = step.run.params, step.seed + 1  # another draw than the seed's
    with step.timed("generate"):
        rule = params.annotation.choose if params.annotation.choose in ("random", "aepo") else "best-worst"
        asking = (seed, step.shards, params.annotation.n_samples, rule)
        pairs = annotation.labelled(policy, splits.calibration, params, *asking)
    pairs = data.flip_labels(pairs, params.data.label_noise, seed)
    step.save("calibration.parquet", pairs)
    return pairs


def label_budget(step: Step) -> int:
    """Return what the labels in a step's draft cost, for training and calibration together.

    In comparisons of two answers, or scores of single ones where more than two competed (`annotation.labelled`); a pair
    that people labelled counts as one comparison.
    """
    files = [step.draft / f"{name}.parquet" for name in ("pairs", "calibration")]
    tables = [read_parquet(file) for file in files if file.exists()]
    return sum(int(pairs["n_comparisons"].sum()) if "n_comparisons" in pairs else len(pairs) for pairs in tables)
