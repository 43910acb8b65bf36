"""Pictures of the follower: what the adversary does to the margins, what it costs, and who computes it."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sgpo_lib.follower import WorstCase, logistic_loss
from sgpo_lib.plots.style import COLORS, new_figure

_MARGIN = "margin ξ (reward units)"
_RADIUS = "radius ε (reward units per pair)"
_VALUE = "expected loss (nats)"


def margins_and_worst_case(worst_case: WorstCase, bins: int = 60, unit: str = _MARGIN) -> Figure:
    """Draw the loss over the margins, and the margins before and after the adversary.

    Above, the chord from the loss at a to the loss at the last margin that moves has slope -λ*. Below, the
    mass that leaves the lowest margins piles up at a; the axis is logarithmic, because that mass is small.
    """
    figure, (above, below) = new_figure(
        2, 1, width=6.8, height=2.7, sharex=True, gridspec_kw={"height_ratios": [1, 1.15]}
    )
    _draw_loss(above, worst_case)
    _title(above, "The loss and the price of transport")
    _draw_margins(below, worst_case, bins, unit)
    _title(below, f"ε = {worst_case.radius:.3g} moves {_mass_to_a(worst_case)}")
    return figure


def knapsack(worst_case: WorstCase, span: float = 3.0) -> Figure:
    """Draw the follower as a knapsack: each pair a bar, as wide as its cost and as tall as its yield.

    Parameters
    ----------
    span : float > 1
        Where the horizontal axis ends, in radii; pairs beyond it are left out.
    """
    figure, axes = new_figure(width=6.4, height=3.6)
    _draw_knapsack(axes, worst_case, span)
    _title(axes, "The adversary buys the steepest chords first")
    return figure


def _draw_loss(axes, worst_case: WorstCase) -> None:
    low, high = worst_case.support
    grid = np.linspace(low, high, 400)
    axes.plot(grid, worst_case.loss(grid), color=COLORS["bound"], label="loss ℓ(ξ)")
    moved = worst_case.moved > 0
    if moved.any():
        ends = np.array([low, worst_case.margins[moved].max()])
        label = f"chord, slope −λ* = −{worst_case.price:.3g}" if worst_case.price else "everything moves: λ* = 0"
        axes.plot(ends, worst_case.loss(ends), "o--", color=COLORS["follower"], markersize=4, label=label)
        axes.axvspan(*ends, color=COLORS["follower"], alpha=0.1, lw=0)
    # The worst case is never below the mean, so their labels keep out of each other's way.
    means = (
        ("follower", "worst-case mean", worst_case.value, "bottom"),
        ("leader", "mean loss", worst_case.nominal, "top"),
    )
    for color, name, height, side in means:
        axes.axhline(height, color=COLORS[color], lw=1)
        axes.text(
            0.99,
            height,
            f"{name} {height:.4g}",
            transform=axes.get_yaxis_transform(),
            ha="right",
            va=side,
            color=COLORS[color],
        )
    axes.set(ylabel="loss (nats)")
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top + 0.45 * (top - bottom))
    axes.legend(loc="upper right")


def _draw_margins(axes, worst_case: WorstCase, bins: int, unit: str) -> None:
    low, high = worst_case.support
    room = 0.03 * (high - low) or 0.5
    edges = np.linspace(low, high, bins + 1) if high > low else np.array([low - 0.5, low + 0.5])
    atoms = worst_case.atoms()
    n_pairs = worst_case.margins.size
    before, _ = np.histogram(worst_case.margins, edges)
    after, _ = np.histogram(atoms.position, edges, weights=atoms.weight * n_pairs)
    axes.stairs(before, edges, fill=True, color=COLORS["sky"], alpha=0.5, label="margins α̂")
    axes.stairs(after, edges, color=COLORS["follower"], lw=1.4, label="worst case α*")
    moved = worst_case.moved > 0
    if moved.any():
        axes.axvspan(low, worst_case.margins[moved].max(), color=COLORS["follower"], alpha=0.1, lw=0)
    # Pairs are counted, so the axis is labelled in plain numbers; up to one pair it is linear.
    axes.set_yscale("symlog", linthresh=1)
    highest = max(before.max(), after.max())
    ticks = [count * 10**power for power in range(7) for count in (1, 3)]
    ticks = [0, *(tick for tick in ticks if tick <= 1.5 * highest)]
    axes.set_yticks(ticks, labels=[f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel=unit, ylabel=f"pairs a bin, of {n_pairs:,}", xlim=(low - room, high + room))
    axes.set_ylim(0, 4 * highest)
    axes.legend(loc="upper right")


def _draw_knapsack(axes, worst_case: WorstCase, span: float) -> None:
    axes.set(xlabel="transport (reward units per pair)", ylabel="loss gained per unit of transport")
    low, _ = worst_case.support
    ordered = np.sort(worst_case.margins)
    distance = ordered - low
    # A pair at a costs nothing and yields nothing: it has no bar.
    ordered, distance = ordered[distance > 0], distance[distance > 0]
    if distance.size == 0:
        axes.text(0.5, 0.5, "all margins lie at a: nothing to gain", transform=axes.transAxes, ha="center")
        return
    slopes = (worst_case.loss(np.array([low])) - worst_case.loss(ordered)) / distance
    widths = distance / worst_case.margins.size
    edges = np.concatenate([[0], np.cumsum(widths)])
    end = min(edges[-1], span * worst_case.radius) if worst_case.radius > 0 else edges[-1]
    shown = int(np.searchsorted(edges, end)) if end < edges[-1] else slopes.size
    slopes, edges = slopes[:shown], edges[: shown + 1]

    axes.stairs(
        slopes, edges, baseline=None, color=COLORS["reference"], lw=1, label="chord slope s(ξ), lowest margin first"
    )
    gained = f"moved: gains {worst_case.value - worst_case.nominal:.3g} in all"
    taken = np.minimum(edges, worst_case.radius)
    axes.stairs(slopes, taken, fill=True, color=COLORS["follower"], alpha=0.3, label=gained)
    axes.axvline(worst_case.radius, ymax=0.72, color=COLORS["bound"], lw=1, ls=":")
    price = f"price λ* = {worst_case.price:.4g}"
    axes.axhline(worst_case.price, color=COLORS["follower"], lw=1, ls="--", label=price)
    lowest, highest = min(slopes.min(), worst_case.price), max(slopes.max(), worst_case.price)
    room = 0.15 * max(highest - lowest, 1e-3 * max(highest, 1e-12))
    axes.set(xlim=(0, end), ylim=(lowest - room, highest + 3.2 * room))
    if worst_case.radius <= end:
        text = f" budget ε = {worst_case.radius:.3g}"
        right = worst_case.radius > 0.6 * end
        place = {"xytext": (-2 if right else 2, 4), "textcoords": "offset points", "ha": "right" if right else "left"}
        axes.annotate(text, (worst_case.radius, lowest - room), **place)
    axes.legend(loc="upper right")


def pull_on_each_pair(worst_case: WorstCase) -> Figure:
    """Draw how hard each pair pulls at the policy: N times the loss's derivative in the pair's margin.

    DPO pulls with σ(-ξ). On a moved pair, training on the frozen displacement (leader mode ``transport``)
    pulls with σ(-a), and the exact gradient of the worst case with the price λ*.
    """
    margins, t = worst_case.margins, worst_case.moved
    order = np.argsort(margins, kind="stable")
    x, t = margins[order], t[order]
    dpo = np.exp(-logistic_loss(-x))
    at_low = float(np.exp(-logistic_loss(-worst_case.support[0])))
    figure, axes = new_figure(width=6.4, height=3.4)
    style = {"marker": "o", "markersize": 3, "lw": 1.2} if x.size <= 500 else {"lw": 1.5}
    for color, label, moved_pull in (
        ("follower", f"transport: moved pairs pull with σ(−a) = {at_low:.3g}", at_low),
        ("dpo", f"gradient of V: moved pairs pull with λ* = {worst_case.price:.3g}", worst_case.price),
    ):
        axes.plot(x, (1 - t) * dpo + t * moved_pull, color=COLORS[color], label=label, **style)
    axes.plot(x, dpo, color=COLORS["bound"], lw=1, ls="--", label="DPO: every pair pulls with σ(−ξ)")
    axes.set(xlabel=_MARGIN, ylabel="pull on the margin, −N ∂/∂ξ")
    if (t > 0).any():
        axes.axvspan(worst_case.support[0], x[t > 0].max(), color=COLORS["follower"], alpha=0.1, lw=0)
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top + 0.3 * (top - bottom))
    axes.legend(loc="upper right")
    _title(axes, "What the leader feels")
    return figure


def labels_of_moved_pairs(worst_case: WorstCase, agrees_with_gold: Sequence[bool]) -> pd.DataFrame:
    """Count the wrong labels among the pairs that the adversary moved, at least in part, and among the others.

    Parameters
    ----------
    agrees_with_gold : N truth values, in the order of the margins.

    Returns
    -------
    DataFrame, a row for each of the two kinds that has pairs: ``pairs``, ``wrong``, ``share`` and its 95 %
    Wilson interval, which takes pairs for independent.
    """
    from scipy.stats import binomtest

    moved, wrong = worst_case.moved > 0, ~np.asarray(agrees_with_gold, dtype=bool)
    rows = {}
    for name, kind in (("moved", moved), ("not moved", ~moved)):
        pairs, errors = int(kind.sum()), int(wrong[kind].sum())
        if pairs:
            interval = binomtest(errors, pairs).proportion_ci(method="wilson")
            text = f"{interval.low:.0%} to {interval.high:.0%}"
            rows[name] = {"pairs": pairs, "wrong": errors, "share": f"{errors / pairs:.0%}", "95 % interval": text}
    return pd.DataFrame.from_dict(rows, orient="index")


def _share(x: float) -> str:
    return (f"{x:.1%}" if abs(x) < 100 else f"{x:.3g}").replace("-", "−")


def _signed(x: float) -> str:
    return f"{x:.3g}".replace("-", "−")


def _mass_to_a(worst_case: WorstCase) -> str:
    return f"{100 * worst_case.moved.mean():.3g} % of the mass to a = {_signed(worst_case.support[0])}"


def _title(axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize="medium", fontweight="bold")
