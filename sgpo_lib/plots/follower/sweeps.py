"""How the worst case changes with the radius, the tangents, the groups and the solver."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, PercentFormatter

from sgpo_lib.follower import Grouped, Support, influence, logistic_loss, tangents, worst_case
from sgpo_lib.plots.follower.worst import _RADIUS, _VALUE, _share, _title
from sgpo_lib.plots.style import COLORS, new_figure


def value_against_radius(
    margins: np.ndarray,
    support: Support | None,
    radii: Sequence[float],
    marked: Mapping[str, float] | None = None,
) -> Figure:
    """Draw the worst-case loss and its price against the radius, with named radii marked.

    Parameters
    ----------
    margins : ndarray, shape (N,)
    radii : sequence of positive float, ascending
        The axis is logarithmic.
    marked : mapping of a name to a radius, for instance {"fixed": 0.01, "calibrated": 0.2}
        A radius of 0 has no place on the axis and is left out.
    """
    marked = {name: radius for name, radius in (marked or {}).items() if radius > 0}
    # Where everything has moved the price drops to 0 at once: one radius on either side draws it upright.
    start = worst_case(margins, 0.0, support)
    everything = float(np.mean(start.margins - start.support[0])) * np.array([1 - 1e-9, 1 + 1e-9])
    kinks = everything[(everything > np.min(radii)) & (everything < np.max(radii))]
    radii = np.unique(np.concatenate([radii, kinks, list(marked.values())]))
    solutions = [worst_case(margins, radius, support) for radius in radii]
    values, prices = (np.array([getattr(s, name) for s in solutions]) for name in ("value", "price"))
    nominal = solutions[0].nominal

    figure, (left, right) = new_figure(1, 2, width=4.4, height=3.4, sharex=True)
    left.plot(radii, values, color=COLORS["follower"], label="worst case V(ε)")
    left.plot(radii, nominal + radii, color=COLORS["bound"], lw=1, ls=":", label="no support: mean loss + ε")
    left.axhline(nominal, color=COLORS["leader"], lw=1, label="mean loss")
    left.set(xscale="log", xlabel=_RADIUS, ylabel=_VALUE)
    reach = float(values.max() - nominal) or 1.0
    left.set_ylim(nominal - 0.05 * reach, nominal + 1.25 * reach)
    _title(left, "Value")
    right.plot(radii, prices, color=COLORS["follower"])
    right.set(xlabel=_RADIUS, ylabel="price λ* = dV/dε", ylim=(0, None))
    _title(right, "Price of the radius")
    palette = [COLORS[name] for name in ("gold", "dpo", "accent", "sky")]
    for index, (name, radius) in enumerate(marked.items()):
        color = palette[index % len(palette)]
        left.axvline(radius, color=color, lw=1.5, label=f"{name}: ε = {radius:.3g}")
        right.axvline(radius, color=color, lw=1.5)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def influence_against_radius(
    margins: np.ndarray, support: Support | None, radii: Sequence[float], marked: Mapping[str, float] | None = None
) -> Figure:
    """Draw the share of DPO's gradient weights that mode `transport` changes, and its bound ε/2, on log axes.

    At the start of a round whose margins restart at 0 (reference `previous`).

    Parameters
    ----------
    margins, support, radii, marked : as in `value_against_radius`.
    """
    shares = [influence(worst_case(margins, radius, support)) for radius in radii]
    figure, axes = new_figure(width=6.0, height=3.8)
    axes.plot(radii, np.array(radii) / 2, color=COLORS["bound"], lw=1, ls=":", label="bound ε/2")
    axes.plot(radii, shares, color=COLORS["follower"], label="influence on these margins")
    palette = [COLORS[name] for name in ("gold", "dpo", "accent", "sky")]
    for index, (name, radius) in enumerate((marked or {}).items()):
        if radius > 0:
            share = influence(worst_case(margins, radius, support))
            label = f"{name}: ε = {radius:.3g} changes {_share(share)}"
            axes.plot([radius], [share], "o", color=palette[index % len(palette)], label=label)
    axes.set(xscale="log", yscale="log", xlabel=_RADIUS, ylabel="share of DPO's pull that changes")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
    axes.legend(loc="lower right")
    _title(axes, "How much the follower can matter")
    return figure


def tangent_error(
    margins: np.ndarray, radius: float, support: tuple[float, float], n_pieces: Sequence[int] = range(2, 34)
) -> Figure:
    """Draw what K tangents cost: the largest error of the loss, and the value they give.

    Parameters
    ----------
    support : (a, b)
        The window over which the tangents are spread.
    n_pieces : sequence of int
        The K to draw. The nested ones among them (2, 3, 5, 9, 17, ...) are joined: Proposition 3.2 says that
        the value rises along them, and only along them.
    """
    n_pieces = np.unique(np.asarray(n_pieces, dtype=int))
    grid = np.linspace(*support, 20001)
    exact = worst_case(margins, radius, support)
    lines = [tangents(int(k), support) for k in n_pieces]
    errors = np.array([(logistic_loss(grid) - line(grid)).max() for line in lines])
    values = np.array([worst_case(margins, radius, support, line).value for line in lines])
    nested = np.isin(n_pieces, 1 + 2 ** np.arange(16))

    figure, (left, right) = new_figure(1, 2, width=4.4, height=3.4, sharex=True)
    for axes, heights in ((left, errors), (right, values)):
        axes.plot(n_pieces, heights, "o", color=COLORS["sky"], markersize=4, label="K evenly spread tangents")
        axes.plot(
            n_pieces[nested],
            heights[nested],
            "o-",
            color=COLORS["leader"],
            markersize=5,
            label="nested tangents",
        )
        axes.set(xscale="log", xlabel="number of tangents K")
        ticks = [k for k in (2, 3, 5, 9, 17, 33, 65, 129) if n_pieces[0] <= k <= n_pieces[-1]]
        axes.set_xticks(ticks, labels=[str(k) for k in ticks])
        axes.minorticks_off()
    left.set(yscale="log" if errors.min() > 0 else "linear", ylabel="largest error of the loss (nats)")
    _title(left, "Tangents lie below the loss")
    right.axhline(exact.value, color=COLORS["follower"], lw=1, label=f"exact loss: {exact.value:.4g}")
    right.axhline(exact.nominal, color=COLORS["bound"], lw=1, ls=":", label=f"no adversary: {exact.nominal:.4g}")
    right.set(ylabel=f"worst-case {_VALUE}")
    right.legend(frameon=False, loc="lower right", fontsize="small")
    _title(right, f"Value at ε = {radius:.3g}")
    return figure


def grouping_cost(margins: np.ndarray, radius: float, support: Support | None, group_sizes: Sequence[int]) -> Figure:
    """Draw the part of the adversary's gain that is lost when groups of pairs cannot share a budget.

    Parameters
    ----------
    group_sizes : sequence of int
        G, from 1 to the number of pairs.
    """
    sizes = np.unique(np.asarray(group_sizes, dtype=int))
    whole = worst_case(margins, radius, support)
    gains = np.array([Grouped(int(size))(margins, radius, support).value for size in sizes]) - whole.nominal
    gain = whole.value - whole.nominal
    # A loss that is only rounding is none.
    lost = np.where(gain - gains > 1e-12 * abs(whole.value), 1 - gains / (gain or 1.0), 0.0)

    figure, axes = new_figure(width=5.0, height=3.4)
    axes.plot(sizes, lost, "o-", color=COLORS["follower"], markersize=4, label="groups")
    axes.axhline(0, color=COLORS["leader"], lw=1, label=f"all {whole.margins.size:,} pairs at once")
    paper = [size for size in (100, 200, 300) if size in sizes]
    if paper:
        axes.plot(
            paper,
            lost[np.isin(sizes, paper)],
            "s",
            color=COLORS["gold"],
            markersize=7,
            label="G = " + ", ".join(map(str, paper)) + " of the paper's Table 4",
        )
    axes.set(xscale="log", xlabel="group size G (pairs)", ylabel="adversary's gain lost to grouping")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.legend(frameon=False)
    _title(axes, f"What grouping costs at ε = {radius:.3g}")
    return figure


def solvers_side_by_side(table: pd.DataFrame | list[dict]) -> Figure:
    """Draw the rows of `sgpo_lib.follower.side_by_side`: value, broken budget and time of each follower.

    Values are drawn as a share of what the adversary can gain: 0 is the loss without an adversary and 100 %
    the optimum, so that solvers in margin space and in probability space share an axis.
    """
    table = pd.DataFrame(table)
    rows = np.arange(len(table))[::-1]
    attainable = table["bound"] - table["nominal"]
    # Where nothing can be gained, gaining nothing is all of it.
    gain = ((table["value"] - table["nominal"]) / attainable).where(attainable > 0, 1.0)
    excess = table["excess"] / table["radius"]
    figure, panels = new_figure(
        1, 3, width=3.1, height=0.9 + 0.42 * len(table), sharey=True, gridspec_kw={"wspace": 0.05}
    )
    # Solvers meet constraints to their tolerance; what is below it is not a violation.
    good = (gain > 1 - 5e-4) & (excess < 1e-3)
    colors = np.where(good, COLORS["leader"], COLORS["follower"])
    columns = (
        (gain, "share of the attainable gain", [_share(x) for x in gain]),
        (
            excess,
            "transport over budget",
            ["none" if x < 1e-6 else "< 0.1%" if x < 1e-3 else _share(x) for x in excess],
        ),
        (table["seconds"], "time (s)", [_seconds(x) for x in table["seconds"]]),
    )
    for axes, (lengths, label, texts) in zip(panels, columns, strict=True):
        axes.set_xlabel(label)
        if label.startswith("time"):
            axes.set_xscale("log")
            axes.hlines(rows, lengths.min() / 3, lengths, color=colors, lw=2)
            axes.set_xlim(lengths.min() / 3, lengths.max() * 200)
            axes.xaxis.set_major_locator(LogLocator(100))
            axes.minorticks_off()
        else:
            axes.hlines(rows, 0, lengths, color=colors, lw=2)
            axes.axvline(0, color=COLORS["bound"], lw=0.8)
            axes.xaxis.set_major_locator(MaxNLocator(3))
            axes.xaxis.set_major_formatter(PercentFormatter(1))
            low, high = min(lengths.min(), 0), max(lengths.max(), 0.01)
            axes.set_xlim(low - 0.05 * (high - low), high + 0.5 * (high - low))
        axes.scatter(lengths, rows, c=colors, s=28, zorder=3)
        for x, row, text in zip(lengths, rows, texts, strict=True):
            axes.annotate(text, (max(x, 0), row), (7, 0), textcoords="offset points", va="center")
    labels = [f"{row.solver}, {row.n_pairs:,} pairs" for row in table.itertuples()]
    panels[0].set_yticks(rows, labels=table["solver"] if table["n_pairs"].nunique() == 1 else labels)
    panels[0].set_ylim(-0.6, len(table) - 0.4)
    if table["n_pairs"].nunique() == 1:
        _title(panels[0], f"{table['n_pairs'].max():,} pairs")
    return figure


def _seconds(x: float) -> str:
    if x < 1e-3:
        return f"{x * 1e6:.0f} µs"
    return f"{x * 1e3:.3g} ms" if x < 1 else f"{x:.3g} s"
