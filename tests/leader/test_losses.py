"""Each loss against its closed form in numpy, on small tensors."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sgpo_lib.leader.losses import density_power_loss, dr_dpo_loss, kl_dpo_loss, weighted_logistic

margins = st.lists(st.floats(-8, 8), min_size=1, max_size=12).map(np.array)


def logistic(x):
    return np.logaddexp(0, -x)


@given(margins)
def test_without_weights_it_is_the_dpo_loss(x):
    assert weighted_logistic(torch.tensor(x)).item() == pytest.approx(np.mean(logistic(x)))


@given(margins, st.floats(0, 3), st.floats(-1, 1))
def test_weight_multiplies_the_loss_and_slope_the_margin(x, weight, slope):
    weights, slopes = weight * np.arange(x.size), slope * np.arange(x.size)[::-1].copy()
    expected = np.mean(weights * logistic(x) + slopes * x)
    got = weighted_logistic(torch.tensor(x), torch.tensor(weights), torch.tensor(slopes)).item()
    assert got == pytest.approx(expected, abs=1e-9)


@given(margins, st.floats(0.01, 0.49))
def test_a_slope_is_label_smoothing(x, share):
    expected = np.mean((1 - share) * logistic(x) + share * logistic(-x))
    assert weighted_logistic(torch.tensor(x), slope=torch.tensor(share)).item() == pytest.approx(expected)


@given(margins, st.floats(0.1, 10))
def test_dr_dpo_is_its_formula(x, beta):
    expected = -beta * np.log(np.mean(np.exp(-logistic(x) / beta)))
    assert dr_dpo_loss(torch.tensor(x), beta).item() == pytest.approx(expected, abs=1e-9)


def test_dr_dpo_becomes_dpo_for_large_beta_and_forgets_the_worst_pair_for_small():
    x = torch.tensor([2.0, 1.0, -20.0], dtype=torch.float64, requires_grad=True)
    assert dr_dpo_loss(x, 1e6).item() == pytest.approx(weighted_logistic(x).item(), rel=1e-4)
    (gradient,) = torch.autograd.grad(dr_dpo_loss(x, 1.0), x)
    assert abs(gradient[2]) < 1e-6 < abs(gradient[1])


@given(margins, st.floats(0, 1), st.floats(0, 3), st.floats(0, 2))
def test_what_is_moved_has_the_loss_of_a_lower_margin(x, moved, displacement, weight):
    expected = np.mean(weight * ((1 - moved) * logistic(x) + moved * logistic(x - displacement)))
    columns = [torch.full((x.size,), value, dtype=torch.float64) for value in (weight, 0.0, moved, displacement)]
    assert weighted_logistic(torch.tensor(x), *columns).item() == pytest.approx(expected, abs=1e-9)


def pulls(loss, x, **options):
    """-dL/dx of every margin, times their number."""
    x = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(x, **options), x)
    return -len(x) * gradient.numpy()


@given(margins, st.floats(0.5, 10))
def test_kl_dpo_multiplies_dpo_s_pull_by_fixed_weights(x, temperature):
    losses = logistic(x)
    weights = np.minimum(10, np.exp((losses - losses.mean()) / temperature))
    assert kl_dpo_loss(torch.tensor(x), temperature).item() == pytest.approx(np.mean(weights * losses), abs=1e-9)
    assert np.allclose(pulls(kl_dpo_loss, x, temperature=temperature), weights / (1 + np.exp(x)), atol=1e-9)


@given(margins, st.floats(0.05, 3))
def test_density_power_loss_is_its_formula(x, gamma):
    p = 1 / (1 + np.exp(-x))
    expected = np.mean(p ** (1 + gamma) + (1 - p) ** (1 + gamma) - (1 + 1 / gamma) * p**gamma + 1 / gamma)
    assert density_power_loss(torch.tensor(x), gamma).item() == pytest.approx(expected, abs=1e-9)


@given(margins)
def test_density_power_loss_becomes_dpo_as_gamma_falls(x):
    assert density_power_loss(torch.tensor(x), 1e-6).item() == pytest.approx(np.mean(logistic(x)), abs=1e-4)
    assert np.allclose(pulls(density_power_loss, x, gamma=1e-6), 1 / (1 + np.exp(x)), atol=1e-4)


def test_a_pair_far_on_the_wrong_side_pulls_ever_less_only_under_the_density_power_loss():
    far = [-2.0, -8.0, -16.0]
    assert np.all(np.diff(pulls(density_power_loss, far, gamma=0.5)) < -1e-4)
    assert pulls(density_power_loss, far, gamma=0.5)[-1] < 1e-3
    assert np.all(np.diff(pulls(weighted_logistic, far)) > 0)
