"""Pictures of the follower on labels."""

import numpy as np
from matplotlib.figure import Figure

from sgpo_lib.follower import WorstFlips
from sgpo_lib.follower.loss import sigmoid
from sgpo_lib.plots.follower.worst import _MARGIN, _title
from sgpo_lib.plots.style import COLORS, new_figure


def flips_against_margin(flips: WorstFlips, flip_probability: np.ndarray) -> Figure:
    """Draw how likely each label is wrong, before and after the adversary, and DPO's pull beside it.

    A pair's pull in leader mode `flips` is σ(-ξ) - q: the distance from q up to DPO's curve, or to 1/2 where margins
    restart at 0 (reference `previous`). Where they meet nothing pulls, and above that the margin shrinks.

    Parameters
    ----------
    flips : what `worst_flips` answered.
    flip_probability : ndarray, shape (N,)
        p_i, which it was given.
    """
    order = np.argsort(flips.margins, kind="stable")
    x, p, q = (values[order] for values in (flips.margins, np.asarray(flip_probability), flips.flip_probability))
    figure, axes = new_figure(width=6.4, height=3.4)
    style = {"marker": "o", "markersize": 3, "lw": 1.2} if x.size <= 500 else {"lw": 1.5}
    axes.plot(x, q, color=COLORS["follower"], label=f"worst case q, mean {q.mean():.2f}", **style)
    axes.plot(x, p, color=COLORS["gold"], label=f"calibrated p, mean {p.mean():.2f}", **style)
    axes.fill_between(x, p, q, color=COLORS["follower"], alpha=0.1, lw=0)
    axes.plot(x, sigmoid(-x), color=COLORS["bound"], lw=1, ls="--", label="DPO's pull σ(−ξ) on these margins")
    axes.axhline(0.5, color=COLORS["bound"], lw=1, ls=":", label="and on margins that restart at 0")
    axes.set(xlabel=_MARGIN, ylabel="probability that the label is wrong", ylim=(-0.02, 1.02))
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    _title(axes, f"Doubt within {flips.radius:.3g} nats a pair")
    return figure
