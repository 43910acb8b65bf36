"""Pictures of the leader's training."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sgpo_lib.plots.style import COLORS, new_figure


def training_curves(log: pd.DataFrame, title: str = "") -> Figure:
    """Draw loss, margins and chosen and rejected rewards against the optimiser's step.

    Parameters
    ----------
    log : a row per logged step, as `sgpo_lib.leader.train` returns it.
    """
    figure, axes = new_figure(1, 3, width=3.6)
    axes[0].plot(log["step"], log["loss"], color=COLORS["follower"], marker=".")
    axes[0].set(ylabel="weighted DPO loss", title=title)
    axes[1].plot(log["step"], log["rewards/margins"], color=COLORS["leader"], marker=".")
    axes[1].axhline(0, color=COLORS["reference"], linestyle=":", linewidth=1)
    axes[1].set(ylabel="mean margin (reward units)")
    axes[2].plot(log["step"], log["rewards/chosen"], color=COLORS["dpo"], marker=".", label="chosen")
    axes[2].plot(log["step"], log["rewards/rejected"], color=COLORS["accent"], marker=".", label="rejected")
    axes[2].axhline(0, color=COLORS["reference"], linestyle=":", linewidth=1)
    axes[2].set(ylabel="implicit reward")
    axes[2].legend()
    for axis in axes:
        axis.set_xlabel("step")
    return figure


def starting_margins(rows: pd.DataFrame, beta: float) -> Figure:
    """Draw where the mass of each training row starts: the leader's view of the worst case.

    Parameters
    ----------
    rows : N rows as `sgpo_lib.leader.modes.training_rows` returns them, with the policy's own `chosen_log_prob` and
        `rejected_log_prob`. Of a row that is moved in part, each part is drawn where its margin starts.
    beta : the DPO temperature.
    """
    start = beta * (
        rows["chosen_log_prob"] - rows["rejected_log_prob"] - rows["ref_chosen_logps"] + rows["ref_rejected_logps"]
    )
    figure, axis = new_figure(width=5.5, height=2.8)
    moved = rows.get("loss_moved", 0.0 * start)
    position = np.concatenate([start, start - rows.get("loss_displacement", 0.0)])
    axis.hist(position, bins=40, weights=np.concatenate([1 - moved, moved]), color=COLORS["leader"], alpha=0.75)
    axis.set(
        xlabel="margin at the first step (reward units)",
        ylabel="pairs",
        title="Where training starts",
    )
    return figure
