"""What the theorems bound beside what the games measure."""

import numpy as np

from sgpo_lib.plots.regret.games import _label, band
from sgpo_lib.plots.style import COLORS, new_figure


def advantage(families, radius: float):
    """Corollary 2.7: DPO's regret over SGPO's, at the same shift and as the corollary compares them.

    Parameters
    ----------
    families : dict of title -> list of `sgpo_lib.regret.Regrets` whose common sizes include the radius.
    """
    figure, axes = new_figure(1, len(families), width=4.6, height=3.5, sharey=True)
    for axis, (title, games) in zip(axes, families.items(), strict=True):
        sizes = games[0].sizes
        x = sizes[1:] / radius
        edge = int(np.argmin(np.abs(sizes - radius)))
        same = [game.dpo[1:] / game.sgpo[1:] for game in games]
        across = [game.dpo[1:] / game.sgpo[edge] for game in games]
        band(axis, x, across, COLORS["gold"], r"DPO at $\delta$ / SGPO's worst in the ball")
        band(axis, x, same, COLORS["ssapo"], r"DPO / SGPO, both at $\delta$")
        beyond = np.linspace(2.05, x[-1], 200)
        axis.plot(
            beyond, beyond / 2 - 1, color=COLORS["bound"], linestyle="--", label=r"$\delta/2\varepsilon - 1$ (Cor. 2.7)"
        )
        axis.axhline(1, color=COLORS["reference"], linewidth=0.8)
        axis.set(yscale="log", xlabel=r"shift $\delta / \varepsilon$", ylim=(0.01, 100))
        _label(axis, title, "lower right")
    axes[0].set_ylabel("ratio of worst regrets")
    return figure


def convergence(result, jumps, weight_shown: float):
    """Theorem 2.3: distances, factors measured and predicted, the factor against step size, and a failure.

    Parameters
    ----------
    result : `sgpo_lib.regret.Convergence`
    jumps : (G, T) step lengths where the follower's best response can jump.
    weight_shown : the proximal weight whose paths the first panel shows.
    """
    figure, axes = new_figure(2, 2, width=4.6, height=3.3)
    column = int(np.argmin(np.abs(result.weights - weight_shown)))
    worst = int(np.argmax(result.critical))
    _distances(axes[0, 0], result, column, worst)
    stable = (result.predicted < 1) & np.isfinite(result.measured)
    unstable = (result.predicted >= 1) & np.isfinite(result.measured)
    axes[0, 1].plot([0.1, 3], [0.1, 3], color=COLORS["bound"], linestyle="--", label="prediction = measurement")
    for mask, color, label in ((stable, "leader", "converges"), (unstable, "follower", "diverges")):
        axes[0, 1].scatter(result.predicted[mask], result.measured[mask], s=14, color=COLORS[color], label=label)
    axes[0, 1].set(xlabel="predicted factor", ylabel="measured factor", xscale="log", yscale="log")
    ticks = [0.1, 0.3, 1, 3]
    axes[0, 1].set_xticks(ticks, ticks)
    axes[0, 1].set_yticks(ticks, ticks)
    _label(axes[0, 1], "Contraction, all games and steps")
    _factors(axes[1, 0], result)
    _jumps(axes[1, 1], jumps)
    return figure


def _distances(axis, result, column, worst):
    steps = np.arange(result.distances.shape[2])
    floor = 1e-15
    band(
        axis,
        steps,
        np.maximum(result.distances[:, column], floor),
        COLORS["leader"],
        rf"all games, $\lambda$ = {result.weights[column]:g}",
    )
    rate = np.median(result.predicted[:, column])
    axis.plot(
        steps, 0.3 * rate**steps, color=COLORS["bound"], linestyle="--", label=f"predicted, median factor {rate:.2f}"
    )
    axis.plot(
        steps,
        np.maximum(result.distances[worst, 0], floor),
        color=COLORS["follower"],
        label=rf"one game, $\lambda$ = {result.weights[0]:g} < {result.critical[worst]:.2f}",
    )
    axis.set(yscale="log", xlabel="round", ylabel="relative distance", ylim=(1e-14, 1e7))
    _label(axis, "Distance to equilibrium", "upper right")


