"""A picture with sliders that needs no kernel: every frame drawn beforehand, a few lines of JavaScript between them."""

import base64
import html
import itertools
import json
from collections.abc import Callable, Sequence
from io import BytesIO

from matplotlib.figure import Figure
from PIL import Image

# Looked up by the position of each slider, the last slider's fastest.
_SCRIPT = """
(() => {
  const book = document.getElementById(%(id)s), frames = %(frames)s;
  const sliders = [...book.querySelectorAll("input")], labels = %(labels)s;
  const turn = () => {
    const at = sliders.reduce((before, slider) => before * (+slider.max + 1) + +slider.value, 0);
    book.querySelector("img").src = "data:image/webp;base64," + frames[at];
    sliders.forEach((slider, i) => {
      slider.nextElementSibling.textContent = labels[i][+slider.value];
      slider.setAttribute("aria-valuetext", labels[i][+slider.value]);
    });
  };
  sliders.forEach(slider => slider.addEventListener("input", turn));
  turn();
})();
"""


def flipbook(
    draw: Callable[..., Figure], alt: str, name: str, start: Sequence[int] | None = None, **choices: dict[str, object]
) -> str:
    """Draw every combination of some choices and return HTML in which sliders turn from one to the next.

    Parameters
    ----------
    draw : called as `draw(value, ...)`, one value of each slider in their order.
    alt : what the picture shows, for those who do not see it.
    name : the HTML element's id, unique on its page.
    start : where each slider stands at first; in the middle by default.
    choices : for each slider its name and `{label: value}` from left to right.

    Returns
    -------
    str : one self-contained element: some ten kilobytes a frame, nothing loaded from elsewhere.
    """
    frames = [_webp(draw(*values)) for values in itertools.product(*(choice.values() for choice in choices.values()))]
    labels = [list(choice) for choice in choices.values()]
    start = [len(of_one) // 2 for of_one in labels] if start is None else start
    sliders = "".join(
        f'<label style="display: flex; gap: .5em; align-items: center">'
        f'<span style="min-width: 7em">{html.escape(title)}</span>'
        f'<input type="range" min="0" max="{len(of_one) - 1}" value="{at}" style="flex: 1; max-width: 24em">'
        f"<output>{html.escape(of_one[at])}</output></label>"
        for title, of_one, at in zip(choices, labels, start, strict=True)
    )
    script = _SCRIPT % {
        key: json.dumps(value) for key, value in {"id": name, "frames": frames, "labels": labels}.items()
    }
    picture = f'<img alt="{html.escape(alt)}" style="max-width: 100%">'
    return f'<div id="{html.escape(name)}" class="flipbook">{sliders}{picture}<script>{script}</script></div>'


def _webp(figure: Figure) -> str:
    drawn, packed = BytesIO(), BytesIO()
    figure.savefig(drawn, format="png", dpi=90)
    Image.open(drawn).convert("RGB").quantize(48).convert("RGB").save(packed, format="webp", lossless=True)
    return base64.b64encode(packed.getvalue()).decode()
