"""Every figure of the project: one function a figure, one style for all.

Functions take arrays or data frames and return a `matplotlib.figure.Figure`;
they neither read artefacts nor write files.
"""

from sgpo_lib.plots.style import COLORS, new_figure, save_figure

__all__ = ["COLORS", "new_figure", "save_figure"]