def _factors(axis, result):
    band(axis, result.weights, result.measured, COLORS["leader"], "measured", marker="o", markersize=3)
    band(axis, result.weights, result.paper, COLORS["accent"], r"the proof's $L_\ell L_f L_R/\mu$", linestyle="-.")
    axis.axhline(1, color=COLORS["reference"], linewidth=0.8)
    axis.set(
        xscale="log", yscale="log", xlabel=r"proximal weight $\lambda$ (1 / step size)", ylabel="contraction factor"
    )
    _label(axis, "A shorter step converges more slowly", "upper right")


def _jumps(axis, jumps):
    steps = np.arange(1, jumps.shape[1] + 1)
    stalled = jumps[:, -20:].max(axis=1) > 1e-8
    for lengths, stuck in zip(jumps, stalled, strict=True):
        color = COLORS["follower"] if stuck else COLORS["leader"]
        axis.plot(steps, np.maximum(lengths, 1e-17), color=color, linewidth=0.8, alpha=0.7)
    axis.plot([], [], color=COLORS["follower"], label=f"never settles: {stalled.sum()} of {len(stalled)} games")
    axis.plot([], [], color=COLORS["leader"], label=f"converges: {(~stalled).sum()} of {len(stalled)}")
    axis.set(yscale="log", xlabel="round", ylabel=r"$\|\theta_{t+1} - \theta_t\|$", ylim=(1e-12, 1e3))
    _label(axis, "When the best response can jump", "upper right")


def existence(policies, values, response, floors, missing, moved):
    """Theorem 2.2 in one dimension: value functions, the best response, and the limit nobody attains.

    Parameters
    ----------
    policies : (P,) grid of θ.
    values : dict of label -> (color name, V (P,)); the maximum of each is marked.
    response : `sgpo_lib.follower.WorstCase` at the equilibrium.
    floors, missing, moved : (F,) window ends, value missing to Lemma 3.1, and mass moved.
    """
    figure, axes = new_figure(1, 3, width=4.1, height=3.4)
    for label, (color, value) in values.items():
        best = np.argmax(value)
        axes[0].plot(policies, value, color=COLORS[color], label=label)
        axes[0].plot(policies[best], value[best], "o", color=COLORS[color])
    tops = [value.max() for _, value in values.values()]
    axes[0].set(xlabel=r"policy $\theta$", ylabel="payoff (nats)", ylim=(min(tops) - 0.45, max(tops) + 0.3))
    _label(axes[0], "The leader's value")
    atoms = response.atoms()
    order = np.argsort(atoms.position, kind="stable")
    n = len(response.margins)
    axes[1].step(
        np.sort(response.margins),
        np.arange(1, n + 1) / n,
        where="post",
        color=COLORS["reference"],
        linewidth=3.5,
        label=r"centre $\hat\alpha$",
    )
    axes[1].step(
        atoms.position[order],
        np.cumsum(atoms.weight[order]),
        where="post",
        color=COLORS["follower"],
        label=r"best response $\alpha^\star$",
    )
    axes[1].set(xlabel=r"margin $\xi$", ylabel="cumulative mass")
    _label(axes[1], "The follower's best response")
    axes[2].plot(-floors, missing, "o-", color=COLORS["leader"], label="value missing to the infimum (nats)")
    axes[2].plot(-floors, moved, "s-", color=COLORS["follower"], label="mass moved")
    axes[2].set(xscale="log", yscale="log", xlabel=r"window's lower end $-a$ (margin units)")
    _label(axes[2], "On the whole line: never attained", "lower left")
    return figure


