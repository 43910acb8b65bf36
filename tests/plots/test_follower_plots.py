"""The follower's figures can be drawn wherever a slider may go, and say what they show."""

import subprocess
import sys

import numpy as np
import pytest

from sgpo_lib.follower import ConvexProgram, influence, sgpo_loss, side_by_side, tangents, worst_case, worst_flips
from sgpo_lib.plots import follower as plots

MARGINS = np.abs(np.random.default_rng(0).normal(0, 2, 300))


@pytest.mark.parametrize("radius", [0.0, 0.01, 1.0, 100.0])
@pytest.mark.parametrize("support", [None, (0.5, 3.0), (-20.0, 20.0)])
def test_margins_and_knapsack_are_drawn_at_every_radius(radius, support, tmp_path):
    result = worst_case(MARGINS, radius, support)
    for draw in (plots.margins_and_worst_case, plots.knapsack, plots.pull_on_each_pair):
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
    rows = side_by_side({"exact": worst_case, "again": worst_case}, MARGINS, 0.1)
    figure = plots.solvers_side_by_side(rows)
    figure.savefig(tmp_path / "figure.png")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["exact", "again"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("margins", [[0.3], [0.3, 0.3]])
@pytest.mark.parametrize("tau", [0.0, 0.1])
def test_rounds_of_next_to_no_pairs_are_drawn(margins, tau, tmp_path):
    margins = np.array(margins)
    support = (0.3 - tau, 0.3 + tau)
    result = worst_case(margins, 0.01, support)
    for figure in (
        plots.margins_and_worst_case(result),
        plots.knapsack(result),
        plots.pull_on_each_pair(result),
        plots.value_against_radius(margins, support, [0.001, 0.1], {"fixed": 0.01}),
        plots.tangent_error(margins, 0.01, support),
        plots.grouping_cost(margins, 0.01, support, [1, margins.size]),
    ):
        figure.savefig(tmp_path / "figure.png")


def test_a_radius_of_zero_is_not_marked_on_a_logarithmic_axis():
    figure = plots.value_against_radius(MARGINS, None, [0.001, 0.1, 10], {"fixed": 0.0})
    assert not any("fixed" in text.get_text() for text in figure.legends[0].get_texts())


def test_the_price_falls_to_zero_where_everything_has_moved():
    support = (-0.1, 8.0)
    everything = np.mean(MARGINS + 0.1)
    radii, prices = plots.value_against_radius(MARGINS, support, [0.001, 10]).axes[1].lines[0].get_data()
    assert (prices[radii < everything] > 0).all()
    assert (prices[radii > everything] == 0).all()
    assert np.min(np.abs(radii - everything)) < 1e-8


@pytest.mark.parametrize("radius", [0.0, 0.01, 0.5])
def test_the_pull_of_each_pair_is_the_gradient_that_training_uses(radius):
    import torch

    margins = torch.tensor(MARGINS, requires_grad=True)
    sgpo_loss(margins, radius).backward()
    expected = -margins.grad.numpy()[np.argsort(MARGINS)] * MARGINS.size
    lines = plots.pull_on_each_pair(worst_case(MARGINS, radius)).axes[0].lines
    drawn = next(line for line in lines if line.get_label().startswith("gradient of V"))
    assert drawn.get_ydata() == pytest.approx(expected, abs=1e-12)


def test_influence_is_drawn_below_its_bound_and_marked_at_the_radius_in_use(tmp_path):
    radii = np.geomspace(1e-3, 3, 9)
    figure = plots.influence_against_radius(MARGINS, None, radii, {"in use": 0.1, "none": 0.0})
    figure.savefig(tmp_path / "figure.png")
    bound, shares, mark = figure.axes[0].lines
    assert (shares.get_ydata() <= bound.get_ydata()).all()
    assert mark.get_xydata().tolist() == [[0.1, influence(worst_case(MARGINS, 0.1))]]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("margins", [MARGINS, MARGINS[:1], -MARGINS])
@pytest.mark.parametrize("radius", [0.0, 0.1, 100.0])
def test_flips_are_drawn_between_calibration_and_worst_case(margins, radius, tmp_path):
    prior = 1 / (1 + np.exp(0.2 + 0.3 * margins))
    flips = worst_flips(margins, prior, radius)
    figure = plots.flips_against_margin(flips, prior)
    figure.savefig(tmp_path / "figure.png")
    worst, calibrated, pull, _ = figure.axes[0].lines
    order = np.argsort(margins)
    assert worst.get_ydata() == pytest.approx(flips.flip_probability[order])
    assert calibrated.get_ydata() == pytest.approx(prior[order])
    assert pull.get_ydata() == pytest.approx(1 / (1 + np.exp(margins[order])))


def test_wrong_labels_are_counted_among_moved_and_other_pairs():
    margins = np.array([0.1, 0.2, 3.0, 4.0, 5.0])
    table = plots.labels_of_moved_pairs(worst_case(margins, 0.05), [False, True, True, False, True])
    assert table.loc["moved", ["pairs", "wrong", "share"]].tolist() == [2, 1, "50%"]
    assert table.loc["not moved", ["pairs", "wrong", "share"]].tolist() == [3, 1, "33%"]
    assert list(plots.labels_of_moved_pairs(worst_case(margins, 100.0), [True] * 5).index) == ["moved"]


def test_solvers_on_different_pairs_say_how_many():
    rows = [
        *side_by_side({"exact": worst_case}, MARGINS, 0.1),
        *side_by_side({"few": worst_case}, MARGINS[:20], 0.1),
    ]
    labels = [text.get_text() for text in plots.solvers_side_by_side(rows).axes[0].get_yticklabels()]
    assert labels == ["exact, 300 pairs", "few, 20 pairs"]


def test_a_solver_within_its_tolerance_looks_like_the_exact_one():
    pieces = tangents(6, (-0.1, 8.0))
    followers = {"exact": worst_case, "Clarabel": ConvexProgram()}
    rows = side_by_side(followers, MARGINS, 0.01, (-0.1, 8.0), pieces)
    rows += side_by_side({"lazy": worst_case}, MARGINS, 0.0, (-0.1, 8.0), pieces)
    rows[2] |= {"bound": rows[0]["bound"], "radius": 0.01}
    dots = plots.solvers_side_by_side(rows).axes[0].collections[-1].get_facecolors()
    assert (dots[0] == dots[1]).all()
    assert (dots[0] != dots[2]).any()


def test_follower_figures_do_not_load_torch():
    check = "import sys, sgpo_lib.plots.play; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)
