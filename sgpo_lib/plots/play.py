"""The adversary under sliders, in plain JavaScript: it moves in JupyterLab and on a page without a kernel alike."""

import html
import json
import uuid
from importlib.resources import files

import numpy as np
import pandas as pd
from IPython.display import HTML

from sgpo_lib.plots.style import COLORS

_PIECES = [2, 3, 4, 5, 6, 7, 9, 17, None]
_TEXT_PAIRS, _TEXT_LENGTH = 300, 240  # what the table may show: the lowest pairs, and the beginning of their answers

_PAGE = """
<div id="{name}" class="play" style="max-width: 62em">
  {sliders}
  <div style="display: flex; flex-wrap: wrap; gap: .5em">{pictures}</div>
  <p class="reading" aria-live="polite">
    <span style="color: {follower}"></span>, <span style="color: {leader}"></span>: <span></span></p>
  <table><thead><tr><th>margin</th><th>moved</th><th>chosen</th><th>rejected</th></tr></thead><tbody></tbody></table>
  <script>({script})(document.getElementById("{name}"), {data});</script>
</div>
"""
_SLIDER = """<label style="display: flex; align-items: center; gap: .5em"><span style="min-width: 6em">{title}</span>
  <input type="range" min="0" max="{last}" value="{last}" style="flex: 1; max-width: 24em"><output></output></label>"""
_PICTURE = '<svg viewBox="0 0 320 250" role="img" aria-label="{alt}" style="flex: 1 1 280px; max-width: 420px"></svg>'
_ALTS = (
    "The loss over the margins, with the chord of the last pair that moved, the mean and the worst-case mean",
    "Histogram of the margins before and after the adversary",
    "The adversary's knapsack: chord slope against transport, with what it could afford",
)


def play_the_adversary(margins: np.ndarray, radius: float, tau: float = 0.1, pairs: pd.DataFrame | None = None) -> HTML:
    """Show the follower on a round's margins, solved and drawn anew while a slider is dragged.

    The sliders are the radius ε, from next to nothing to where everything has moved; the room τ beyond the extreme
    margins; and the number of tangents K that stand for the loss. The axes depend on τ and K alone, so that one radius
    can be held against another. Below stand the pairs that moved last.

    Parameters
    ----------
    margins : ndarray, shape (N,), reward units.
    radius, tau : where the sliders start; reward units.
    pairs : N rows with `chosen` and `rejected`, to be shown as they move.
    """
    margins = np.asarray(margins, dtype=float)
    texts: list[dict | None] = [None] * len(margins)
    if pairs is not None:
        for i in np.argsort(margins, kind="stable")[:_TEXT_PAIRS]:
            texts[i] = {side: _shortened(pairs[side].iloc[i]) for side in ("chosen", "rejected")}
    data = {
        "margins": margins.tolist(),
        "radius": float(radius),
        "tau": float(tau),
        "pieces": _PIECES,
        "pairs": texts,
        "colors": {name: COLORS[name] for name in ("leader", "follower", "reference", "sky")},
    }
    sliders = {"radius ε": 200, "room τ": 100, "tangents K": len(_PIECES) - 1}
    return HTML(
        _PAGE.format(
            name=f"play-{uuid.uuid4().hex[:8]}",
            sliders="".join(_SLIDER.format(title=title, last=last) for title, last in sliders.items()),
            pictures="".join(_PICTURE.format(alt=html.escape(alt)) for alt in _ALTS),
            script=files("sgpo_lib.plots").joinpath("play.js").read_text(encoding="utf-8").split("\n", 1)[1].strip(),
            follower=COLORS["follower"],
            leader=COLORS["leader"],
            data=json.dumps(data, ensure_ascii=False).replace("</", "<\\/"),
        )
    )


def _shortened(text: str) -> str:
    return text if len(text) <= _TEXT_LENGTH else text[:_TEXT_LENGTH].rsplit(" ", 1)[0] + " …"
