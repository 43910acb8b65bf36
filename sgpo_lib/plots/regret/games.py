"""The figures of the regret notebook: simulations as bands, the theorems' lines beside them."""

from io import BytesIO

import ipywidgets
import numpy as np

from sgpo_lib.plots.style import COLORS, new_figure


def band(axis, x, curves, color, label, **kwargs):
    """Draw the median of curves (G, S) over games with a band from the smallest to the largest."""
    curves = np.asarray(curves)
    axis.fill_between(x, curves.min(axis=0), curves.max(axis=0), color=color, alpha=0.2, linewidth=0)
    axis.plot(x, np.median(curves, axis=0), color=color, label=label, **kwargs)


def _label(axis, title, legend="upper left", **kwargs):
    """Title a panel at its left edge and add its legend without a frame."""
    axis.set_title(title, loc="left", fontweight="bold", fontsize="medium")
    axis.legend(loc=legend, frameon=False, fontsize="small", **kwargs)


def worst_case_drop(drops, lipschitz: float, radius: float):
    """Theorem 2.4: payoff lost against shift size, in units of the bound and of the policy's own constant.

    Parameters
    ----------
    drops : list of `sgpo_lib.regret.Drops`, one a game, with common sizes.
    lipschitz, radius : L and ε of all games.
    """
    x = drops[0].sizes / radius
    figure, axes = new_figure(1, 2, width=4.4, sharey=True)
    panels = [
        (axes[0], [lipschitz * radius] * len(drops), r"bound $L\delta$ (Theorem 2.4)", r"payoff lost / $L\varepsilon$"),
        (
            axes[1],
            [game.supremum[-1] / x[-1] for game in drops],
            r"$\|\theta\|\,\delta$ (Lemma 3.1)",
            r"payoff lost / $\|\theta\|\varepsilon$",
        ),
    ]
    for axis, units, label, name in panels:
        tested = np.concatenate([game.tested / unit for game, unit in zip(drops, units, strict=True)], axis=1)
        spread = np.linspace(-0.012, 0.012, tested.shape[1])
        axis.scatter(x[:, None] + spread, tested, s=2, color=COLORS["reference"], alpha=0.35, linewidth=0, zorder=1)
        axis.scatter([], [], s=12, color=COLORS["reference"], label="one tested shift")
        worst = [game.worst / unit for game, unit in zip(drops, units, strict=True)]
        band(axis, x, worst, COLORS["follower"], "worst shift, exact")
        axis.plot(x, x, color=COLORS["bound"], linestyle="--", label=label)
        axis.set(xlabel=r"shift $\delta / \varepsilon$", ylabel=name)
    _label(axes[0], "Against the class's constant L")
    _label(axes[1], "Against the policy's own constant")
    return figure


def regret_against_shift(families, lipschitz: float, radius: float):
    """Regret of DPO and SGPO against shift size, one panel a family, and whether Assumption D.8 holds.

    Parameters
    ----------
    families : dict of title -> list of `sgpo_lib.regret.Regrets` with common sizes, two entries. DPO's policy
        must have the largest norm allowed in every game, so that L is its own slope.
    """
    figure, axes = new_figure(1, 3, width=4.1, height=3.6)
    for axis, (title, games) in zip(axes[:2], families.items(), strict=True):
        _regret_panel(axis, games, lipschitz, radius)
        axis.set_title(title, loc="left", fontweight="bold", fontsize="medium")
    axes[0].set_ylabel(r"worst regret / $L\varepsilon$")
    handles, labels = axes[1].get_legend_handles_labels()
    axes[0].legend(handles[:3], labels[:3], loc="upper left", frameon=False, fontsize="small")
    axes[1].legend(handles[3:], labels[3:], loc="upper left", frameon=False, fontsize="small")
    for color, (title, games) in zip(("sky", "accent"), families.items(), strict=True):
        x = games[0].sizes[1:] / radius
        kappa = [game.centre_shift[1:] / (lipschitz * radius) for game in games]
        band(axes[2], x, kappa, COLORS[color], title)
    axes[2].axhline(1, color=COLORS["bound"], linestyle="--", label=r"$\kappa = \varepsilon$, the most D.8 allows")
    axes[2].set(yscale="log", ylim=(0.1, 1e3), ylabel=r"centre shift $\kappa\,/\,L\varepsilon$")
    _label(axes[2], "Does Assumption D.8 hold?")
    for axis in axes:
        axis.set(xlabel=r"shift $\delta / \varepsilon$", xlim=(0, families[title][0].sizes[-1] / radius))
    return figure


