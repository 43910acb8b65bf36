"""A picture of the ways to have a policy answer."""

import pandas as pd
from matplotlib.figure import Figure

from sgpo_lib.plots.style import COLORS, new_figure


def ways_to_answer(table: pd.DataFrame) -> Figure:
    """Draw what each way of answering gains against how far from the SFT model it goes, and what it costs.

    Parameters
    ----------
    table : a row per way, with `nats`, `seconds an answer` and, where there is a gold user, `gold reward`; else the
        words of an answer stand in its place.
    """
    quantity = "gold reward" if "gold reward" in table else "words"
    figure, axes = new_figure(1, 2, width=4.6, height=3.4, sharey=True)
    for axis, column in zip(axes, ("nats", "seconds an answer"), strict=True):
        refined = table.index.str.startswith("draft")
        axis.plot(table.loc[refined, column], table.loc[refined, quantity], "-", color=COLORS["reference"], lw=1)
        for name, row in table.iterrows():
            color = "reference" if name.startswith("draft") else "dpo" if name.startswith("best") else "leader"
            axis.plot(row[column], row[quantity], "o", color=COLORS[color if "SFT, " not in name else "bound"])
            text = name.removeprefix("draft, ")
            axis.annotate(text, (row[column], row[quantity]), (4, 3), textcoords="offset points", fontsize="small")
        axis.margins(x=0.25, y=0.12)
    axes[0].set(xlabel="nats: log π/π_SFT of the answer", ylabel=quantity)
    axes[1].set(xlabel="seconds an answer", xscale="log")
    return figure
