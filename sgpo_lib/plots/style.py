"""The look that all figures share, and the one way a figure is written to disk."""

from pathlib import Path

import matplotlib as mpl
import seaborn as sns
from matplotlib.figure import Figure

from sgpo_lib.runs.store import replacing

# Okabe-Ito: distinguishable with the common colour-vision deficiencies.
COLORS = {
    "leader": "#0072B2",
    "follower": "#D55E00",
    "gold": "#E69F00",
    "dpo": "#009E73",
    "ssapo": "#0072B2",
    "reference": "#7F7F7F",
    "bound": "#000000",
    "accent": "#CC79A7",
    "sky": "#56B4E9",
}

_RC = {
    "figure.dpi": 110,
    "savefig.dpi": 200,
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "svg.hashsalt": "sgpo",
}

# For the whole process, because matplotlib reads many of these when a title or legend is added, not before.
mpl.rcParams.update({**sns.axes_style("ticks"), **sns.plotting_context("paper", font_scale=1.1), **_RC})


def new_figure(rows: int = 1, columns: int = 1, width: float = 4.2, height: float = 3.2, **kwargs):
    """Make a styled figure of `rows` x `columns` panels.

    Parameters
    ----------
    width, height : size of one panel in inches.
    kwargs : passed to `Figure.subplots` (``sharex``, ``squeeze``, ...).

    Returns
    -------
    (figure, axes) as `matplotlib.pyplot.subplots` gives them. The figure is not
    registered with pyplot, so a notebook that makes many does not leak them.
    """
    figure = Figure(figsize=(width * columns, height * rows))
    return figure, figure.subplots(rows, columns, **kwargs)


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG, whole or not at all, without time stamps that would dirty a diff."""
    path = Path(path)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_RC["savefig.dpi"], metadata={"Software": None})
    return path
