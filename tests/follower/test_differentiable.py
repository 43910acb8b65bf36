"""The SGPO loss: the value of the exact follower, with the envelope gradient."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from sgpo_lib.follower import QuantileSupport, RangeSupport, logistic_loss, sgpo_loss, worst_case

quarters = st.integers(-32, 32).map(lambda i: i / 4)
margin_lists = st.lists(st.one_of(quarters, st.floats(-8, 8)), min_size=1, max_size=40)
radii = st.one_of(st.just(0.0), st.floats(1e-4, 0.5), st.floats(0.5, 30))
supports = st.one_of(
    st.none(),
    st.floats(0, 3).map(RangeSupport),
    st.floats(0, 0.4).map(QuantileSupport),
    st.tuples(quarters, quarters).map(lambda ends: tuple(sorted(ends))),
)


def value_and_gradient(margins, radius, support=None, dtype=torch.float64):
    margins = torch.tensor(margins, dtype=dtype, requires_grad=True)
    value = sgpo_loss(margins, radius, support)
    value.backward()
    return value.item(), margins.grad.numpy()


@given(margin_lists, radii, supports)
def test_value_is_the_exact_followers(margins, radius, support):
    value, _ = value_and_gradient(margins, radius, support)
    assert value == pytest.approx(worst_case(margins, radius, support).value, abs=1e-12)


@given(margin_lists, radii, st.floats(0.01, 3))
def test_gradient_is_the_envelope_formula(margins, radius, tau):
    result = worst_case(margins, radius, RangeSupport(tau))
    _, gradient = value_and_gradient(margins, radius, RangeSupport(tau))
    slope = -1 / (1 + np.exp(result.margins))
    envelope = ((1 - result.moved) * slope - result.moved * result.price) / len(margins)
    np.testing.assert_allclose(gradient, envelope, atol=1e-9)


@given(st.lists(quarters, min_size=1, max_size=20, unique=True), st.floats(0.01, 2))
def test_gradient_is_that_of_finite_differences(margins, radius):
    margins, support, step = np.array(margins), (-9.0, 9.0), 1e-6
    result = worst_case(margins, radius, support)
    # At a kink of V, where no pair is split, the two one-sided derivatives differ.
    assume(np.any((result.moved > 1e-3) & (result.moved < 1 - 1e-3)))
    differences = [
        worst_case(margins + shift, radius, support).value - worst_case(margins - shift, radius, support).value
        for shift in step * np.eye(margins.size)
    ]
    _, gradient = value_and_gradient(margins, radius, support)
    np.testing.assert_allclose(gradient, np.array(differences) / (2 * step), atol=1e-8)


@given(margin_lists)
def test_radius_zero_is_the_dpo_loss(margins):
    tensor = torch.tensor(margins, dtype=torch.float64, requires_grad=True)
    loss = -torch.nn.functional.logsigmoid(tensor).mean()
    loss.backward()
    value, gradient = value_and_gradient(margins, 0.0, RangeSupport(0))
    assert value == pytest.approx(loss.item(), abs=1e-14)
    np.testing.assert_allclose(gradient, tensor.grad.numpy(), atol=1e-14)


def test_pairs_that_all_move_feel_no_force():
    value, gradient = value_and_gradient([1.0, 2.0], 50.0, (-1.0, 3.0))
    assert value == pytest.approx(logistic_loss(-1.0))
    np.testing.assert_array_equal(gradient, 0)


def test_moved_pairs_all_pull_with_the_price():
    result = worst_case(np.linspace(-4, 4, 81), 0.5, (-6, 6))
    _, gradient = value_and_gradient(np.linspace(-4, 4, 81), 0.5, (-6.0, 6.0))
    np.testing.assert_allclose(gradient[result.moved == 1] * 81, -result.price, rtol=1e-12)


def test_clipped_margins_get_no_gradient():
    _, gradient = value_and_gradient([-5.0, 0.0, 0.5], 0.05, (-1.0, 1.0))
    assert gradient[0] == 0
    assert np.all(gradient[1:] < 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_loses_no_more_than_its_own_rounding(dtype):
    margins = torch.randn(3000, generator=torch.Generator().manual_seed(0)).to(dtype)
    loss = sgpo_loss(margins, 0.05)
    assert loss.dtype == dtype
    exact = worst_case(margins.double().numpy(), 0.05).value
    assert loss.item() == pytest.approx(exact, rel=torch.finfo(dtype).eps)


def test_huge_margins_do_not_overflow():
    value, gradient = value_and_gradient([-1e4, -3.0, 0.0, 1e4], 0.01, dtype=torch.float32)
    assert value == pytest.approx(worst_case([-1e4, -3.0, 0.0, 1e4], 0.01).value, rel=1e-6)
    assert np.isfinite(gradient).all()


def test_price_survives_a_boundary_within_rounding_of_the_edge():
    # Both pairs carry weight 1/2: the split one pulls with t price + (1 - t) sigma(3), and the price is near.
    for distance in (1e-13, 1e-12, 1e-11, 1e-10):
        _, gradient = value_and_gradient([-3 + distance, -1.0], distance / 3, (-3.0, 0.0))
        assert gradient[0] == pytest.approx(-0.5 / (1 + np.exp(-3)), abs=1e-9)


@pytest.mark.parametrize("support", [None, QuantileSupport(0.1), (-3.0, 3.0)])
def test_no_value_is_read_back_from_the_device(support):
    # A fake tensor has shapes but no values: whatever would make a GPU wait for one raises here.
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        loss = sgpo_loss(torch.empty(100, device="cuda"), 0.01, support)
    assert loss.device.type == "cuda"
    assert loss.shape == ()


@pytest.mark.parametrize(
    ("margins", "radius", "support", "message"),
    [
        (torch.zeros(0), 0.1, None, "N >= 1"),
        (torch.zeros(2, 2), 0.1, None, "shape"),
        (torch.zeros(2), -0.1, None, "radius"),
        (torch.zeros(2), 0.1, (1.0, 0.0), "a > b"),
    ],
)
def test_bad_input_is_refused_with_advice(margins, radius, support, message):
    with pytest.raises(ValueError, match=message):
        sgpo_loss(margins, radius, support)
