"""Radii that follow from data."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgpo_lib.follower import calibrated_radius, flip_radius, resolve_radius, shift_radius


def labelled_margins(n, intercept, slope, seed=0):
    rng = np.random.default_rng(seed)
    size = np.abs(rng.normal(0, 2, n))
    flip = rng.random(n) < 1 / (1 + np.exp(intercept + slope * size))
    return np.where(flip, -size, size)


def test_calibration_recovers_the_curve_that_made_the_labels():
    fit = calibrated_radius([1.0], labelled_margins(200_000, 0.3, 0.8))
    assert fit.intercept == pytest.approx(0.3, abs=0.03)
    assert fit.slope == pytest.approx(0.8, abs=0.03)


def test_calibrated_radius_is_the_expected_cost_of_the_flips():
    margins = np.array([0.5, 1.0, 4.0])
    fit = calibrated_radius(margins, labelled_margins(500, 0.3, 0.8))
    p = 1 / (1 + np.exp(fit.intercept + fit.slope * margins))
    assert fit.radius == pytest.approx(2 / 3 * (p @ margins))
    np.testing.assert_allclose(fit.flip_probability(margins), p)


def test_calibrated_radius_bounds_the_distance_to_the_true_labels():
    true_order = labelled_margins(50_000, 0.3, 0.8, seed=1)
    believed = np.abs(true_order)
    fit = calibrated_radius(believed, labelled_margins(50_000, 0.3, 0.8))
    assert shift_radius(believed, true_order) <= fit.radius * 1.02


@given(st.floats(0.01, 100))
def test_calibrated_radius_scales_with_the_units_of_reward(scale):
    margins, labelled = np.array([0.5, 2.0]), labelled_margins(300, 0.3, 0.8)
    one, other = calibrated_radius(margins, labelled), calibrated_radius(scale * margins, scale * labelled)
    assert other.radius == pytest.approx(scale * one.radius, rel=1e-4)


@pytest.mark.parametrize(("sign", "probability"), [(1, 1 / 10), (-1, 9 / 10)])
def test_without_both_outcomes_the_rule_of_succession_decides(sign, probability):
    fit = calibrated_radius([1.0, 3.0], sign * np.ones(8))
    assert fit.slope == 0
    assert fit.radius == pytest.approx(2 * probability * 2)
    assert (fit.n_flips, fit.n_labelled) == (0 if sign > 0 else 8, 8)


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=1, max_size=20))
def test_shift_of_equal_sizes_is_the_sorted_difference(pairs):
    before, after = np.array(pairs).T
    assert shift_radius(before, after) == pytest.approx(np.mean(np.abs(np.sort(before) - np.sort(after))), abs=1e-12)


def test_shift_allows_unequal_sizes():
    assert shift_radius([0.0, 1.0], [0.0, 0.0, 1.0, 1.0]) == pytest.approx(0)
    assert shift_radius([0.0], [1.0, 2.0]) == pytest.approx(1.5)


def test_shift_refuses_empty_rounds():
    with pytest.raises(ValueError, match="empty"):
        shift_radius([], [1.0])


def test_known_label_noise_is_taken_out_of_the_flip_probability():
    rng = np.random.default_rng(1)
    true_order = labelled_margins(200_000, 0.3, 0.8)
    noisy = np.where(rng.random(true_order.size) < 0.25, -true_order, true_order)
    fit = calibrated_radius([1.0], noisy, label_noise=0.25)
    x = np.array([0.5, 2.0, 4.0])
    np.testing.assert_allclose(fit.flip_probability(x), 1 / (1 + np.exp(0.3 + 0.8 * x)), atol=0.01)


def test_the_fit_without_label_noise_is_penalised_logistic_regression():
    from sklearn.linear_model import LogisticRegression

    labelled = labelled_margins(60, 0.3, 0.8)
    fit, scale = calibrated_radius([1.0], labelled), np.abs(labelled).mean()
    other = LogisticRegression(tol=1e-10).fit(np.abs(labelled)[:, None] / scale, labelled >= 0)
    assert fit.intercept == pytest.approx(other.intercept_[0], rel=1e-5)
    assert fit.slope == pytest.approx(other.coef_[0, 0] / scale, rel=1e-5)


def test_fewer_contradictions_than_the_noise_explains_leave_the_rule_of_succession():
    fit = calibrated_radius([1.0], np.where(np.arange(98) < 10, -1.0, 1.0), label_noise=0.25)
    assert fit.flip_probability(1.0) == pytest.approx(1 / 100)


def test_labels_that_say_nothing_are_refused():
    with pytest.raises(ValueError, match="label_noise"):
        calibrated_radius([1.0], [1.0, -1.0], label_noise=0.5)


def test_a_pair_in_the_order_that_the_policy_rejects_is_wrong_where_the_policy_is_right():
    fit = calibrated_radius([1.0], labelled_margins(500, 0.3, 0.8))
    margins = np.array([0.1, 0.5, 4.0])
    np.testing.assert_allclose(fit.flip_probability(margins) + fit.flip_probability(-margins), 1)


def test_the_calibrated_rule_takes_known_label_noise_out():
    margins, labelled = [0.5, 2.0], labelled_margins(300, 0.3, 0.8)
    rule = {"rule": "calibrated"}
    noisy, clean = (resolve_radius(rule, margins, labelled, label_noise=f) for f in (0.1, 0.0))
    assert noisy == calibrated_radius(margins, labelled, 0.1).radius < clean


@pytest.mark.parametrize(("n", "noise", "least"), [(50, 0.0, 0.9), (200, 0.0, 0.93), (400, 0.2, 0.9)])
def test_the_true_curve_lies_in_the_flip_ball_about_as_often_as_promised(n, noise, least):
    rng, inside = np.random.default_rng(0), []
    for seed in range(200):
        labelled = labelled_margins(n, 0.2, 0.3, seed)
        fit = calibrated_radius([1.0], np.where(rng.random(n) < noise, -labelled, labelled), noise)
        sizes = np.abs(labelled)
        p, q = fit.flip_probability(sizes), 1 / (1 + np.exp(0.2 + 0.3 * sizes))
        divergence = q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))
        inside.append(divergence.mean() <= flip_radius(n, noise))
    assert least <= np.mean(inside) <= 0.99


@pytest.mark.parametrize(("n", "noise", "wrong"), [(0, 0.0, "there are 0"), (10, 0.5, "label_noise")])
def test_a_flip_radius_without_labels_that_say_anything_is_refused(n, noise, wrong):
    with pytest.raises(ValueError, match=wrong):
        flip_radius(n, noise)
