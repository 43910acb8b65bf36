"""How many labels of seed DPO an arm is worth: its reward read off a monotone curve of reward against labels.

The curve's points are the variants of method `dpo` that say how many labels they spend, all at one KL to the SFT model.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.isotonic import isotonic_regression

from sgpo_lib.evaluation.comparison import cells
from sgpo_lib.evaluation.statistics import crossed_mean
from sgpo_lib.runs.study import Study


class LabelEfficiency(NamedTuple):
    """A label curve and the arms read off it.

    Attributes
    ----------
    curve : DataFrame
        A row per point, fewest labels first: `variant`, `n_labels`, `mean`, `low`, `high`, `fitted` (monotone).
    arms : DataFrame
        A row per arm: `variant`, `n_labels`, `mean`, `low`, `high`, its `equivalent` in labels of seed DPO with
        `equivalent_low` and `equivalent_high`, and the same `per_label`, divided by its own. Beyond the curve's ends
        these are 0 and infinite: nothing is extrapolated.
    """

    curve: pd.DataFrame
    arms: pd.DataFrame


def equivalent(n_labels: np.ndarray, fitted: np.ndarray, target: float) -> float:
    """Return the fewest labels at which a curve reaches `target`, straight between its points in log labels.

    Parameters
    ----------
    n_labels, fitted : shape (M,), rising; the curve may have flat parts.

    Returns
    -------
    float : 0 if even the first point lies above the target, infinity if none reaches it.
    """
    reached = int(np.searchsorted(fitted, target))
    if reached == len(fitted):
        return np.inf
    if reached == 0:
        return float(n_labels[0]) if fitted[0] == target else 0.0
    before = slice(reached - 1, reached + 1)
    return float(np.exp(np.interp(target, fitted[before], np.log(n_labels[before]))))


def label_efficiency(
    judged: pd.DataFrame,
    study: Study,
    at_kl: float | None,
    quantity: str = "gold_reward_vs_sft",
    confidence: float = 0.95,
    n_draws: int = 4000,
) -> LabelEfficiency:
    """Read what every arm is worth in labels off the study's curve, with bootstrap intervals over seeds and forms.

    Parameters
    ----------
    judged : as `sgpo_lib.evaluation.judgements.with_quantities` returns it.
    at_kl : nats; None as trained. Seeds in which some variant did not reach it are left out.

    Notes
    -----
    The curve is made monotone by pooling adjacent violators, in each draw anew. Seeds and forms are drawn at the same
    time, the same for all variants; percentiles are expanded for few seeds as in `sgpo_lib.evaluation.bootstrap`.
    """
    variants = sorted((v for v in study.variants if v.n_labels), key=lambda v: v.n_labels)
    final = judged[judged["is_final"] & judged[quantity].notna()]
    final = final[final["matched_kl"].isna() if at_kl is None else final["matched_kl"] == at_kl]
    rows = [final[(final["group"] == v.group) & (final["variant"] == v.label)] for v in variants]
    seeds = set.intersection(*(set(of_variant["seed"]) for of_variant in rows))
    found = [cells(of_variant[of_variant["seed"].isin(seeds)], quantity) for of_variant in rows]
    every = np.stack([of_seed.to_numpy() for of_seed, _ in found])
    sizes = found[0][1].to_numpy()
    is_point = np.array([v.method == "dpo" for v in variants])
    n_labels = np.array([v.n_labels for v in variants])

    def read_off(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        fitted = isotonic_regression(values[is_point])
        return fitted, np.array([equivalent(n_labels[is_point], fitted, value) for value in values[~is_point]])

    fitted, labels = read_off(every.mean(axis=1) @ (sizes / sizes.sum()))
    drawn = np.array([read_off(values)[1] for values in _drawn_means(every, sizes, n_draws)])
    n_seeds = len(seeds)
    tail = stats.norm.cdf(stats.t.ppf((1 - confidence) / 2, n_seeds - 1) * np.sqrt(n_seeds / (n_seeds - 1)))
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0, method="inverted_cdf")
    estimates = [crossed_mean(*of_variant) for of_variant in found]
    table = pd.DataFrame(
        {
            "variant": [v.full_name for v in variants],
            "n_labels": n_labels,
            "mean": [e.mean for e in estimates],
            "low": [e.interval(confidence)[0] for e in estimates],
            "high": [e.interval(confidence)[1] for e in estimates],
        }
    )
    arms = table[~is_point].assign(equivalent=labels, equivalent_low=low, equivalent_high=high)
    for name in ("", "_low", "_high"):
        arms[f"per_label{name}"] = arms[f"equivalent{name}"] / arms["n_labels"]
    return LabelEfficiency(table[is_point].assign(fitted=fitted), arms)


def _drawn_means(every: np.ndarray, sizes: np.ndarray, n_draws: int) -> np.ndarray:
    """Mean of each variant, cells of shape (V, S, F), in each draw of seeds and of clusters; shape (n_draws, V)."""
    rng = np.random.default_rng(0)
    _, n_seeds, n_clusters = every.shape
    of_seeds = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), n_draws) / n_seeds
    of_clusters = rng.multinomial(n_clusters, np.full(n_clusters, 1 / n_clusters), n_draws) * sizes
    of_clusters = of_clusters / of_clusters.sum(axis=1, keepdims=True)
    return np.einsum("ds,vsf,df->dv", of_seeds, every, of_clusters, optimize=True)


def as_text(efficiency: LabelEfficiency) -> pd.DataFrame:
    """Lay the arms out as text: labels spent, what they are worth in labels of seed DPO, and that per label."""
    first, last = efficiency.curve["n_labels"].iloc[[0, -1]]

    def labels(value: float) -> str:
        return f"> {last}" if np.isinf(value) else f"< {first}" if value == 0 else f"{value:.0f}"

    def ratio(value: float, spent: int) -> str:
        return (
            f"> {last / spent:.1f}" if np.isinf(value) else f"< {first / spent:.1f}" if value == 0 else f"{value:.1f}"
        )

    rows = {}
    for row in efficiency.arms.itertuples():
        values = (row.equivalent, row.equivalent_low, row.equivalent_high)
        ratios = [ratio(value, row.n_labels) for value in (row.per_label, row.per_label_low, row.per_label_high)]
        worth = [labels(value) for value in values]
        rows[row.variant] = {
            "labels": str(row.n_labels),
            "worth in labels of seed DPO": f"{worth[0]} [{worth[1]}, {worth[2]}]",
            "per label": f"{ratios[0]} [{ratios[1]}, {ratios[2]}]",
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("variant")
