"""The figures of the lab notebook: arms against the baseline, gains against influence, maps, label curves."""

from dataclasses import replace

import ipywidgets
import numpy as np
import pandas as pd
from IPython.display import display

from sgpo_lib import lab
from sgpo_lib.plots.style import COLORS, new_figure

KINDS = {"transport": "follower", "random": "accent", "flips": "dpo", "shorter": "sky"}
"""How the names of a graded series of arms begin, and its color in `gain_against_influence`."""


def arms(table: pd.DataFrame):
    """Each arm's difference to the baseline with its 95% interval, as trained and at matched KL.

    Parameters
    ----------
    table : DataFrame of `sgpo_lib.lab.summary`
    """
    figure, axes = new_figure(1, 2, width=4.6, height=0.32 * len(table) + 0.9, sharey=True)
    position = np.arange(len(table))[::-1]
    panels = [("raw", "As trained: KL differs", "reference"), ("gain", "At matched KL", "leader")]
    for axis, (name, title, color) in zip(axes, panels, strict=True):
        axis.axvline(0, color=COLORS["bound"], linewidth=0.8)
        axis.hlines(position, table[f"{name}_low"], table[f"{name}_high"], color=COLORS[color])
        axis.plot(table[name], position, "o", color=COLORS[color])
        axis.set(title=title, xlabel="gold utility against self-annotation")
    axes[0].set_yticks(position, table.index)
    return figure


def gain_against_influence(table: pd.DataFrame, control: str):
    """Gains at matched KL against each arm's influence, on a log axis, with a control's interval as a band.

    Parameters
    ----------
    table : DataFrame of `sgpo_lib.lab.summary`
        Its index begins with the `KINDS`.
    control : str
        The arm that shows the run noise; other arms without influence are left out.
    """
    figure, axis = new_figure(width=5.2)
    axis.axhspan(*table.loc[control, ["gain_low", "gain_high"]], color=COLORS["reference"], alpha=0.4, label=control)
    axis.axhline(0, color=COLORS["bound"], linewidth=0.8)
    drawn = table[table["influence"] > 0]
    for kind, color in KINDS.items():
        part = drawn[drawn.index.str.startswith(kind)].sort_values("influence")
        half = (part["gain_high"] - part["gain_low"]) / 2
        axis.errorbar(part["influence"], part["gain"], half, fmt="o-", color=COLORS[color], label=kind)
    axis.set(xscale="log", xlabel="influence: share of DPO's pull that changes", ylabel="gain at matched KL")
    axis.legend()
    return figure


def maps(table: pd.DataFrame, names: list[str]):
    """One panel an arm: gain at matched KL over label noise and number of labels.

    Parameters
    ----------
    table : DataFrame of `sgpo_lib.lab.sweep`
    names : list of str
        Arms. Cells whose 95% interval contains 0 are in brackets.
    """
    rows = -(-len(names) // 3)
    figure, axes = new_figure(rows, 3, width=3.4, height=2.8, squeeze=False)
    drawn = table[table["arm"].isin(names)]
    limit = drawn["gain"].abs().max()
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, names, strict=False):
        part = drawn[drawn["arm"] == name]
        gain, low, high = (
            part.pivot(index="label_noise", columns="n_labels", values=column)
            for column in ("gain", "gain_low", "gain_high")
        )
        axis.imshow(gain, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto", origin="lower")
        for (row, column), value in np.ndenumerate(gain.to_numpy()):
            is_sure = low.iloc[row, column] * high.iloc[row, column] > 0
            text = f"{value:+.3f}" if is_sure else f"({value:+.3f})"
            dark = abs(value) > 0.6 * limit
            axis.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
        axis.set_xticks(range(gain.shape[1]), gain.columns)
        axis.set_yticks(range(gain.shape[0]), [f"{noise:.0%}" for noise in gain.index])
        axis.set(title=name, xlabel="labels", ylabel="labels turned over")
    return figure


def label_curve(counts: list[int], curve: np.ndarray, gold: dict[str, np.ndarray]):
    """Gold utility of seed DPO against its labels, log axis, with the arms as horizontal lines.

    Parameters
    ----------
    counts : list of int
    curve : ndarray, shape (S, len(counts))
    gold : mapping of an arm to its gold utility at the same KL, shape (S,)
    """
    figure, axis = new_figure(width=5.6, height=3.8)
    half = 1.96 * curve.std(axis=0, ddof=1) / np.sqrt(len(curve))
    axis.errorbar(counts, curve.mean(axis=0), half, fmt="o-", color=COLORS["dpo"])
    means = {name: values.mean() for name, values in gold.items()}
    low, high = axis.get_ylim()
    text = -np.inf
    for name in sorted(means, key=means.get):
        axis.axhline(means[name], color=COLORS["reference"], linewidth=0.8)
        text = max(means[name], text + 0.04 * (high - low))  # names of close lines would cover each other
        axis.text(1.01, text, name, transform=axis.get_yaxis_transform(), va="center", fontsize=7)
    axis.set(xscale="log", xlabel="labels of seed DPO", ylabel="gold utility at matched KL")
    axis.set_xticks(counts, counts)
    axis.minorticks_off()
    return figure


def explorer(world: lab.World, setting: lab.Setting, seed: int, nats: float):
    """Sliders over label noise, labels and rounds, and a button that plays every arm a hundred times.

    Parameters
    ----------
    world, setting, seed, nats
        As in `sgpo_lib.lab.compare`.
    """

    def draw(label_noise: float, n_labels: int, n_rounds: int) -> None:
        own = replace(setting, label_noise=label_noise, n_labels=n_labels, n_rounds=n_rounds)
        display(arms(lab.summary(lab.compare(world, own, lab.ARMS, 100, seed, nats))))

    return ipywidgets.interactive(
        draw,
        {"manual": True, "manual_name": "play"},
        label_noise=ipywidgets.FloatSlider(setting.label_noise, min=0, max=0.45, step=0.05),
        n_labels=ipywidgets.SelectionSlider(options=[16, 32, 64, 128, 256, 512], value=setting.n_labels),
        n_rounds=ipywidgets.IntSlider(setting.n_rounds, min=1, max=6),
    )
