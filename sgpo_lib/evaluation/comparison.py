"""What a study's finished runs say when they are held against each other: tables, one row per number.

The unit is the seed: prompts are averaged within a run, and intervals are Student's t over seeds. They contain what
varies with the seed (which prompts are labelled, training, sampling), on one set of held-out prompts and one kind of
CPU. Methods are compared seed by seed, as they share the seed's pairs and prompts.
"""

import time
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from sgpo_lib import follower
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

LENGTH_CONTROLLED = {
    "gold_reward_vs_sft": "length_controlled_win_rate",
    "preference_accuracy": "length_balanced_accuracy",
    "win_rate": "length_controlled_win_rate",
}
"""What methods are compared by, the best known first, and the measure beside it that length does not sway."""


class Interval(NamedTuple):
    """Mean over seeds with a t interval, and the two-sided p-value of a mean of 0; NaN for a single seed."""

    mean: float
    low: float
    high: float
    p_value: float


def over_seeds(values: np.ndarray, confidence: float = 0.95) -> Interval:
    """Average one number per seed, shape (n_seeds,)."""
    values = np.asarray(values, dtype=float)
    if values.size < 2:
        return Interval(float(values.mean()), np.nan, np.nan, np.nan)
    error = stats.sem(values)
    half = stats.t.ppf((1 + confidence) / 2, values.size - 1) * error
    mean = values.mean()
    p_value = 2 * stats.t.sf(abs(mean) / error, values.size - 1) if error > 0 else float(mean == 0)
    return Interval(float(mean), float(mean - half), float(mean + half), float(p_value))


def results(study: Study, matched_kl: float | None = None) -> pd.DataFrame:
    """Collect the evaluations of a study's runs.

    Parameters
    ----------
    matched_kl : of `evaluation.match_kl`: the SFT model, and the policies as scaled to this KL; those that could not be
        have no row. By default the policies themselves.

    Returns
    -------
    DataFrame, a row per variant, seed and policy (`sft`, `dpo`, `round-1`, ...): `group`, `variant`, `method`,
    `seed`, `policy`, `is_final`, and the mean over prompts of each quantity.

    Raises
    ------
    FileNotFoundError, ValueError : if a run is not complete or does not fit its params; names the notebook.
    """
    rows = []
    for variant in study.variants:
        for seed in study.seeds:
            run = study.run(variant, seed)
            step = run.step("evaluation")
            step.check()
            summary = step.load("summary.json")
            of_policies = [policy for policy, values in summary.items() if "matched_kl" not in values]
            for policy in of_policies:
                name = policy if matched_kl is None or policy == "sft" else f"{policy} @ {matched_kl:g} nats"
                if name not in summary:
                    continue
                values = summary[name]
                means = {name: value["mean"] for name, value in values.items() if isinstance(value, dict)}
                rows.append(
                    {
                        "group": variant.group,
                        "variant": study.label(variant),
                        "method": variant.method,
                        "seed": seed,
                        "policy": policy,
                        "is_final": policy == of_policies[-1],
                        **means,
                    }
                )
    return pd.DataFrame(rows)


def measure(results: pd.DataFrame) -> str | None:
    """Return the quantity to compare by: the best known of `LENGTH_CONTROLLED`, None where nobody judged."""
    return next((quantity for quantity in LENGTH_CONTROLLED if quantity in results), None)


