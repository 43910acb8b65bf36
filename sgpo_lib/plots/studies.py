"""Pictures of a study: variants held against each other over seeds, from the tables of `evaluation.comparison`."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sgpo_lib.evaluation.comparison import QUANTITIES, over_seeds
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


def methods_compared(
    results: pd.DataFrame, differences: pd.DataFrame, quantity: str, confidence: float = 0.95
) -> Figure:
    """Draw one quantity of every variant and its paired differences to the baselines.

    Parameters
    ----------
    results, differences : as `sgpo_lib.evaluation.comparison` returns them. Dots are seeds, bars t intervals over
        seeds.
    """
    final = results[results["is_final"]]
    baselines = list(dict.fromkeys(differences["baseline"]))
    rows = final.drop_duplicates(["group", "variant"])
    height = max(2.4, 0.34 * len(rows) + 0.9)
    figure, axes = new_figure(1, 1 + len(baselines), width=3.6, height=height, sharey=True, squeeze=False)
    looks = _looks(results["variant"])
    places = {(row.group, row.variant): place for place, row in enumerate(rows.itertuples())}
    for (group, variant), of_variant in final.groupby(["group", "variant"], sort=False):
        values = of_variant[quantity].to_numpy()
        _interval(axes[0, 0], places[group, variant], over_seeds(values, confidence), values, looks[variant])
    axes[0, 0].set(xlabel=QUANTITIES[quantity][0])
    axes[0, 0].set_yticks(range(len(rows)), _names(rows))
    axes[0, 0].invert_yaxis()
    for axis, baseline in zip(axes[0, 1:], baselines, strict=True):
        axis.axvline(0, color=COLORS["reference"], linestyle=":", linewidth=1)
        for row in differences[differences["baseline"] == baseline].itertuples():
            _interval(axis, places[row.group, row.variant], row, [], looks[row.variant])
        axis.set(xlabel="paired difference", title=f"against {baseline}")
    return figure


def _interval(axis, place: float, interval, values, look: dict) -> None:
    axis.plot(values, np.full(len(values), place), ".", color=look["color"], alpha=0.35, zorder=1)
    error = None if np.isnan(interval.low) else [[interval.mean - interval.low], [interval.high - interval.mean]]
    axis.errorbar(interval.mean, place, xerr=error, fmt=look["marker"], color=look["color"], capsize=3)


def rounds_compared(results: pd.DataFrame, audits: pd.DataFrame, confidence: float = 0.95) -> Figure:
    """Draw gold reward, self-label accuracy, KL and length after each round, means over seeds with t intervals.

    Parameters
    ----------
    results : as `sgpo_lib.evaluation.comparison.results` returns them.
    audits : as `sgpo_lib.evaluation.comparison.pairs_of_rounds` returns them.
    """
    looks = _looks(results["variant"])
    trained = results[results["policy"] != "sft"]
    trained = trained.assign(round=trained["policy"].str.extract(r"round-(\d+)", expand=False).fillna("0").astype(int))
    panels = [
        ("gold_reward", "gold reward", "after round"),
        ("kl", "KL to SFT (nats)", "after round"),
        ("words", "words", "after round"),
    ]
    has_labels = "agrees_with_gold" in audits
    figure, axes = new_figure(1, len(panels) + has_labels, width=3.4)
    for axis, (quantity, label, when) in zip(axes, panels, strict=False):
        _lines(axis, trained, quantity, looks, confidence)
        axis.set(xlabel=when, ylabel=label)
    if has_labels:
        accuracy = audits.groupby(["group", "variant", "seed", "round"], sort=False)["agrees_with_gold"].mean()
        _lines(axes[-1], accuracy.reset_index(), "agrees_with_gold", looks, confidence)
        axes[-1].axhline(0.5, color=COLORS["reference"], linestyle=":", linewidth=1)
        axes[-1].set(xlabel="in round", ylabel="label agrees with gold")
    for axis in axes:
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].legend(fontsize="x-small")
    return figure


def _lines(axis, table: pd.DataFrame, quantity: str, looks: dict, confidence: float) -> None:
    groups = list(table.groupby(["group", "variant"], sort=False))
    for number, ((group, variant), of_variant) in enumerate(groups):
        by_round = of_variant.groupby("round")[quantity]
        intervals = [over_seeds(values.to_numpy(), confidence) for _, values in by_round]
        means = np.array([interval.mean for interval in intervals])
        half = np.nan_to_num([interval.high - interval.mean for interval in intervals])
        shift = 0.04 * (number - (len(groups) - 1) / 2)
        axis.errorbar(
            np.array(list(by_round.groups)) + shift,
            means,
            half,
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
    pairs : as `sgpo_lib.evaluation.comparison.pairs_of_rounds` returns them, with `agrees_with_gold`.
    variants : all of the study in their order, so that they look as in its other figures.
    """
    figure, axes = new_figure(1, 2, width=4.6)
    looks = _looks(variants)
    for (group, variant), of_variant in pairs.groupby(["group", "variant"], sort=False):
        for axis, column in zip(axes, ("agrees_with_gold", "moved"), strict=True):
            by_seed = of_variant.groupby(["decile", "seed"])[column].mean().unstack()
            intervals = [over_seeds(row.dropna().to_numpy(), confidence) for _, row in by_seed.iterrows()]
            label = f"{group}: {variant}" if group else variant
            axis.errorbar(
                by_seed.index,
                [interval.mean for interval in intervals],
                np.nan_to_num([interval.high - interval.mean for interval in intervals]),
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
