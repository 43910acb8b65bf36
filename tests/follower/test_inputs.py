"""What the follower accepts and refuses, its losses and its supports."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgpo_lib.follower import (
    SUPPORT_RULES,
    Grouped,
    Pieces,
    QuantileSupport,
    RangeSupport,
    closed_form_value,
    logistic_loss,
    tangents,
    worst_case,
)


def minus_log(probabilities):
    with np.errstate(divide="ignore"):
        return -np.log(probabilities)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 0.1), "empty"),
        (([1.0, math.nan], 0.1), "1 of 2 margins are NaN or infinite, the first at index 1"),
        (([math.inf, 1.0], 0.1), "index 0"),
        (([[1.0, 2.0]], 0.1), "one axis"),
        (([1.0], -0.1), "radius must be"),
        (([1.0], math.nan), "radius must be"),
        (([1.0], math.inf), "radius must be"),
        (([1.0], 0.1, (2, 1)), "swap its ends"),
        (([1.0], 0.1, (-math.inf, 1)), "closed_form_value"),
        (([1.0], 0.1, (math.nan, 1)), "not finite"),
        (([1.0], 0.1, "range"), "RangeSupport"),
        (([1.0], 0.1, 3.0), "RangeSupport"),
        (([0.5], 0.1, (0, 1), minus_log), "raise a, or in probability space use tangents"),
        (([0.5], 0.1, (0, 1), np.exp), "does not increase"),
    ],
)
def test_bad_input_is_refused_with_advice(arguments, message):
    with pytest.raises(ValueError, match=message):
        worst_case(*arguments)


@pytest.mark.parametrize("group_size", [0, -1, 1.5])
def test_group_sizes_are_whole_and_positive(group_size):
    with pytest.raises(ValueError, match="group_size"):
        Grouped(group_size)


def test_closed_form_refuses_what_the_solver_refuses():
    with pytest.raises(ValueError, match="radius"):
        closed_form_value([1.0], -1)
    with pytest.raises(ValueError, match="empty"):
        closed_form_value([], 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, (0, 1)), "n_pieces"),
        ((3,), "support"),
        ((3, RangeSupport()), "support"),
        ((3, (1, 0)), "a <= b"),
        ((3, (0, math.inf)), "finite"),
        ((3, (0, 1), "logit"), "space"),
        ((3, (0, 2), "probability"), "leave support out"),
    ],
)
def test_tangents_refuse_what_they_cannot_span(arguments, message):
    with pytest.raises(ValueError, match=message):
        tangents(*arguments)


@pytest.mark.parametrize(
    ("slopes", "intercepts", "message"),
    [
        ([0.5], [0], "must not increase"),
        ([-1, -2], [0], "as many"),
        ([], [], "as many"),
        ([-math.inf], [0], "finite"),
    ],
)
def test_pieces_are_finite_lines_that_fall(slopes, intercepts, message):
    with pytest.raises(ValueError, match=message):
        Pieces(slopes, intercepts)


@given(st.floats(-700, 700))
def test_logistic_loss_is_log_one_plus_exp(margin):
    assert logistic_loss(margin) == pytest.approx(np.logaddexp(0, -margin), rel=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logistic_loss_never_overflows(dtype):
    with np.errstate(all="raise", under="ignore"):
        np.testing.assert_array_equal(logistic_loss(np.array([1e4, -1e4], dtype)), [0, 1e4])


@given(st.floats(-20, 20), st.floats(0, 20), st.integers(1, 12))
def test_tangents_touch_the_loss_from_below(low, width, n_pieces):
    high = low + width
    loss = tangents(n_pieces, (low, high))
    grid = np.linspace(low - 1, high + 1, 101)
    assert np.all(loss(grid) <= logistic_loss(grid) + 1e-13)
    knots = np.linspace(low, high, n_pieces)
    np.testing.assert_allclose(loss(knots), logistic_loss(knots), atol=1e-13)


@pytest.mark.parametrize("n_pieces", [1, 2, 6, 50])
def test_probability_tangents_are_those_of_the_paper(n_pieces):
    k = np.arange(1, n_pieces + 1)[:, None]
    v = np.linspace(0, 1, 21)
    paper = -(n_pieces / k) * (v - k / n_pieces) - np.log(k / n_pieces)
    loss = tangents(n_pieces, space="probability")
    np.testing.assert_allclose(loss(v), paper.max(axis=0), atol=1e-12)
    assert loss(np.array(0.0)) == pytest.approx(1 + math.log(n_pieces))


def test_exact_log_loss_is_fine_in_probability_space_away_from_zero():
    margins = np.linspace(-2, 3, 30)
    probabilities = 1 / (1 + np.exp(-margins))
    np.testing.assert_allclose(minus_log(probabilities), logistic_loss(margins), rtol=1e-12)
    result = worst_case(probabilities, 0.02, (0.01, 1), minus_log)
    assert abs(result.gap) < 1e-14


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=20), st.floats(0, 2))
def test_range_support_is_the_papers(margins, tau):
    low, high = RangeSupport(tau)(np.array(margins))
    assert (low, high) == (min(margins) - tau, max(margins) + tau)


def test_the_default_support_is_the_range_with_a_tenth():
    assert worst_case([1.0, 2.0], 0.1).support == (1.0 - 0.1, 2.0 + 0.1)


def test_quantile_support_clips_its_fraction_at_each_end():
    result = worst_case(np.arange(101.0), 0.1, QuantileSupport(0.05))
    assert result.support == (5, 95)
    assert result.n_clipped == 10


def test_rules_are_built_from_the_names_in_parameter_files():
    spec = {"rule": "range", "tau": 0.3}
    assert SUPPORT_RULES[spec.pop("rule")](**spec) == RangeSupport(0.3)
    assert SUPPORT_RULES["quantile"](q=0.02) == QuantileSupport(0.02)


@pytest.mark.parametrize("tau", [-0.1, math.nan, math.inf])
def test_range_support_refuses_bad_room(tau):
    with pytest.raises(ValueError, match="tau"):
        RangeSupport(tau)


@pytest.mark.parametrize("q", [-0.1, 0.5, math.nan])
def test_quantile_support_refuses_bad_fractions(q):
    with pytest.raises(ValueError, match="q must be"):
        QuantileSupport(q)


def test_summary_is_plain_numbers_also_where_margins_are_clipped():
    summary = worst_case(np.array([-1.0, 0.2, 3.0]), 0.01, (0.0, 1.0)).summary()
    assert json.loads(json.dumps(summary))["n_clipped"] == 2
