"""Pictures with sliders, for JupyterLab. Without a live kernel the picture stays and the sliders are idle."""

import math

import ipywidgets
import numpy as np
from IPython.display import display
from matplotlib.figure import Figure

from sgpo_lib.follower import RangeSupport, logistic_loss, tangents, worst_case
from sgpo_lib.plots.follower import adversary

_N_PIECES = (2, 3, 4, 5, 6, 7, 9, 17)


def adversary_panel(margins: np.ndarray, radius: float, tau: float = 0.1) -> None:
    """Show the follower's picture under sliders for the radius, the support's room τ and the number of tangents K.

    The figure is an ordinary output that the sliders replace, so a notebook executed in batch, or a page made
    of it, shows it for the values given here.

    Parameters
    ----------
    margins : ndarray, shape (N,)
    radius, tau : where the sliders start; margin units.
    """
    reach = float(np.ptp(margins)) or 1.0
    radii, rooms = _slider_range(radius, reach), _slider_range(tau, 10 * reach)
    radius_slider = _log_slider(radius, *radii, "radius ε")
    tau_slider = _log_slider(tau, *rooms, "room τ")
    pieces_slider = ipywidgets.SelectionSlider(
        options=[*((str(k), k) for k in _N_PIECES), ("exact loss", None)],
        index=len(_N_PIECES),
        description="tangents K",
        continuous_update=False,
    )
    sliders = ipywidgets.HBox([radius_slider, tau_slider, pieces_slider])
    display(sliders)
    shown = display(_picture(margins, radius, tau, None), display_id=True)

    def redraw(_) -> None:
        shown.update(_picture(margins, radius_slider.value, tau_slider.value, pieces_slider.value))

    for slider in sliders.children:
        slider.observe(redraw, "value")


def _picture(margins: np.ndarray, radius: float, tau: float, n_pieces: int | None) -> Figure:
    support = RangeSupport(tau)(margins)
    loss = logistic_loss if n_pieces is None else tangents(n_pieces, support)
    return adversary(worst_case(margins, radius, support, loss))


def _slider_range(start: float, reach: float) -> tuple[int, int]:
    """Return powers of ten for a slider that begins at `start` and ends where nothing more can happen."""
    low = math.floor(math.log10(start)) - 1 if start > 0 else -4
    return low, max(math.ceil(math.log10(reach)), low + 2)


def _log_slider(value: float, low: int, high: int, name: str) -> ipywidgets.FloatLogSlider:
    return ipywidgets.FloatLogSlider(
        value=max(value, 10**low),
        min=low,
        max=high,
        step=0.05,
        description=name,
        readout_format=".3g",
        continuous_update=False,
    )