def approximation(pieces, groups, bins, tolerances):
    """Propositions 3.2 and D.12-D.14: optimism of the worst-case loss under each approximation.

    Parameters
    ----------
    pieces, groups, bins, tolerances : (x (S,), optimism (G, S), bound (G, S)); `pieces` has a fourth
        entry, the positions in x whose tangents are nested.
    """
    figure, axes = new_figure(1, 3, width=4.1, height=3.5)
    counts, optimism, bound, nested = pieces
    band(axes[0], counts[nested], optimism[:, nested], COLORS["leader"], r"nested tangents, $K = 2^j + 1$", marker="o")
    other = np.setdiff1d(np.arange(len(counts)), nested)
    axes[0].plot(counts[other], np.median(optimism[:, other], axis=0), "x", color=COLORS["follower"], label="other $K$")
    band(axes[0], counts, bound, COLORS["bound"], r"$\Delta_{pl}(K)$ (Prop. D.12)", linestyle="--")
    axes[0].set(xscale="log", yscale="log", xlabel="tangents $K$")
    axes[0].set_xticks(counts[nested], counts[nested])
    axes[0].minorticks_off()
    sizes, optimism, bound = groups
    band(axes[1], sizes, optimism, COLORS["leader"], "random groups")
    band(axes[1], sizes, bound, COLORS["leader"], "their bound (Prop. D.13)", linestyle="--")
    sizes, optimism, claim = bins
    band(axes[1], sizes, optimism, COLORS["follower"], "bins of the margin axis")
    band(axes[1], sizes, claim, COLORS["follower"], "bound claimed, mean bin width (App. F.3)", linestyle="--")
    axes[1].set(xscale="log", yscale="log", xlabel="pairs in a group or bin", ylim=(1e-5, 300))
    _label(axes[1], "Groups")
    wanted, optimism, gap = tolerances
    # Rounding leaves zeros and signs that a log axis cannot show.
    floor = 1e-13
    band(axes[2], wanted, np.maximum(gap, floor), COLORS["sky"], "gap it certifies")
    band(axes[2], wanted, np.maximum(optimism, floor), COLORS["leader"], "optimism of bisection")
    axes[2].plot(wanted, wanted, color=COLORS["bound"], linestyle="--", label=r"$\eta$ (Prop. D.14)")
    axes[2].set(xscale="log", yscale="log", xlabel=r"tolerance $\eta$ (nats)", ylim=(floor, 1e4))
    axes[0].set_ylabel("optimism (nats)")
    _label(axes[0], "Tangents", "lower left")
    _label(axes[2], "Inexact solves")
    return figure


def label_noise(families, lipschitz: float):
    """Regret on the clean pairs against the flip rate, one panel a family.

    Parameters
    ----------
    families : dict of title -> list of `sgpo_lib.regret.NoiseRegrets` with common rates.
    """
    figure, axes = new_figure(1, len(families), width=4.6, height=3.6, sharey=True)
    for axis, (title, games) in zip(axes, families.items(), strict=True):
        rates = 100 * games[0].rates
        columns = (
            ("dpo", "dpo", "DPO"),
            ("fixed", "sky", "SGPO, fixed radius"),
            ("margins", "ssapo", r"SGPO, calibrated on $2|\xi|$"),
            ("features", "accent", r"SGPO, calibrated on $2\|x\|$"),
        )
        for name, color, label in columns:
            curves = np.array([getattr(game, name) for game in games])
            quartiles = np.quantile(curves, [0.25, 0.75], axis=0)
            axis.fill_between(rates, *quartiles, color=COLORS[color], alpha=0.18, linewidth=0)
            axis.plot(rates, np.median(curves, axis=0), "o-", markersize=3, color=COLORS[color], label=label)
        guarantee = np.median([2 * lipschitz * game.distance for game in games], axis=0)
        axis.plot(rates, guarantee, color=COLORS["bound"], linestyle="--", label=r"$2L\varepsilon$ (Theorem 2.5)")
        axis.set(xlabel="flipped labels (%)", ylim=(-0.02, 1.4))
        axis.set_title(title, loc="left", fontweight="bold", fontsize="medium")
    axes[0].set_ylabel("regret on the clean pairs (nats)")
    axes[0].legend(loc="upper right", frameon=False, fontsize="small")
    return figure
