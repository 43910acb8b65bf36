"""Tests that reject as often as they say, intervals that cover, adjustments that are Holm's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sgpo_lib.evaluation.statistics import Estimate, alpha_per_look, crossed_mean, holm, over_seeds

# Standard deviations of seeds, forms, seed x form, and answers to one prompt.
EFFECTS = {"seeds": (1, 0, 0, 1), "forms": (0, 1, 0, 1), "both": (0.5, 0.5, 0.2, 1), "no cluster": (0, 0, 0, 1)}


def simulated(rng, n_seeds, sizes, effects, truth=0.0):
    seed, form, both, answer = effects
    rest = np.sqrt(both**2 + answer**2 / sizes)
    return (
        truth
        + seed * rng.normal(size=(n_seeds, 1))
        + form * rng.normal(size=(1, len(sizes)))
        + rest * rng.normal(size=(n_seeds, len(sizes)))
    )


@pytest.mark.parametrize("effects", EFFECTS.values(), ids=EFFECTS)
@pytest.mark.parametrize(("n_seeds", "n_forms"), [(5, 6), (5, 26), (10, 6), (10, 26)])
def test_without_an_effect_one_test_in_twenty_rejects_and_intervals_cover(n_seeds, n_forms, effects):
    rng = np.random.default_rng(0)
    sizes = np.full(n_forms, 480 // n_forms)
    found = [crossed_mean(simulated(rng, n_seeds, sizes, effects, 0.3), sizes) for _ in range(1000)]
    covered = np.mean([low <= 0.3 <= high for low, high in (estimate.interval() for estimate in found)])
    assert covered >= 0.95 - 2.6 * np.sqrt(0.05 * 0.95 / 1000)
    rejected = np.mean([estimate._replace(mean=estimate.mean - 0.3).p_value() < 0.05 for estimate in found])
    assert rejected == pytest.approx(1 - covered)


@pytest.mark.parametrize("effects", [EFFECTS["seeds"], EFFECTS["forms"], EFFECTS["both"]])
def test_the_test_is_not_careful_where_seeds_and_forms_matter(effects):
    rng = np.random.default_rng(1)
    sizes = np.full(6, 80)
    p_values = [crossed_mean(simulated(rng, 10, sizes, effects), sizes).p_value() for _ in range(1000)]
    assert 0.03 <= np.mean(np.array(p_values) < 0.05) <= 0.07


@pytest.mark.parametrize("looks", [[10, 20], [5, 10, 20]])
@pytest.mark.parametrize("effects", [EFFECTS["seeds"], EFFECTS["both"]])
def test_looks_at_the_data_together_reject_one_time_in_twenty(looks, effects):
    rng = np.random.default_rng(2)
    alpha, sizes = alpha_per_look(looks), np.full(6, 80)
    rejected = 0
    for _ in range(1000):
        cells = simulated(rng, looks[-1], sizes, effects)
        rejected += any(crossed_mean(cells[:n], sizes).p_value() < alpha for n in looks)
    assert rejected / 1000 <= 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / 1000)


@pytest.mark.parametrize(("looks", "alpha"), [([10], 0.05), ([10, 20], 0.0286), ([5, 10, 20], 0.0195)])
def test_more_looks_have_lower_levels(looks, alpha):
    assert alpha_per_look(looks) == pytest.approx(alpha, abs=4e-4)


cells = st.integers(2, 7).flatmap(
    lambda n: st.lists(st.lists(st.floats(-3, 3), min_size=n, max_size=n), min_size=2, max_size=6).map(np.array)
)


@given(cells)
def test_in_balanced_data_the_variance_is_that_of_the_two_way_analysis(cells):
    n_seeds, n_forms = cells.shape
    mean = cells.mean()
    of_seed, of_form = cells.mean(axis=1), cells.mean(axis=0)
    ms_seed = n_forms * np.sum((of_seed - mean) ** 2) / (n_seeds - 1)
    ms_form = n_seeds * np.sum((of_form - mean) ** 2) / (n_forms - 1)
    ms_rest = np.sum((cells - of_seed[:, None] - of_form + mean) ** 2) / ((n_seeds - 1) * (n_forms - 1))
    expected = max(ms_seed + ms_form - ms_rest, ms_seed) / cells.size
    found = crossed_mean(cells, np.full(n_forms, 3))
    assert found.standard_error**2 == pytest.approx(expected, abs=1e-9)
    assert found.mean == pytest.approx(mean)


@given(cells)
def test_no_interval_is_narrower_than_students_t_over_seeds_is_with_as_many_degrees_of_freedom(cells):
    crossed, plain = crossed_mean(cells, np.ones(cells.shape[1])), over_seeds(cells.mean(axis=1))
    assert crossed.standard_error >= plain.standard_error - 1e-12
    assert crossed.df >= min(cells.shape) - 1 - 1e-9


def test_a_large_cluster_counts_as_its_prompts():
    cells = np.array([[1.0, 0.0], [1.0, 0.0]])
    assert crossed_mean(cells, np.array([3, 1])).mean == 0.75


def test_one_seed_or_one_cluster_has_a_mean_and_no_interval():
    for cells in (np.zeros((1, 4)), np.zeros((4, 1))):
        found = crossed_mean(cells, np.ones(cells.shape[1]))
        assert found.mean == 0
        assert np.isnan([*found.interval(), found.p_value(), found.p_equivalent(1)]).all()


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8))
def test_interval_and_p_value_over_seeds_are_those_of_the_t_test(values):
    if np.ptp(values) < 1e-6:
        return
    found, test = over_seeds(np.array(values)), stats.ttest_1samp(values, 0)
    assert found.p_value() == pytest.approx(test.pvalue, abs=1e-9)
    assert found.interval() == pytest.approx(tuple(test.confidence_interval(0.95)))


estimates = st.builds(
    Estimate, st.floats(-1, 1), st.floats(0.01, 1), st.floats(1, 100), st.just(1.0), st.just(5), st.just(6)
)


@given(estimates, st.floats(0.01, 2))
def test_equivalence_holds_at_5_percent_exactly_if_the_90_percent_interval_lies_inside(estimate, margin):
    low, high = estimate.interval(0.9)
    inside = max(abs(low), abs(high))
    if abs(inside - margin) > 1e-6:
        assert (estimate.p_equivalent(margin) < 0.05) == (inside < margin)


@given(estimates)
def test_the_smallest_visible_effect_is_found_with_its_power(estimate):
    """By the t distribution shifted to the effect."""
    effect = estimate.smallest_visible(0.05, 0.8)
    found_at = stats.t.ppf(0.975, estimate.df) * estimate.standard_error
    assert estimate._replace(mean=effect).p_above(found_at) == pytest.approx(0.2)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_its_step_down_rule_rejects(p_values):
    p_values, alpha = np.array(p_values), 0.05
    rejected = np.zeros(len(p_values), bool)
    for step, i in enumerate(np.argsort(p_values)):
        if p_values[i] > alpha / (len(p_values) - step):
            break
        rejected[i] = True
    adjusted = holm(p_values)
    clear = np.abs(adjusted - alpha) > 1e-12
    assert (rejected == (adjusted <= alpha))[clear].all()
    assert (adjusted >= p_values - 1e-15).all()
