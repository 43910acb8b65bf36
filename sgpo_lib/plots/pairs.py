"""Pictures and tables of pairs: what was said, how sure the policy is, and whether it is right."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler
from scipy.stats import binomtest

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
    """Show what each policy answers first to the first prompts: a row per prompt, a column per policy."""
    shown = responses["prompt_id"].unique()[:n_prompts]
    rows = responses[responses["prompt_id"].isin(shown) & (responses["sample"] == 0)]
    table = rows.pivot(index="prompt_id", columns="policy", values="response").loc[shown, rows["policy"].unique()]
    questions = rows.drop_duplicates("prompt_id").set_index("prompt_id")["prompt"]
    table.insert(0, "prompt", [questions[prompt_id][-1]["content"] for prompt_id in shown])
    return _as_page(table.reset_index(drop=True).rename_axis(columns=None))


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
    n_bins : equally filled bins; bars are 95% Wilson intervals, which take pairs for independent.
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
    _shares(axis, centre, [int(agrees[group].sum()) for group in groups], [len(group) for group in groups])
    axis.axhline(0.5, color=COLORS["reference"], linestyle=":", linewidth=1)
    axis.text(1, 0.5, "coin flip ", transform=axis.get_yaxis_transform(), ha="right", va="bottom", fontsize="small")
    axis.set(
        xlabel="mean margin of the bin (reward units)",
        ylabel="self-label agrees with gold",
        ylim=(0, 1),
        title=f"overall {agrees.mean():.0%}",
    )


def _shares(axis, x: Sequence[float], right: Sequence[int], n: Sequence[int]) -> None:
    """Plot how many of `n` were right, with 95% Wilson intervals."""
    share = np.divide(right, n)
    intervals = [binomtest(k, of).proportion_ci(method="wilson") for k, of in zip(right, n, strict=True)]
    low, high = np.transpose([(interval.low, interval.high) for interval in intervals])
    lengths = np.clip([share - low, high - share], 0, None)  # at 0 and 1 rounding may leave less than 0
    axis.errorbar(x, share, lengths, fmt="o-", color=COLORS["gold"], capsize=3)


def self_labels_by_round(audits: dict[int, dict]) -> Figure:
    """Draw each round's self-label accuracy against gold and its mean margin.

    Bars are 95% Wilson intervals, which take pairs for independent: a little too short where prompts share forms.

    Parameters
    ----------
    audits : round -> `sgpo_lib.annotation.audit` of its pairs.
    """
    figure, axes = new_figure(1, 2)
    rounds = sorted(audits)
    n = [audits[t]["n_pairs"] for t in rounds]
    _shares(axes[0], rounds, [round(audits[t]["agreement"] * of) for t, of in zip(rounds, n, strict=True)], n)
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
