"""Pictures of what was gained."""

from typing import Any

from matplotlib.figure import Figure

from sgpo_lib.plots.style import COLORS, new_figure


def policy_color(name: str) -> str:
    """Return the colour that stands for a policy in every figure."""
    return {"sft": COLORS["reference"], "dpo": COLORS["dpo"]}.get(name, COLORS["ssapo"])


def gains(summary: dict[str, Any]) -> Figure:
    """Draw gold reward, win rates over the SFT model and reward against KL, per policy with intervals.

    Parameters
    ----------
    summary : as `sgpo_lib.evaluation.summarize` returns it. Without a gold user, length and KL are drawn.
    """
    if "gold_reward" not in next(iter(summary.values())):
        figure, axes = new_figure(1, 2)
        for axis, key, label in zip(axes, ("words", "kl"), ("words per answer", "KL to SFT (nats)"), strict=True):
            _by_policy(axis, summary, key)
            axis.set(ylabel=label)
        return figure
    figure, axes = new_figure(1, 3, width=3.7)
    _by_policy(axes[0], summary, "gold_reward")
    axes[0].set(ylabel="gold reward", title="Held-out gold reward")

    trained = {name: row for name, row in summary.items() if name != "sft"}
    _by_policy(axes[1], trained, "win_rate", -0.08, "raw", "o")
    _by_policy(axes[1], trained, "length_controlled_win_rate", 0.08, "length-controlled", "s", filled=False)
    axes[1].axhline(50, color=COLORS["reference"], linestyle=":", linewidth=1)
    axes[1].set(ylabel="win rate over SFT (%)", title="Win rate")
    axes[1].legend(loc="lower right")
    reward_against_kl(axes[2], summary)
    return figure


def reward_against_kl(axis, summary: dict[str, Any]) -> None:
    """Draw the path of the policies in the plane of KL and gold reward; over-optimisation bends it down."""
    path = [(row["kl"]["mean"], row["gold_reward"]["mean"]) for row in summary.values()]
    axis.plot(*zip(*path, strict=True), color=COLORS["reference"], linewidth=1, zorder=1)
    for name, row in summary.items():
        x, y = row["kl"], row["gold_reward"]
        axis.errorbar(
            x["mean"],
            y["mean"],
            [[y["mean"] - y["low"]], [y["high"] - y["mean"]]],
            [[x["mean"] - x["low"]], [x["high"] - x["mean"]]],
            fmt="o",
            color=policy_color(name),
            capsize=2,
        )
        axis.annotate(f" {name}", (x["mean"], y["low"]), va="top", fontsize="small")
    axis.set(xlabel="KL to SFT (nats per answer)", ylabel="gold reward", title="Reward against KL")


def _by_policy(axis, summary, key, offset=0.0, label=None, marker="o", filled=True) -> None:
    for position, (name, row) in enumerate(summary.items()):
        value = row[key]
        axis.errorbar(
            position + offset,
            value["mean"],
            [[value["mean"] - value["low"]], [value["high"] - value["mean"]]],
            fmt=marker,
            color=policy_color(name),
            markerfacecolor=policy_color(name) if filled else "white",
            capsize=3,
            label=label if position == len(summary) - 1 else None,
        )
    axis.set_xticks(range(len(summary)), summary, rotation=20)
    axis.margins(x=0.12)
