"""Each loss against its closed form in numpy, on small tensors."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sgpo_lib.leader.losses import dr_dpo_loss, weighted_logistic

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
