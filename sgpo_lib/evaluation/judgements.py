"""A study's raw numbers: one table with a row per judged answer, or labelled pair, of every run.

Everything that a study says is computed from this table, which it ships, so that anyone can compute it otherwise.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from pandas.api.typing import SeriesGroupBy

from sgpo_lib.evaluation.metrics import length_controlled_values
from sgpo_lib.runs.store import replacing
from sgpo_lib.runs.study import Study

QUANTITIES = {
    "gold_reward": ("gold reward", 3),
    "gold_reward_vs_sft": ("gold reward vs SFT", 3),
    "sentiment": ("sentiment", 3),
    "win_rate": ("win rate %", 1),
    "length_controlled_win_rate": ("LC win rate %", 1),
    "preference_accuracy": ("preference accuracy %", 1),
    "length_balanced_accuracy": ("length-balanced accuracy %", 1),
    "words": ("words", 1),
    "kl": ("KL to SFT (nats)", 1),
}
"""What is tabulated, with its heading and decimals."""

KEYS = ["group", "variant", "method", "seed", "policy", "is_final", "matched_kl"]
"""What says which policy of which run a row judges; `matched_kl` is NaN for a policy as trained."""


def judgements(study: Study) -> pd.DataFrame:
    """Collect what every run's evaluation judged.

    Returns
    -------
    DataFrame : the columns of `KEYS`, `prompt_id`, any `form` and `sample`, and what `sgpo_lib.evaluation.judge` says
        of the answer. Where people labelled held-out pairs there are rows for these too, with `margin` and
        `extra_characters`; what a row does not have is missing. What all methods share, the SFT model and seed DPO, is
        in the rows of each variant.

    Raises
    ------
    FileNotFoundError, ValueError : if a run is not complete or does not fit its params; names the notebook.
    """
    parts = []
    for variant in study.variants:
        for seed in study.seeds:
            step = study.run(variant, seed).step("evaluation")
            step.check()
            answers = step.load("judgements.parquet")
            tables = [answers]
            if "held_out.parquet" in step.record()["outputs"]:
                tables.append(step.load("held_out.parquet"))
            final = answers["policy"].iloc[-1]
            for table in tables:
                keys = {"group": variant.group, "variant": variant.label, "method": variant.method, "seed": seed}
                parts.append(table.assign(**keys, is_final=table["policy"] == final))
    table = pd.concat(parts, ignore_index=True)
    defaults = {"matched_kl": np.nan, "sample": 0}
    table = table.assign(**{name: value for name, value in defaults.items() if name not in table})
    return table[KEYS + [name for name in table if name not in KEYS]]


def write_judgements(table: pd.DataFrame, path: Path) -> None:
    """Write the table as Parquet, compressed, with numbers no longer than they need be."""
    small = table.copy()
    for name in table:
        if isinstance(table[name].dtype, pd.StringDtype) or pd.api.types.is_object_dtype(table[name]):
            small[name] = table[name].astype("category")
        elif pd.api.types.is_integer_dtype(table[name]):
            small[name] = pd.to_numeric(table[name], downcast="integer")
        elif pd.api.types.is_float_dtype(table[name]) and name not in KEYS:
            small[name] = table[name].astype("float32")
    with replacing(path) as temporary:
        small.to_parquet(temporary, index=False, compression="zstd")


def with_quantities(table: pd.DataFrame) -> pd.DataFrame:
    """Add those of `QUANTITIES` that are not columns already, row by row, so that all of them are means over rows.

    Win rates and accuracies are in per cent. A length-controlled win rate is the mean of its jackknife pseudo-values;
    in a length-balanced accuracy longer and shorter choices weigh the same.
    """
    table = table.copy()
    if "win" in table:
        table["win_rate"] = 100 * table["win"]
        run_prompt = [table[name] for name in ("group", "variant", "seed", "prompt_id")]
        sft_length = table["characters"].where(table["policy"] == "sft").groupby(run_prompt).transform("mean")
        shorter_by = sft_length - table["characters"]
        for _, wins in _by_policy(table, "win"):
            values = length_controlled_values(wins.to_numpy(float), shorter_by[wins.index].to_numpy(float))
            table.loc[wins.index, "length_controlled_win_rate"] = values
    if "margin" in table:
        table["preference_accuracy"] = 50 * (np.sign(table["margin"]) + 1)
        for _, right in _by_policy(table, "preference_accuracy"):
            side = np.sign(table.loc[right.index, "extra_characters"])
            if {-1, 1} <= set(side):
                weight = 1 / (2 * side.map(side.value_counts(normalize=True))).where(side != 0, np.inf)
                table.loc[right.index, "length_balanced_accuracy"] = 50 + (right - 50) * weight
    return table


def _by_policy(table: pd.DataFrame, name: str) -> SeriesGroupBy:
    """Group the rows that have a column by run and policy."""
    return table[table[name].notna()].groupby(KEYS, sort=False, dropna=False)[name]
