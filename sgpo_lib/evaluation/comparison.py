"""Averages over a study's runs, from its table of judgements: what each policy earns, with its interval.

Every interval contains what varies with the seed (which prompts are labelled, training, sampling) and how far these
prompts, by form, stand for others. It does not contain the kind of CPU, which all runs share.
"""

import pandas as pd

from sgpo_lib.evaluation.judgements import QUANTITIES
from sgpo_lib.evaluation.statistics import crossed_mean

LENGTH_CONTROLLED = {
    "gold_reward_vs_sft": "length_controlled_win_rate",
    "preference_accuracy": "length_balanced_accuracy",
    "win_rate": "length_controlled_win_rate",
}
"""What methods are compared by, the best known first, and the measure beside it that length does not sway."""


def measure(judged: pd.DataFrame) -> str | None:
    """Return the quantity to compare by: the best known of `LENGTH_CONTROLLED`, None where nobody judged."""
    return next((quantity for quantity in LENGTH_CONTROLLED if quantity in judged), None)


def per_run(judged: pd.DataFrame, at_kl: float | None = None) -> pd.DataFrame:
    """Average each run's policies over prompts.

    Parameters
    ----------
    judged : as `sgpo_lib.evaluation.judgements.with_quantities` returns it.
    at_kl : nats; the policies as scaled to this KL, and the SFT model. By default the policies as trained.

    Returns
    -------
    DataFrame, a row per variant, seed and policy (`sft`, `dpo`, `round-1`, ...): `group`, `variant`, `method`, `seed`,
    `policy`, `is_final`, and the mean of each quantity.
    """
    keys = ["group", "variant", "method", "seed", "policy", "is_final"]
    as_asked = judged["matched_kl"].isna() if at_kl is None else judged["matched_kl"] == at_kl
    rows = judged[as_asked | (judged["policy"] == "sft")]
    names = [name for name in QUANTITIES if name in judged]
    return rows.groupby(keys, sort=False)[names].mean().reset_index()


def means(judged: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Average every policy of every variant over seeds and prompts.

    Returns
    -------
    DataFrame, a row per variant, policy, KL and quantity: `group`, `variant`, `policy`, `is_final`, `matched_kl` (NaN
    as trained), `quantity`, `mean`, `low`, `high`, `between_runs` (standard deviation of one run's mean), `n_seeds`.
    """
    keys = ["group", "variant", "policy", "is_final", "matched_kl"]
    rows = []
    for names, of_policy in judged.groupby(keys, sort=False, dropna=False):
        for quantity in (name for name in QUANTITIES if name in judged and of_policy[name].notna().any()):
            found = crossed_mean(*cells(of_policy, quantity))
            rows.append((*names, quantity, found.mean, *found.interval(confidence), found.between_runs, found.n_seeds))
    return pd.DataFrame(rows, columns=[*keys, "quantity", "mean", "low", "high", "between_runs", "n_seeds"])


def cells(rows: pd.DataFrame, quantity: str) -> tuple[pd.DataFrame, pd.Series]:
    """Average a quantity over the answers of each seed and cluster of prompts, for `crossed_mean`.

    Parameters
    ----------
    rows : of one policy, every seed with the same prompts. A prompt's cluster is its `form`, or itself.

    Returns
    -------
    (DataFrame with a row per seed and a column per cluster, Series of answers of each cluster in one seed)

    Raises
    ------
    ValueError : if seeds were not asked the same prompts, so that they cannot be crossed with them.
    """
    rows = rows[rows[quantity].notna()]
    cluster = rows["prompt_id"].astype(object)
    if "form" in rows:
        cluster = rows["form"].astype(object).where(rows["form"].notna(), cluster)
    grouped = rows[quantity].groupby([rows["seed"], cluster])
    sizes = grouped.size().unstack()
    if sizes.isna().any(axis=None) or (sizes != sizes.iloc[0]).any(axis=None):
        raise ValueError(
            f"the runs of seeds {', '.join(map(str, sizes.index))} were not evaluated on the same prompts: use params "
            "whose data differs in nothing that the evaluation's prompts depend on"
        )
    return grouped.mean().unstack(), sizes.iloc[0]
