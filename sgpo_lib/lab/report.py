"""The lab's tables: one row a run and arm, summaries over runs, label equivalents, and the written predictions."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from sgpo_lib.lab.arms import Arm, Setting, play, start
from sgpo_lib.lab.policy import World, divergence, expected_utility, scaled_to
from sgpo_lib.runs.store import replacing

BASELINE = "self-annotation"


def compare(world: World, setting: Setting, arms: dict[str, Arm], n_runs: int, seed: int, nats: float) -> pd.DataFrame:
    """Play every arm from the same seed policies.

    Returns
    -------
    DataFrame, one row a run and arm, "seed DPO" first
        ``gold`` is the expected gold utility on held-out prompts, in standard deviations of an answer's utility;
        ``matched`` the same after scaling the policy to `nats`; ``kl`` in nats; ``influence`` and ``accuracy`` as
        in `End`.
    """
    begin = start(world, setting, n_runs, seed)
    ends = {name: play(world, setting, begin, arm) for name, arm in arms.items()}
    columns = {"seed DPO": (begin.theta, np.nan, np.nan)} | {
        name: (end.theta, end.influence, end.accuracy) for name, end in ends.items()
    }
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "run": np.arange(n_runs),
                    "arm": name,
                    "kl": divergence(theta, world.held_out),
                    "gold": expected_utility(theta, begin.utility, world.held_out),
                    "matched": _matched(world, theta, begin.utility, nats),
                    "influence": influence,
                    "accuracy": accuracy,
                }
            )
            for name, (theta, influence, accuracy) in columns.items()
        ],
        ignore_index=True,
    )


def summary(results: pd.DataFrame, baseline: str = BASELINE) -> pd.DataFrame:
    """Return means over runs and each arm's difference to the baseline, paired by run, with 95% intervals.

    Columns ``raw``, ``raw_low``, ``raw_high`` compare the policies as they end, ``gain``, ``gain_low``,
    ``gain_high`` at matched KL. The intervals are normal ones, of the mean over independent runs. ``share`` is the
    gain at matched KL by the unit that carries over to other models: what the baseline, as trained, gains on seed
    DPO.
    """
    table = results.groupby("arm", sort=False)[["kl", "gold", "matched", "influence", "accuracy"]].mean()
    for column, name in (("gold", "raw"), ("matched", "gain")):
        wide = results.pivot(index="run", columns="arm", values=column)[table.index]
        differences = wide.sub(wide[baseline], axis=0)
        half = 1.96 * differences.std() / np.sqrt(len(wide))
        table[name], table[f"{name}_low"], table[f"{name}_high"] = (
            differences.mean(),
            differences.mean() - half,
            differences.mean() + half,
        )
    table["share"] = table["gain"] / (table.loc[baseline, "gold"] - table.loc["seed DPO", "gold"])
    return table


def sweep(
    world: World,
    setting: Setting,
    arms: dict[str, Arm],
    label_noise: list[float],
    n_labels: list[int],
    n_runs: int,
    seed: int,
    nats: float,
) -> pd.DataFrame:
    """Summarise `compare` over label noise and number of labels; both become columns."""
    return pd.concat(
        [
            summary(compare(world, replace(setting, label_noise=noise, n_labels=n), arms, n_runs, seed, nats))
            .reset_index()
            .assign(label_noise=noise, n_labels=n)
            for noise in label_noise
            for n in n_labels
        ],
        ignore_index=True,
    )


def label_curve(world: World, setting: Setting, counts: list[int], n_runs: int, seed: int, nats: float) -> np.ndarray:
    """Return the gold utility of seed DPO at matched KL for each number of labels, shape (S, len(counts)).

    Label sets are nested, and the runs are those of `compare` with the same seed.
    """
    curve = []
    for count in counts:
        begin = start(world, replace(setting, n_labels=count, n_calibration=1), n_runs, seed)
        curve.append(_matched(world, begin.theta, begin.utility, nats))
    return np.stack(curve, axis=1)


def label_equivalent(
    curve: np.ndarray, counts: list[int], gold: np.ndarray, seed: int, n_draws: int = 1000
) -> tuple[float, float, float]:
    """Return how many labels seed DPO needs to be as good as an arm, with a 95% bootstrap interval over runs.

    Parameters
    ----------
    curve : ndarray, shape (S, len(counts)); see `label_curve`
    counts : list of int, rising
    gold : ndarray, shape (S,)
        The arm at the same KL, in the same runs.

    Returns
    -------
    (estimate, low, high)
        Read off the mean curve, made monotone by its running maximum, straight between counts in log labels. An
        arm below or above the whole curve gets the curve's first or last count: read these as "at most" and "at
        least".
    """
    rng = np.random.default_rng([seed, 9])
    draws = rng.integers(len(curve), size=(n_draws, len(curve)))
    means, targets = curve[draws].mean(axis=1), gold[draws].mean(axis=1)
    estimates = [_read_off(mean, counts, target) for mean, target in zip(means, targets, strict=True)]
    low, high = np.quantile(estimates, [0.025, 0.975])
    return _read_off(curve.mean(axis=0), counts, gold.mean()), float(low), float(high)


def write_predictions(folder: Path, tables: dict[str, pd.DataFrame], made_by: str) -> list[Path]:
    """Write each table as ``<name>.csv`` and all of them as ``predictions.md``, headed by what made them."""
    folder.mkdir(parents=True, exist_ok=True)
    page = [f"# Predictions of the lab\n\n{made_by}\n"]
    for name, table in tables.items():
        with replacing(folder / f"{name}.csv") as temporary:
            table.reset_index().to_csv(temporary, index=False, float_format="%.6g")
        page.append(f"## {name}\n\n{table.reset_index().to_markdown(index=False, floatfmt='.4f')}\n")
    with replacing(folder / "predictions.md") as temporary:
        temporary.write_text("\n".join(page), encoding="utf-8")
    return [folder / "predictions.md", *(folder / f"{name}.csv" for name in tables)]


def _matched(world: World, theta: np.ndarray, utility: np.ndarray, nats: float) -> np.ndarray:
    return expected_utility(scaled_to(theta, world.held_out, nats), utility, world.held_out)


def _read_off(curve: np.ndarray, counts: list[int], target: float) -> float:
    return float(np.exp(np.interp(target, np.maximum.accumulate(curve), np.log(counts))))
