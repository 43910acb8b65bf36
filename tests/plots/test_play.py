"""The panel in JavaScript: it solves what the library solves, and keeps up with a dragging hand."""

import numpy as np
import pandas as pd
import pytest

from sgpo_lib.follower import RangeSupport, logistic_loss, tangents, worst_case
from sgpo_lib.plots.play import play_the_adversary

PANEL = "document.querySelector('.play')"


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 1000, "height": 700})
    yield page
    page.close()


def test_it_finds_the_library_s_worst_case(page):
    rng = np.random.default_rng(0)
    for n, tau, k in [(1, 0.1, None), (7, 0.5, 2), (96, 0.1, None), (96, 2.0, 5), (300, 0.01, 17), (300, 1.0, None)]:
        margins = rng.normal(0.2, 0.7, n)
        page.set_content(play_the_adversary(margins, 0.01, tau).data)
        support = RangeSupport(tau)(margins)
        for radius in (0.0, 1e-3, 0.05, 0.4, 10.0):
            found = page.evaluate(f"([r, t, k]) => {PANEL}.solve(r, t, k)", [radius, tau, k])
            worst = worst_case(margins, radius, support, logistic_loss if k is None else tangents(k, support))
            assert found["value"] == pytest.approx(worst.value, abs=1e-9)
            assert found["transport"] == pytest.approx(worst.transport, abs=1e-9)
            assert np.allclose(found["moved"], worst.moved, atol=1e-9)
            if 0 < radius < 10:
                assert found["price"] == pytest.approx(worst.price, abs=1e-9)


def test_a_slider_moves_the_picture_the_reading_and_the_pairs_but_not_the_axes(page):
    margins = np.linspace(-1, 1, 50)
    pairs = pd.DataFrame({"chosen": [f"answer {i}" for i in range(50)], "rejected": "<b>not bold</b>"})
    page.set_content(play_the_adversary(margins, 0.05, pairs=pairs).data)
    slider = page.locator("input").first
    seen = []
    for _ in range(2):
        parts = ("svg", ".reading", "tbody")
        seen.append([page.evaluate(f"{PANEL}.querySelector('{part}').innerHTML") for part in parts])
        seen[-1].append(page.evaluate(f"[...{PANEL}.querySelectorAll('svg text')].map(t => t.textContent)"))
        slider.focus()
        for _ in range(10):
            slider.press("ArrowRight")
    (picture, reading, rows, axes), (later_picture, later_reading, later_rows, later_axes) = seen
    assert picture != later_picture
    assert reading != later_reading
    assert rows != later_rows
    assert axes == later_axes
    assert "<b>" not in later_rows


def test_a_thousand_pairs_are_drawn_ten_times_a_second(page):
    margins = np.random.default_rng(0).normal(0.2, 0.7, 1000)
    page.set_content(play_the_adversary(margins, 0.01).data)
    drag = f"""() => {{
      const slider = {PANEL}.querySelector('input'), start = performance.now();
      for (let at = 0; at < 50; at++) {{ slider.value = 4 * at; slider.dispatchEvent(new Event('input')); }}
      return (performance.now() - start) / 50;
    }}"""
    assert page.evaluate(drag) < 100