def _regret_panel(axis, games, lipschitz, radius):
    x = games[0].sizes / radius
    unit = lipschitz * radius
    axis.axvspan(0, 1, color=COLORS["reference"], alpha=0.15, linewidth=0)
    band(axis, x, [game.dpo / unit for game in games], COLORS["dpo"], "DPO, worst shift")
    band(axis, x, [game.sgpo / unit for game in games], COLORS["ssapo"], "SGPO, worst shift")
    band(axis, x, [game.benign / unit for game in games], COLORS["dpo"], "DPO, benign shift", linestyle=":")
    axis.plot([0, 1], [2, 2], color=COLORS["bound"], linewidth=2.5, label=r"$2L\varepsilon$ in the ball (Thm 2.5)")
    axis.plot(x[x >= 1], 2 * x[x >= 1], color=COLORS["bound"], linestyle=":", label=r"$2L\delta$ outside it")
    axis.plot(
        x[x >= 2],
        x[x >= 2] - 2,
        color=COLORS["follower"],
        linestyle="--",
        label=r"$L(\delta - 2\varepsilon)$ (Thm 2.6)",
    )
    # Room below zero, so that a regret of zero is seen.
    axis.set_ylim(-0.5, 1.4 * x[-1])


def one_game(regrets, lipschitz: float, radius: float, shift: float):
    """One game at one radius, with one shift size marked: the picture behind the sliders."""
    figure, axis = new_figure(width=5.6, height=3.6)
    axis.axvspan(
        0, radius, color=COLORS["reference"], alpha=0.12, linewidth=0, label=r"ball, $\delta \leq \varepsilon$"
    )
    for name, color in (("dpo", "dpo"), ("sgpo", "ssapo")):
        curve = getattr(regrets, name)
        here = np.interp(shift, regrets.sizes, curve)
        axis.plot(regrets.sizes, curve, color=COLORS[color], label=f"{name.upper()}: {here:.3f} at the mark")
        axis.plot(shift, here, "o", color=COLORS[color])
    axis.plot(
        regrets.sizes,
        2 * lipschitz * np.maximum(regrets.sizes, radius),
        color=COLORS["bound"],
        linestyle=":",
        label=r"$2L\max(\delta, \varepsilon)$",
    )
    line = regrets.norms[0] * (regrets.sizes - 2 * radius)
    axis.plot(
        regrets.sizes[line >= 0],
        line[line >= 0],
        color=COLORS["follower"],
        linestyle="--",
        label=r"$\|\theta_{DPO}\|(\delta - 2\varepsilon)$",
    )
    axis.vlines(shift, 0, np.interp(shift, regrets.sizes, regrets.dpo), color=COLORS["reference"], linewidth=0.8)
    norms = rf"$\|\theta_{{DPO}}\|$ = {regrets.norms[0]:.2f}, $\|\theta_{{SGPO}}\|$ = {regrets.norms[1]:.2f}"
    axis.set(
        xlabel=r"shift $\delta$ (feature units)",
        ylabel="worst regret (nats)",
        xlim=(0, regrets.sizes[-1]),
        ylim=(0, 1.6 * regrets.dpo.max()),
    )
    _label(axis, norms)
    return figure


def live(draw, **sliders):
    """Sliders above a picture of draw(**values), redrawn when one is moved.

    `ipywidgets.interact` captures output through an Output widget, with which batch execution of a notebook can
    hang (nbclient issue 312). A plain image has no such trouble, and keeps its picture without a kernel.

    Parameters
    ----------
    draw : function of the sliders' values, by name, that returns a figure.
    sliders : ipywidgets with a ``value``.
    """
    picture = ipywidgets.Image(format="png")

    def redraw(_change=None):
        buffer = BytesIO()
        draw(**{name: slider.value for name, slider in sliders.items()}).savefig(buffer, format="png", dpi=110)
        picture.value = buffer.getvalue()

    for slider in sliders.values():
        slider.observe(redraw, names="value")
    redraw()
    return ipywidgets.VBox([*sliders.values(), picture])
