"""The follower on labels: optimal by its own certificate, inside its ball, with the exact gradient."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sgpo_lib.follower import flip_loss, logistic_loss, worst_flips, worst_flips_at_cost

margins = st.one_of(st.just(0.0), st.floats(-8, 8), st.sampled_from([1e4, -1e4, 1e-3]))
chances = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0, 0.5, 1e-20, 1 - 1e-12]))
pairs = st.lists(st.tuples(margins, chances), min_size=1, max_size=30).map(lambda rows: np.array(rows).T)
radii = st.one_of(st.just(0.0), st.floats(1e-8, 0.1), st.floats(0.1, 50))
kinds = pytest.mark.parametrize("follower", [worst_flips, worst_flips_at_cost])


def rounding(x):
    return 1e-13 * (1 + np.abs(x).max())


def divergence(q, p):
    def term(a, b):
        return np.where(a > 0, a * np.log(np.where(a > 0, a, 1) / np.where(b > 0, b, 1)), 0)

    return float(np.mean(term(q, p) + term(1 - q, 1 - p)))


def example(n=40, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(0.5, 1.5, n), rng.uniform(0.02, 0.6, n)


@kinds
@given(pairs=pairs, radius=radii)
def test_the_certificate_closes_at_rounding_level(follower, pairs, radius):
    x, p = pairs
    assert abs(follower(x, p, radius).gap) <= rounding(x)


@given(pairs, radii)
def test_the_answer_lies_in_the_ball_and_has_the_value_it_claims(pairs, radius):
    x, p = pairs
    worst = worst_flips(x, p, radius)
    q = worst.flip_probability
    assert q.min() >= 0
    assert q.max() <= 1
    assert worst.spent <= radius * (1 + 1e-8)
    assert worst.spent == pytest.approx(divergence(q, p), rel=1e-6, abs=1e-9)
    expected = np.mean((1 - q) * logistic_loss(x) + q * logistic_loss(-x))
    assert worst.value == pytest.approx(expected, abs=rounding(x))


@given(pairs, radii, st.floats(0.1, 3))
def test_the_answer_at_cost_lies_in_its_ball(pairs, radius, cost):
    x, p = pairs
    worst = worst_flips_at_cost(x, p, radius, cost)
    assert np.mean(cost * np.abs(worst.flip_probability - p)) <= radius + 1e-12
    assert worst.gap <= rounding(x)


@given(pairs, radii)
def test_certain_labels_stay_certain(pairs, radius):
    x, p = pairs
    certain = (p == 0) | (p == 1)
    np.testing.assert_array_equal(worst_flips(x, p, radius).flip_probability[certain], p[certain])


@pytest.mark.parametrize("radius", [1e-3, 0.05, 0.4, 5.0])
def test_a_general_convex_solver_finds_the_same_value(radius):
    x, p = example(12)
    q = cp.Variable(12)
    spent = cp.sum(cp.kl_div(q, p) + cp.kl_div(1 - q, 1 - p)) / 12
    cp.Problem(cp.Maximize(q @ x / 12), [spent <= radius, q >= 0, q <= 1]).solve(solver=cp.CLARABEL)
    worst = worst_flips(x, p, radius)
    assert worst.value == pytest.approx(logistic_loss(x).mean() + q.value @ x / 12, abs=1e-6)


@pytest.mark.parametrize("radius", [1e-3, 0.2, 2.0])
def test_a_linear_program_finds_the_same_value_at_cost(radius):
    x, p = example(12)
    cost = np.linspace(0.2, 2, 12)
    q = cp.Variable(12)
    within = [cost @ cp.abs(q - p) / 12 <= radius, q >= 0, q <= 1]
    cp.Problem(cp.Maximize(q @ x / 12), within).solve(solver=cp.CLARABEL)
    worst = worst_flips_at_cost(x, p, radius, cost)
    assert worst.value == pytest.approx(logistic_loss(x).mean() + q.value @ x / 12, abs=1e-6)


@kinds
def test_radius_0_is_label_smoothing_and_small_radii_lead_there(follower):
    x, p = example()
    smoothed = np.mean((1 - p) * logistic_loss(x) + p * logistic_loss(-x))
    assert follower(x, p, 0.0).value == pytest.approx(smoothed, abs=1e-14)
    np.testing.assert_array_equal(follower(x, p, 0.0).flip_probability, p)
    assert follower(x, p, 1e-10).value == pytest.approx(smoothed, abs=1e-4)


def test_labels_that_are_never_wrong_give_dpo():
    x, _ = example()
    for chance, tolerance in ((0.0, 1e-14), (1e-12, 0.01)):
        assert worst_flips(x, chance, 0.01).value == pytest.approx(logistic_loss(x).mean(), abs=tolerance)


def test_beyond_the_largest_divergence_every_uncertain_label_is_the_worse_one():
    x, p = np.array([2.0, -1.0, 3.0, 0.0]), np.array([0.2, 0.3, 0.0, 0.4])
    worst = worst_flips(x, p, 9.0)
    np.testing.assert_array_equal(worst.flip_probability, [1, 0, 0, 0.4])
    assert (worst.price, worst.gap) == (0, 0)


def test_the_price_is_the_slope_of_the_value_in_the_radius():
    x, p = example()
    step = 1e-6
    for follower, radius in ((worst_flips, 0.1), (worst_flips_at_cost, 0.05)):
        rise = follower(x, p, radius + step).value - follower(x, p, radius - step).value
        assert follower(x, p, radius).price == pytest.approx(rise / (2 * step), rel=1e-5)


@pytest.mark.parametrize("radius", [1e-4, 0.05, 0.5])
def test_the_gradient_is_that_of_finite_differences(radius):
    x, p = example()
    leaf = torch.tensor(x, requires_grad=True)
    loss = flip_loss(leaf, p, radius)
    loss.backward()
    step = 1e-5
    rises = [
        worst_flips(x + shift, p, radius).value - worst_flips(x - shift, p, radius).value for shift in step * np.eye(40)
    ]
    assert loss.item() == pytest.approx(worst_flips(x, p, radius).value, abs=1e-14)
    np.testing.assert_allclose(leaf.grad.numpy(), np.array(rises) / (2 * step), atol=1e-8)


def test_the_gradient_vanishes_at_shrunken_log_odds():
    p, price = np.array([0.1, 0.3, 0.45]), 2.0
    x = np.log((1 - p) / p) / (1 + 1 / price)
    q = 1 / (1 + np.exp(np.log((1 - p) / p) - x / price))
    leaf = torch.tensor(x, requires_grad=True)
    flip_loss(leaf, p, divergence(q, p)).backward()
    np.testing.assert_allclose(leaf.grad.numpy(), 0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_loses_no_more_than_its_own_rounding(dtype):
    x = torch.randn(200, generator=torch.Generator().manual_seed(0)).to(dtype)
    loss = flip_loss(x, torch.full((200,), 0.2), 0.05)
    assert loss.dtype == dtype
    assert loss.item() == pytest.approx(worst_flips(x.double().numpy(), 0.2, 0.05).value, rel=torch.finfo(dtype).eps)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: worst_flips([], 0.1, 0.1), "empty"),
        (lambda: worst_flips([1.0, 2.0], [0.1], 0.1), "one probability a margin"),
        (lambda: worst_flips([1.0], 1.2, 0.1), r"\[0, 1\]"),
        (lambda: worst_flips([1.0], np.nan, 0.1), r"\[0, 1\]"),
        (lambda: worst_flips([1.0], 0.1, -1.0), "nats per pair"),
        (lambda: worst_flips_at_cost([1.0], 0.1, 0.1, 0.0), "positive"),
        (lambda: flip_loss(torch.tensor([float("nan")]), 0.1, 0.1), "NaN"),
    ],
)
def test_bad_input_is_refused_with_advice(call, message):
    with pytest.raises(ValueError, match=message):
        call()
