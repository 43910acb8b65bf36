"""The labelled seed: which prompts get a label, and the pairs that seed DPO and the calibration read."""

import pandas as pd

from sgpo_lib import annotation, data
from sgpo_lib.policy.model import Policy
from sgpo_lib.policy.scoring import embed
from sgpo_lib.runs.step import Step


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

    Each is of as many answers as self-annotation samples, so that the policy's errors on them are those it will make.

    Returns
    -------
    DataFrame, a row per pair, as `label_seed` gives it, always with `flipped`.
    """
    if step.finished:
        return step.load("calibration.parquet")
    params, seed = step.run.params, step.seed + 1  # another draw than the seed's
    with step.timed("generate"):
        pairs = annotation.labelled(policy, splits.calibration, params, seed, step.shards, params.annotation.n_samples)
    pairs = data.flip_labels(pairs, params.data.label_noise, seed)
    step.save("calibration.parquet", pairs)
    return pairs
