"""Pictures and tables of pairs: what was said, how sure the policy is, and whether it is right."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from sgpo_lib.plots.style import COLORS, new_figure


def side_by_side(pairs: pd.DataFrame) -> Styler:
    """Show pairs as a page would: prompt, chosen and rejected text, and what scores are known."""
    table = pd.DataFrame({"prompt": [prompt[-1]["content"] for prompt in pairs["prompt"]]})
    for side in ("chosen", "rejected"):
        table[side] = pairs[side].to_numpy()
        for score, heading in (("implicit_reward", "R"), ("gold", "gold")):
            if f"{side}_{score}" in pairs:
                table[f"{heading}({side})"] = pairs[f"{side}_{score}"].to_numpy()
    if "margin" in pairs:
        table["margin"] = pairs["margin"].to_numpy()
    return _as_page(table)


def answers_by_policy(responses: pd.DataFrame, n_prompts: int) -> Styler:
    """Show what each policy answers to the first prompts: a row per prompt, a column per policy."""
    shown = responses["prompt_id"].unique()[:n_prompts]
    rows = responses[responses["prompt_id"].isin(shown)]
    table = rows.assign(prompt=[p[-1]["content"] for p in rows["prompt"]])
    table = table.pivot(index="prompt", columns="policy", values="response")
    return _as_page(table[responses["policy"].unique()].reset_index().rename_axis(columns=None))


def _as_page(table: pd.DataFrame) -> Styler:
    numbers = dict.fromkeys(table.select_dtypes("number"), "{:+.2f}")
    words = [column for column in table if column not in numbers]
    page = table.style.format(numbers, escape="html").hide(axis="index").set_properties(**{"vertical-align": "top"})
    wrapped = {"white-space": "pre-wrap", "text-align": "left", "min-width": "11em"}
    return page.set_properties(subset=words, **wrapped)


def margins_and_agreement(pairs: pd.DataFrame, n_bins: int = 5) -> Figure:
    """Draw the margins' histogram and, where gold is known, the self-label's accuracy by margin.

    Parameters
    ----------
    pairs : N rows with `margin` and, for the second panel, `agrees_with_gold`.
    n_bins : equally filled bins; bars are 95% Wilson intervals.
    """
    audited = "agrees_with_gold" in pairs
    figure, axes = new_figure(1, 2 if audited else 1, squeeze=False)
    left = axes[0, 0]
    margins = pairs["margin"].to_numpy()
    left.hist(margins, bins=30, color=COLORS["leader"], alpha=0.75)
    left.axvline(np.median(margins), color=COLORS["bound"], linewidth=1)
    left.annotate(
        f" median {np.median(margins):.2f}",
        (np.median(margins), 0.97),
        xycoords=("data", "axes fraction"),
        va="top",
    )
    left.set(xlabel="margin ξ (reward units)", ylabel="pairs", title=f"{len(margins)} self-labelled pairs")
    if audited:
        _agreement(axes[0, 1], margins, pairs["agrees_with_gold"].to_numpy(float), n_bins)
    return figure


def _agreement(axis, margins: np.ndarray, agrees: np.ndarray, n_bins: int) -> None:
    groups = np.array_split(np.argsort(margins, kind="stable"), min(n_bins, len(margins)))
    centre = np.array([margins[group].mean() for group in groups])
    share = np.array([agrees[group].mean() for group in groups])
    low, high = np.transpose([_wilson(agrees[group].sum(), len(group)) for group in groups])
    axis.errorbar(centre, share, [share - low, high - share], fmt="o-", color=COLORS["gold"], capsize=3)
    axis.axhline(0.5, color=COLORS["reference"], linestyle=":", linewidth=1)
    axis.text(1, 0.5, "coin flip ", transform=axis.get_yaxis_transform(), ha="right", va="bottom", fontsize="small")
    axis.set(
        xlabel="mean margin of the bin (reward units)",
        ylabel="self-label agrees with gold",
        ylim=(0, 1),
        title=f"overall {agrees.mean():.0%}",
    )


def _wilson(successes: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95% score interval of a proportion (Wilson, 1927)."""
    share = successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def self_labels_by_round(audits: dict[int, dict]) -> Figure:
    """Draw each round's self-label accuracy against gold (95% Wilson interval) and its mean margin.

    Parameters
    ----------
    audits : round -> `sgpo_lib.annotation.audit` of its pairs.
    """
    figure, axes = new_figure(1, 2)
    rounds = sorted(audits)
    share = np.array([audits[t]["agreement"] for t in rounds])
    low, high = np.transpose(
        [_wilson(audits[t]["agreement"] * audits[t]["n_pairs"], audits[t]["n_pairs"]) for t in rounds]
    )
    axes[0].errorbar(rounds, share, [share - low, high - share], fmt="o-", color=COLORS["gold"], capsize=3)
    axes[0].axhline(0.5, color=COLORS["reference"], linestyle=":", linewidth=1)
    axes[0].set(
        xlabel="round",
        ylabel="self-label agrees with gold",
        xticks=rounds,
        ylim=(0.3, 1),
        title="Self-labels",
    )
    axes[1].plot(rounds, [audits[t]["margin_mean"] for t in rounds], "o-", color=COLORS["leader"])
    axes[1].set(xlabel="round", ylabel="mean margin (reward units)", xticks=rounds, ylim=(0, None), title="Certainty")
    return figure
