"""The follower's figures can be drawn wherever a slider may go, and say what they show."""

import numpy as np
import pytest

from sgpo_lib.follower import side_by_side, worst_case
from sgpo_lib.plots import follower as plots

MARGINS = np.abs(np.random.default_rng(0).normal(0, 2, 300))


@pytest.mark.parametrize("radius", [0.0, 0.01, 1.0, 100.0])
@pytest.mark.parametrize("support", [None, (0.5, 3.0), (-20.0, 20.0)])
def test_margins_and_knapsack_are_drawn_at_every_radius(radius, support, tmp_path):
    result = worst_case(MARGINS, radius, support)
    for draw in (plots.margins_and_worst_case, plots.knapsack):
        figure = draw(result)
        figure.savefig(tmp_path / "figure.png")
        assert all(axes.get_title(loc="left") for axes in figure.axes)
        assert figure.axes[-1].get_xlabel().endswith(")")


def test_the_area_of_the_knapsack_is_the_value_gained():
    result = worst_case(MARGINS, 0.1)
    bars = next(p for p in plots.knapsack(result).axes[0].patches if p.get_fill())
    heights, edges, _ = bars.get_data()
    assert heights @ np.diff(edges) == pytest.approx(result.value - result.nominal, rel=1e-9)


def test_value_against_radius_marks_every_rule():
    figure = plots.value_against_radius(MARGINS, None, [0.001, 0.1, 10], {"fixed": 0.01, "shift": 0.2})
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"fixed: ε = 0.01", "shift: ε = 0.2"} <= set(labels)


def test_tangent_error_falls_with_the_square_of_the_spacing():
    line = plots.tangent_error(MARGINS, 0.01, (-0.1, 8.0), range(2, 66)).axes[0].lines[0]
    n_pieces, errors = line.get_data()
    at = dict(zip(n_pieces, errors, strict=True))
    assert at[33] / at[65] == pytest.approx(4, rel=0.1)


def test_grouping_costs_nothing_for_a_single_group():
    sizes, lost = plots.grouping_cost(MARGINS, 0.01, None, [1, 100, 300]).axes[0].lines[0].get_data()
    assert list(sizes) == [1, 100, 300]
    assert lost[0] > lost[1] > lost[2] == pytest.approx(0, abs=1e-12)


def test_solvers_are_drawn_in_the_order_of_the_table(tmp_path):
    rows = side_by_side(MARGINS, {"exact": lambda m: worst_case(m, 0.1), "half": lambda m: worst_case(m, 0.05)})
    figure = plots.solvers_side_by_side(rows)
    figure.savefig(tmp_path / "figure.png")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["exact", "half"]
    assert plots.solver_times(rows).axes[0].get_xlabel() == "pairs N"
