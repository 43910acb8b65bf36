"""Pictures of what was gained."""

from typing import Any

from matplotlib.figure import Figure

from sgpo_lib.plots.style import COLORS, new_figure


def policy_color(name: str) -> str:
    """Return the colour that stands for a policy in every figure."""
    return {"sft": COLORS["reference"], "dpo": COLORS["dpo"]}.get(name, COLORS["ssapo"])


def gains(summary: dict[str, Any]) -> Figure:
    """Draw what each policy gained, with intervals, and its price.

    Parameters
    ----------
    summary : as `sgpo_lib.evaluation.summarize` returns it. With a gold user: gold reward, win rates over the SFT
        model, and reward against KL. Without: accuracy on held-out labels and win rates where known, length and KL.
        Policies scaled to a KL are in the picture of reward against KL only.
    """
    everything, summary = summary, {name: row for name, row in summary.items() if "matched_kl" not in row}
    last = list(summary.values())[-1]
    if "gold_reward" in last:
        figure, axes = new_figure(1, 3, width=3.7)
        _by_policy(axes[0], summary, "gold_reward")
        axes[0].set(ylabel="gold reward", title="Held-out gold reward")
        _rates(axes[1], summary, "win_rate")
        reward_against_kl(axes[2], everything)
        return figure
    rates = [key for key in _RATES if key in last]
    figure, axes = new_figure(1, len(rates) + 2, width=3.7)
    for axis, key in zip(axes, rates, strict=False):
        _rates(axis, summary, key)
    for axis, key, label in zip(axes[-2:], ("words", "kl"), ("words per answer", "KL to SFT (nats)"), strict=True):
        _by_policy(axis, summary, key)
        axis.set(ylabel=label)
    return figure


# A rate: its title and axis, and the same at equal length with its name.
_RATES = {
    "preference_accuracy": (
        "Preference accuracy",
        "pairs ordered as labelled (%)",
        "length_balanced_accuracy",
        "length-balanced",
    ),
    "win_rate": ("Win rate", "win rate over SFT (%)", "length_controlled_win_rate", "length-controlled"),
}


def _rates(axis, summary: dict[str, Any], key: str) -> None:
    title, label, controlled, name = _RATES[key]
    trained = {name: row for name, row in summary.items() if name != "sft"}
    _by_policy(axis, trained, key, -0.08, "raw", "o")
    if all(controlled in row for row in trained.values()):
        _by_policy(axis, trained, controlled, 0.08, name, "s", filled=False)
    axis.axhline(50, color=COLORS["reference"], linestyle=":", linewidth=1)
    axis.set(ylabel=label, title=title)
    axis.legend(loc="best")


def reward_against_kl(axis, summary: dict[str, Any]) -> None:
    """Draw the path of the policies in the plane of KL and gold reward; over-optimisation bends it down.

    Policies scaled to a KL are hollow points beside it.
    """
    own = {name: row for name, row in summary.items() if "matched_kl" not in row}
    path = [(row["kl"]["mean"], row["gold_reward"]["mean"]) for row in own.values()]
    axis.plot(*zip(*path, strict=True), color=COLORS["reference"], linewidth=1, zorder=1)
    for name, row in summary.items():
        x, y, policy = row["kl"], row["gold_reward"], name.partition(" @ ")[0]
        axis.errorbar(
            x["mean"],
            y["mean"],
            [[y["mean"] - y["low"]], [y["high"] - y["mean"]]],
            [[x["mean"] - x["low"]], [x["high"] - x["mean"]]],
            fmt="o",
            color=policy_color(policy),
            markerfacecolor=policy_color(policy) if name in own else "white",
            capsize=2,
        )
        if name in own:
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
