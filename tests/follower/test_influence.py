"""How much a follower can change the gradient."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgpo_lib.follower import QuantileSupport, RangeSupport, influence, worst_case, worst_flips

margin_lists = st.lists(st.floats(-8, 8), min_size=1, max_size=40)
radii = st.one_of(st.just(0.0), st.floats(1e-4, 30))
supports = st.one_of(st.floats(0, 30).map(RangeSupport), st.floats(0, 0.4).map(QuantileSupport))


def pull(margins):
    return 1 / (1 + np.exp(margins))


@given(margin_lists, radii, supports)
def test_the_pull_on_margins_that_start_at_0_changes_by_no_more_than_half_the_radius(margins, radius, support):
    assert influence(worst_case(margins, radius, support)) <= radius / 2 + 1e-12


@given(margin_lists, radii, supports)
def test_the_pull_on_the_followers_margins_changes_by_no_more_than_a_quarter_of_the_radius(margins, radius, support):
    worst = worst_case(margins, radius, support)
    assert influence(worst, "initial") * pull(worst.margins).mean() <= radius / 4 + 1e-12


@given(margin_lists, radii, st.lists(st.floats(-8, 8), min_size=40, max_size=40))
def test_the_bound_holds_wherever_training_has_led(margins, radius, now):
    worst, now = worst_case(margins, radius), np.array(now[: len(margins)])
    change = worst.moved * (pull(now - worst.displacement) - pull(now))
    assert abs(change).mean() <= radius / 4 + 1e-12


@pytest.mark.parametrize("reference", ["previous", "initial"])
def test_influence_is_the_share_by_which_the_losss_gradient_changes(reference):
    margins = np.random.default_rng(0).normal(0.3, 1, 50)
    worst = worst_case(margins, 0.2)
    start = 0 * margins if reference == "previous" else margins
    step = 1e-6

    def losses(x):
        moved = worst.moved
        return (1 - moved) * np.log1p(np.exp(-x)) + moved * np.log1p(np.exp(worst.displacement - x))

    slope = (losses(start + step) - losses(start - step)) / (2 * step)
    share = abs(-slope - pull(start)).sum() / pull(start).sum()
    assert influence(worst, reference) == pytest.approx(share, rel=1e-6)


@pytest.mark.parametrize("scale", [0.2, 2.0])
def test_the_bound_is_nearly_met(scale):
    margins = np.abs(np.random.default_rng(0).normal(0, scale, 5000))
    for radius in (0.01, 0.1):
        assert influence(worst_case(margins, radius)) > 0.9 * radius / 2


chances = st.one_of(st.sampled_from([0.0, 1.0, 1e-300]), st.floats(0, 1))


@given(margin_lists, chances, radii)
def test_flips_change_the_pull_by_the_mean_probability_which_pinsker_bounds(margins, chance, radius):
    worst = worst_flips(margins, chance, radius)
    mean = worst.flip_probability.mean()
    assert mean <= chance + np.sqrt(radius / 2) + 1e-12
    assert influence(worst) == pytest.approx(2 * mean, abs=1e-12)
    assert influence(worst, "initial") == pytest.approx(mean / pull(worst.margins).mean(), rel=1e-9)


def test_an_unknown_reference_is_refused():
    with pytest.raises(ValueError, match="previous"):
        influence(worst_case([1.0], 0.1), "sft")