def final_means(results: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Average every variant's last policy over seeds; of the gold reward only the gain over SFT, which varies less.

    Returns
    -------
    DataFrame, a row per variant and quantity: `group`, `variant`, `quantity`, `mean`, `low`, `high`, `n_seeds`.
    """
    final = results[results["is_final"]]
    rows = []
    for (group, variant), of_variant in final.groupby(["group", "variant"], sort=False):
        for quantity in (name for name in QUANTITIES if name in final and name != "gold_reward"):
            interval = over_seeds(of_variant[quantity].to_numpy(), confidence)
            rows.append((group, variant, quantity, *interval[:3], len(of_variant)))
    return pd.DataFrame(rows, columns=["group", "variant", "quantity", "mean", "low", "high", "n_seeds"])


def means_by_round(results: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Average every policy of every variant over seeds.

    Returns
    -------
    DataFrame, a row per variant, policy and quantity: `group`, `variant`, `policy`, `quantity`, `mean`, `low`,
    `high`, `n_seeds`.
    """
    rows = []
    for (group, variant, policy), of_policy in results.groupby(["group", "variant", "policy"], sort=False):
        for quantity in (name for name in QUANTITIES if name in results):
            interval = over_seeds(of_policy[quantity].to_numpy(), confidence)
            rows.append((group, variant, policy, quantity, *interval[:3], len(of_policy)))
    columns = ["group", "variant", "policy", "quantity", "mean", "low", "high", "n_seeds"]
    return pd.DataFrame(rows, columns=columns)


def paired_differences(
    results: pd.DataFrame, baselines: list[str], quantity: str | None, confidence: float = 0.95
) -> pd.DataFrame:
    """Compare every variant's last policy with each baseline's, seed by seed, within groups.

    Where there are several groups, such as labels without and with noise, each variant is also compared with itself
    in the first group.

    Parameters
    ----------
    baselines : methods.
    quantity : of `QUANTITIES`; None, where nothing is known to compare by, compares nothing.

    Returns
    -------
    DataFrame: `group`, `variant`, `baseline` (a variant, or the first group), `mean`, `low`, `high`, `p_value`
    (paired t test, two-sided, not adjusted for the number of comparisons) and `n_seeds`.
    """
    final = results[results["is_final"]]
    baselines, groups = (baselines, list(dict.fromkeys(final["group"]))) if quantity else ([], [])
    rows = []

    def compare(of_variant: pd.DataFrame, other: pd.DataFrame, baseline: str) -> None:
        ours, theirs = of_variant.set_index("seed")[quantity], other.set_index("seed")[quantity]
        interval = over_seeds((ours - theirs.loc[ours.index]).to_numpy(), confidence)
        rows.append((*of_variant[["group", "variant"]].iloc[0], baseline, *interval, len(ours)))

    for number, baseline in enumerate(baselines):
        for (group, _), of_variant in final.groupby(["group", "variant"], sort=False):
            other = final[(final["group"] == group) & (final["method"] == baseline)]
            already = of_variant["method"].iloc[0] in baselines[: number + 1]  # with itself, or the other way round
            if len(other) and not already:
                compare(of_variant, other, other["variant"].iloc[0])
    for group in groups[1:]:
        for variant, of_variant in final[final["group"] == group].groupby("variant", sort=False):
            other = final[(final["group"] == groups[0]) & (final["variant"] == variant)]
            if len(other):
                compare(of_variant, other, groups[0])
    columns = ["group", "variant", "baseline", "mean", "low", "high", "p_value", "n_seeds"]
    return pd.DataFrame(rows, columns=columns)


def verdicts(differences: pd.DataFrame, confidence: float = 0.95) -> list[str]:
    """Say of each difference in plain words whether its interval excludes 0; one that does not decides nothing."""
    lines = []
    for row in differences.itertuples():
        where = f"{row.group}: " if row.group else ""
        start = f"{where}{row.variant} against {row.baseline}: {row.mean:+.3f}"
        if np.isnan(row.low):
            lines.append(f"{start}; one seed, so nothing can be said.")
            continue
        word = "better" if row.low > 0 else "worse" if row.high < 0 else "undecided"
        lines.append(
            f"{start} [{row.low:+.3f}, {row.high:+.3f}], p = {row.p_value:.2g}, {row.n_seeds} seeds: {word} "
            f"at {confidence:.0%}."
        )
    return lines


def pairs_of_rounds(study: Study) -> pd.DataFrame:
    """Collect the pairs that every run trained on, with what the follower did to them.

    Returns
    -------
    DataFrame, a row per pair: `group`, `variant`, `seed`, `round`, `margin`, `moved` (0 where no follower
    moves margins), `decile` (1..10, of the margin within its run and round) and `agrees_with_gold` where known.
    """
    parts = []
    for variant in study.variants:
        for seed in study.seeds:
            run = study.run(variant, seed)
            for t in run.rounds:
                pairs = run.step("annotation", t).load("pairs.parquet")
                part = pairs[[name for name in ("margin", "agrees_with_gold") if name in pairs]].copy()
                has_follower = run.params.leader.faces_follower
                worst = run.step("follower", t).load("worst_case.parquet") if has_follower else {}
                part["moved"] = worst.get("moved", 0.0)
                part["decile"] = np.ceil(10 * part["margin"].rank(method="first") / len(part)).astype(int)
                parts.append(part.assign(group=variant.group, variant=study.label(variant), seed=seed, round=t))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def solved_followers(study: Study) -> pd.DataFrame:
    """Collect what the followers of a study found.

    Returns
    -------
    DataFrame, a row per variant with a follower, seed and round: `radius` (in nats for mode `flips`), `nominal`,
    `value`, `transport`, `gap`, `n_moved` (of `n_pairs`), `influence` and the `seconds` of the solve. What a follower
    on labels does not have is missing.
    """
    rows = []
    for variant in study.variants:
        for seed in study.seeds:
            run = study.run(variant, seed)
            for t in run.rounds if run.params.leader.faces_follower else ():
                record = run.step("follower", t).record()
                n_pairs = run.step("annotation", t).record()["metrics"]["n_pairs"]
                names = ("radius", "nominal", "value", "transport", "gap", "n_moved", "influence")
                numbers = {name: record["metrics"].get(name) for name in names}
                rows.append(
                    {"group": variant.group, "variant": study.label(variant), "seed": seed, "round": t}
                    | numbers
                    | {"n_pairs": n_pairs, "seconds": record["seconds"]["follower"]}
                )
    return pd.DataFrame(rows)


def trainings(study: Study) -> pd.DataFrame:
    """Collect what each round of a study was trained with: methods that differ here differ by more than their loss.

    Returns
    -------
    DataFrame, a row per variant, seed and round: `n_rows`, the optimiser's `n_steps`, and `lr_sum`, the learning rates
    of these added up.
    """
    rows = []
    for variant in study.variants:
        for seed in study.seeds:
            run = study.run(variant, seed)
            for t in run.rounds:
                metrics = run.step("leader", t).record()["metrics"]
                rows.append(
                    {"group": variant.group, "variant": study.label(variant), "seed": seed, "round": t}
                    | {name: metrics[name] for name in ("n_rows", "n_steps", "lr_sum")}
                )
    return pd.DataFrame(rows)


def approximations(
    margins: np.ndarray, radius: float, pieces: tuple[int, ...], group_sizes: tuple[int, ...]
) -> pd.DataFrame:
    """Compare the exact worst case of margins, shape (N,), with that of tangents and of groups: the paper's Table 4.

    Returns
    -------
    DataFrame, a row per follower: `follower`, `value` (nats per pair), `lost` (the exact value less it) and the
    `seconds` of the best of five solves.
    """
    low, high = follower.resolve_support(follower.RangeSupport(), margins)
    problems = {"exact": (follower.worst_case, follower.logistic_loss)}
    for k in pieces:
        problems[f"K = {k}"] = (follower.worst_case, follower.tangents(k, (low, high)))
    for size in group_sizes:
        problems[f"groups of {size}"] = (follower.Grouped(size), follower.logistic_loss)
    rows = []
    for name, (solve, loss) in problems.items():
        times = []
        for _ in range(5):
            start = time.perf_counter()
            worst = solve(margins, radius, (low, high), loss)
            times.append(time.perf_counter() - start)
        rows.append({"follower": name, "n_pairs": len(margins), "value": worst.value, "seconds": min(times)})
    table = pd.DataFrame(rows)
    table.insert(3, "lost", table["value"].iloc[0] - table["value"])
    return table
