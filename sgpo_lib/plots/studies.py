"""Pictures of a study: variants held against each other over seeds, from the tables of `evaluation`."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sgpo_lib.evaluation.judgements import QUANTITIES
from sgpo_lib.evaluation.statistics import over_seeds
from sgpo_lib.plots.style import COLORS, new_figure

_CYCLE = [COLORS[name] for name in ("dpo", "reference", "accent", "gold", "leader", "follower", "sky", "bound")]
_MARKERS = "osD^vPX*"


def _looks(variants: Iterable[str]) -> dict[str, dict]:
    """Give every variant of a study its colour and marker; a variant looks the same in all groups and figures."""
    variants = list(dict.fromkeys(variants))
    return {
        variant: {"color": _CYCLE[i % len(_CYCLE)], "marker": _MARKERS[i % len(_MARKERS)]}
        for i, variant in enumerate(variants)
    }


def _names(table: pd.DataFrame) -> list[str]:
    return [
        f"{group}: {variant}" if group else variant
        for group, variant in zip(table["group"], table["variant"], strict=True)
    ]


def methods_compared(results: pd.DataFrame, means: pd.DataFrame, contrasts: pd.DataFrame, quantity: str) -> Figure:
    """Draw one quantity of every variant's last policy, and its differences to the baselines at each KL.

    Parameters
    ----------
    results, means : as `sgpo_lib.evaluation.comparison.per_run` and `means` return them. Dots are seeds.
    contrasts : as `sgpo_lib.evaluation.contrasts.contrasts` returns them.
    """
    means = means[means["is_final"] & means["matched_kl"].isna() & (means["quantity"] == quantity)]
    told = contrasts[contrasts["verdict"].notna() & (contrasts["quantity"] == quantity)]
    panels = list(told.groupby(["baseline", "at_kl"], sort=False, dropna=False))
    figure, axes = new_figure(
        1, 1 + len(panels), width=3.6, height=max(2.4, 0.34 * len(means) + 0.9), sharey=True, squeeze=False
    )
    looks, names = _looks(results["variant"]), _names(means)
    final = results[results["is_final"]]
    for place, row in enumerate(means.itertuples()):
        values = final.loc[(final["group"] == row.group) & (final["variant"] == row.variant), quantity]
        axes[0, 0].plot(values, np.full(len(values), place), ".", color=looks[row.variant]["color"], alpha=0.35)
        _interval(axes[0, 0], place, row, looks[row.variant])
    axes[0, 0].set(xlabel=QUANTITIES[quantity][0])
    axes[0, 0].set_yticks(range(len(names)), names)
    axes[0, 0].invert_yaxis()
    look_of = dict(zip(names, (looks[variant] for variant in means["variant"]), strict=True))
    for axis, ((baseline, at_kl), rows) in zip(axes[0, 1:], panels, strict=True):
        axis.axvline(0, color=COLORS["reference"], linestyle=":", linewidth=1)
        for row in rows.itertuples():
            _interval(axis, names.index(row.variant), row, look_of[row.variant], filled=row.role == "primary")
        where = "as trained" if np.isnan(at_kl) else f"at {at_kl:g} nats"
        axis.set(xlabel=f"difference, {where}", title=f"against {baseline}")
    return figure


def _interval(axis, place: float, row, look: dict, filled: bool = True) -> None:
    error = None if np.isnan(row.low) else [[row.mean - row.low], [row.high - row.mean]]
    face = look["color"] if filled else "white"
    axis.errorbar(row.mean, place, xerr=error, fmt=look["marker"], color=look["color"], markerfacecolor=face, capsize=3)


def rounds_compared(means: pd.DataFrame, audits: pd.DataFrame, confidence: float = 0.95) -> Figure:
    """Draw gold reward, self-label accuracy, KL and length after each round, with intervals.

    Parameters
    ----------
    means : as `sgpo_lib.evaluation.comparison.means` returns them.
    audits : as `sgpo_lib.evaluation.rounds.pairs_of_rounds` returns them; every seed has prompts of its own, so that
        the intervals are Student's t over seeds.
    """
    looks = _looks(means["variant"])
    trained = means[(means["policy"] != "sft") & means["matched_kl"].isna()]
    trained = trained.assign(round=trained["policy"].str.extract(r"round-(\d+)", expand=False).fillna("0").astype(int))
    panels = [("gold_reward", "gold reward"), ("kl", "KL to SFT (nats)"), ("words", "words")]
    has_labels = "agrees_with_gold" in audits
    figure, axes = new_figure(1, len(panels) + has_labels, width=3.4)
    for axis, (quantity, label) in zip(axes, panels, strict=False):
        _lines(axis, trained[trained["quantity"] == quantity], looks)
        axis.set(xlabel="after round", ylabel=label)
    if has_labels:
        keys = ["group", "variant", "round"]
        accuracy = audits.groupby([*keys, "seed"], sort=False)["agrees_with_gold"].mean()
        estimates = {at: over_seeds(values.to_numpy()) for at, values in accuracy.groupby(keys, sort=False)}
        rows = [(*at, estimate.mean, *estimate.interval(confidence)) for at, estimate in estimates.items()]
        _lines(axes[-1], pd.DataFrame(rows, columns=[*keys, "mean", "low", "high"]), looks)
        axes[-1].axhline(0.5, color=COLORS["reference"], linestyle=":", linewidth=1)
        axes[-1].set(xlabel="in round", ylabel="label agrees with gold")
    for axis in axes:
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].legend(fontsize="x-small")
    return figure


def _lines(axis, table: pd.DataFrame, looks: dict) -> None:
    groups = list(table.groupby(["group", "variant"], sort=False))
    for number, ((group, variant), rows) in enumerate(groups):
        rows = rows.sort_values("round")
        axis.errorbar(
            rows["round"] + 0.04 * (number - (len(groups) - 1) / 2),
            rows["mean"],
            [(rows["mean"] - rows["low"]).fillna(0), (rows["high"] - rows["mean"]).fillna(0)],
            capsize=2,
            linewidth=1.2,
            label=f"{group}: {variant}" if group else variant,
            linestyle="-" if group == table["group"].iloc[0] else "--",
            **looks[variant],
        )


def reward_against_kl(results: pd.DataFrame) -> Figure:
    """Draw gold reward against KL for every variant and round: small dots are runs, large ones means over seeds.

    Where a path goes on to the right and no longer up, the policy is over-optimised.
    """
    figure, axis = new_figure(width=6.2, height=4)
    looks = _looks(results["variant"])
    axis.scatter(
        results["kl"], results["gold_reward"], s=8, alpha=0.25, c=[looks[v]["color"] for v in results["variant"]]
    )
    groups = list(dict.fromkeys(results["group"]))
    for (group, variant), of_variant in results.groupby(["group", "variant"], sort=False):
        path = of_variant.groupby("policy", sort=False)[["kl", "gold_reward"]].mean()
        label = f"{group}: {variant}" if group else variant
        axis.plot(path["kl"], path["gold_reward"], "-" if group == groups[0] else "--", label=label, **looks[variant])
    axis.set(xlabel="KL to SFT (nats per answer)", ylabel="gold reward", title="Reward against KL, round by round")
    axis.legend(fontsize="x-small", loc="lower right")
    return figure


def labels_by_decile(pairs: pd.DataFrame, variants: Iterable[str], confidence: float = 0.95) -> Figure:
    """Draw, by margin decile, how often the label is right and how much of its mass the follower moved.

    The follower helps where the errors are: if accuracy rises with the margin, low margins are the ones to
    distrust, and that is where it moves mass. But it moves mass *down*, which has the leader push them *harder*.

    Parameters
    ----------
    pairs : as `sgpo_lib.evaluation.rounds.pairs_of_rounds` returns them, with `agrees_with_gold`.
    variants : all of the study in their order, so that they look as in its other figures.
    """
    figure, axes = new_figure(1, 2, width=4.6)
    looks = _looks(variants)
    for (group, variant), of_variant in pairs.groupby(["group", "variant"], sort=False):
        for axis, column in zip(axes, ("agrees_with_gold", "moved"), strict=True):
            by_seed = of_variant.groupby(["decile", "seed"])[column].mean().unstack()
            estimates = [over_seeds(row.dropna().to_numpy()) for _, row in by_seed.iterrows()]
            label = f"{group}: {variant}" if group else variant
            axis.errorbar(
                by_seed.index,
                [estimate.mean for estimate in estimates],
                np.nan_to_num([estimate.interval(confidence)[1] - estimate.mean for estimate in estimates]),
                capsize=2,
                linewidth=1,
                label=label,
                alpha=0.8,
                **looks[variant],
            )
    axes[0].axhline(0.5, color=COLORS["reference"], linestyle=":", linewidth=1)
    axes[0].set(xlabel="margin decile", ylabel="label agrees with gold", title="Where the labels are right")
    axes[1].set(xlabel="margin decile", ylabel="share of mass moved", title="Where the follower moved mass")
    axes[1].legend(fontsize="x-small")
    return figure


def label_curve(curve: pd.DataFrame, arms: pd.DataFrame, heading: str) -> Figure:
    """Draw reward against labels, and each arm as a mark from the labels it spends to those it is worth.

    Parameters
    ----------
    curve, arms : as `sgpo_lib.evaluation.label_efficiency.LabelEfficiency` has them. An arm beyond the curve's ends is
        drawn to the end.
    heading : of the vertical axis.
    """
    figure, axis = new_figure(width=6.6, height=4)
    x = curve["n_labels"]
    whiskers = [curve["mean"] - curve["low"], curve["high"] - curve["mean"]]
    axis.errorbar(x, curve["mean"], whiskers, fmt="o", color=COLORS["dpo"], capsize=3, label="seed DPO")
    axis.plot(x, curve["fitted"], color=COLORS["dpo"], linewidth=1, label="monotone fit")
    looks = _looks(arms["variant"])
    for row in arms.itertuples():
        look = looks[row.variant] | {"color": _CYCLE[(1 + list(looks).index(row.variant)) % len(_CYCLE)]}
        error = [[row.mean - row.low], [row.high - row.mean]]
        axis.errorbar(row.n_labels, row.mean, error, capsize=3, label=row.variant, **look)
        worth, low, high = np.clip([row.equivalent, row.equivalent_low, row.equivalent_high], x.min(), x.max())
        axis.hlines(row.mean, row.n_labels, worth, color=look["color"], linewidth=1, linestyle="--")
        axis.hlines(row.mean, low, high, color=look["color"], linewidth=4, alpha=0.3)
        axis.plot(worth, row.mean, "|", color=look["color"], markersize=12)
    axis.set_xscale("log")
    axis.set_xticks(x, x)
    axis.minorticks_off()
    axis.set(xlabel="labels", ylabel=heading, title="What an arm is worth in labels")
    axis.legend(fontsize="x-small")
    return figure
