"""The exact follower: optimal by its own certificate, feasible, and the same whichever way it is asked."""

import math
import pickle
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

from sgpo_lib.follower import (
    Grouped,
    QuantileSupport,
    RangeSupport,
    closed_form_value,
    exact,
    logistic_loss,
    tangents,
    worst_case,
)

# Quarters make ties and margins at the edges of the support common.
quarters = st.integers(-32, 32).map(lambda i: i / 4)
margin_lists = st.lists(st.one_of(quarters, st.floats(-8, 8)), min_size=1, max_size=40)
radii = st.one_of(st.just(0.0), st.floats(1e-4, 0.5), st.floats(0.5, 30))
supports = st.one_of(
    st.floats(0, 3).map(RangeSupport),
    st.floats(0, 0.4).map(QuantileSupport),
    st.tuples(quarters, quarters).map(lambda ends: tuple(sorted(ends))),
)


def rounding(result) -> float:
    """The size of rounding errors in a sum of losses as large as the largest one."""
    return 1e-14 * max(1.0, float(np.max(result.loss(np.array([result.support[0]])))))


def by_full_sort(margins, radius, low):
    """The theorem, word for word: sort, fill, stop."""
    budget, moved = radius * len(margins), np.zeros(len(margins))
    for i in np.argsort(margins, kind="stable"):
        cost = margins[i] - low
        moved[i] = 1.0 if cost <= budget else budget / cost
        budget -= moved[i] * cost
        if moved[i] < 1:
            break
    return moved


@given(margin_lists, radii, supports)
def test_certificate_closes_at_rounding_level(margins, radius, support):
    result = worst_case(margins, radius, support)
    assert abs(result.gap) <= rounding(result)


@given(margin_lists, radii, supports, st.integers(1, 8))
def test_certificate_closes_for_tangents(margins, radius, support, n_pieces):
    window = worst_case(margins, 0, support).support
    result = worst_case(margins, radius, window, tangents(n_pieces, window))
    assert abs(result.gap) <= rounding(result)


@given(margin_lists, radii, supports)
def test_distribution_lies_in_the_ball_and_on_the_support(margins, radius, support):
    result = worst_case(margins, radius, support)
    atoms = result.atoms()
    distance = wasserstein_distance(atoms.position, result.margins, atoms.weight)
    assert distance <= radius + 1e-12
    assert result.transport == pytest.approx(distance, abs=1e-12)
    assert atoms.weight.sum() == pytest.approx(1, abs=1e-12)
    assert atoms.weight.min() > 0
    assert result.support[0] <= atoms.position.min()
    assert atoms.position.max() <= result.support[1]


@given(margin_lists, radii, supports)
def test_value_is_the_expected_loss_of_the_distribution(margins, radius, support):
    result = worst_case(margins, radius, support)
    atoms = result.atoms()
    assert result.value == pytest.approx(atoms.weight @ logistic_loss(atoms.position), abs=1e-12)


@given(margin_lists, st.floats(1e-4, 30), supports)
def test_moves_are_those_of_a_full_sort(margins, radius, support):
    result = worst_case(margins, radius, support)
    expected = by_full_sort(result.margins, radius, result.support[0])
    # A margin at a is moved over no distance; whether it counts as moved is a matter of convention.
    away = result.margins > result.support[0]
    np.testing.assert_allclose(result.moved[away], expected[away], atol=1e-9)


@given(st.lists(quarters, min_size=1, max_size=200), st.floats(1e-4, 3), st.integers(2, 9))
def test_selection_by_sample_finds_the_same_margins(margins, radius, sample):
    whole = worst_case(margins, radius)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "_SAMPLE", sample)
        selected = worst_case(margins, radius)
    np.testing.assert_array_equal(selected.moved, whole.moved)
    assert selected.value == whole.value


def test_selection_survives_a_sample_that_misses_the_lowest_margins():
    margins = np.random.default_rng(0).uniform(1, 2, 50_000)
    step = margins.size // exact._SAMPLE
    margins[3::step] -= 10
    result = worst_case(margins, 0.4, RangeSupport(0))
    np.testing.assert_allclose(result.moved, by_full_sort(margins, 0.4, margins.min()), atol=1e-9)


def test_selection_survives_a_sample_that_holds_all_low_margins():
    margins = np.random.default_rng(0).uniform(1, 2, 50_000)
    step = margins.size // exact._SAMPLE
    margins[::step][:500] -= 3
    result = worst_case(margins, 0.03, RangeSupport(0))
    np.testing.assert_allclose(result.moved, by_full_sort(margins, 0.03, margins.min()), atol=1e-9)


def test_of_tied_margins_the_first_moves_first():
    result = worst_case([1.0, 3.0, 1.0, 1.0, 1.0], radius=2.5 / 5, support=(0, 5))
    np.testing.assert_allclose(result.moved, [1, 0, 1, 0.5, 0])


@given(margin_lists, radii, supports)
def test_displacement_is_the_distance_to_the_low_end_where_mass_moves(margins, radius, support):
    result = worst_case(margins, radius, support)
    expected = np.where(result.moved > 0, result.margins - result.support[0], 0)
    np.testing.assert_allclose(result.displacement, expected, atol=1e-12)
    assert np.mean(result.moved * result.displacement) == pytest.approx(result.transport, abs=1e-12)


@given(st.lists(quarters, min_size=1, max_size=30, unique=True), radii, st.randoms())
def test_results_follow_the_order_of_the_pairs(margins, radius, random):
    order = list(range(len(margins)))
    random.shuffle(order)
    margins = np.array(margins)
    straight, shuffled = worst_case(margins, radius), worst_case(margins[order], radius)
    np.testing.assert_allclose(shuffled.moved, straight.moved[order], atol=1e-9)
    np.testing.assert_allclose(shuffled.displacement, straight.displacement[order], atol=1e-12)


@given(margin_lists, st.tuples(radii, radii).map(sorted), supports)
def test_value_rises_with_the_radius(margins, two_radii, support):
    small, large = (worst_case(margins, radius, support) for radius in two_radii)
    assert small.value <= large.value + rounding(large)


@given(margin_lists, st.floats(0, 2), supports)
def test_value_is_concave_in_the_radius_and_the_price_is_its_slope(margins, radius, support):
    # A concave function lies below each of its tangents, on both sides.
    result = worst_case(margins, radius, support)
    for other in (radius / 2, radius + 0.1, 2 * radius + 1):
        line = result.value + result.price * (other - radius)
        assert worst_case(margins, other, support).value <= line + 1e-12


@given(margin_lists, radii, st.integers(1, 6))
def test_value_rises_over_nested_tangents_towards_the_exact_one(margins, radius, n_pieces):
    window = worst_case(margins, 0).support
    coarse, fine = (worst_case(margins, radius, window, tangents(k, window)) for k in (n_pieces + 1, 2 * n_pieces + 1))
    limit = worst_case(margins, radius, window).value
    assert coarse.value <= fine.value + 1e-12 <= limit + 2e-12


def test_knots_that_are_not_nested_need_not_be_monotone():
    values = [worst_case([0.5], 0.01, (0, 1), tangents(k, space="probability")).value for k in (2, 3, 4)]
    assert values[1] < values[0] < values[2]


@given(margin_lists, radii, supports, st.integers(1, 50))
def test_groups_never_do_better_than_the_whole(margins, radius, support, group_size):
    whole = worst_case(margins, radius, support)
    parts = Grouped(group_size)(margins, radius, support)
    assert parts.value <= whole.value + rounding(whole)
    assert parts.n_clipped == whole.n_clipped
    assert abs(parts.gap) <= rounding(parts)
    if group_size >= len(margins):
        assert parts.value == pytest.approx(whole.value, abs=rounding(whole))


def test_each_group_spends_its_own_budget():
    result = Grouped(2)([1.0, 2.0, 1.0, 2.0, 1.0], radius=0.5, support=(0, 3))
    np.testing.assert_allclose(result.moved, [1, 0, 1, 0, 0.5])
    assert result.transport == pytest.approx(0.5)


@given(margin_lists, supports)
def test_radius_zero_is_the_loss_without_an_adversary(margins, support):
    result = worst_case(margins, 0, support)
    assert result.value == result.nominal == pytest.approx(logistic_loss(result.margins).mean(), abs=1e-13)
    assert not result.moved.any()
    assert not result.displacement.any()


@given(margin_lists, supports)
def test_a_large_radius_moves_everything_for_free(margins, support):
    result = worst_case(margins, 100, support)
    assert result.price == 0
    assert np.all(result.moved == 1)
    np.testing.assert_allclose(result.margins - result.displacement, result.support[0], atol=1e-14)
    assert result.value == pytest.approx(logistic_loss(result.support[0]), abs=1e-13)


@given(st.floats(-5, 5), st.floats(0, 0.999), st.floats(0.1, 5))
def test_a_single_pair_moves_in_proportion_to_the_radius(margin, share, room):
    result = worst_case([margin], share * room, (margin - room, margin + 1))
    assert result.moved[0] == pytest.approx(share, abs=1e-12)
    assert result.price == pytest.approx((logistic_loss(margin - room) - logistic_loss(margin)) / room, rel=1e-9)


@given(margin_lists, radii)
def test_no_support_is_the_limit_of_wide_ones(margins, radius):
    values = [worst_case(margins, radius, (-width, 10)).value for width in (10, 1e3, 1e6)]
    limit = closed_form_value(margins, radius)
    assert values[0] <= values[1] + 1e-12 <= values[2] + 1e-9 <= limit + 2e-9
    assert values[2] == pytest.approx(limit, abs=1e-3)


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=40), radii)
def test_huge_margins_in_single_precision_keep_the_certificate(margins, radius):
    single = np.array(margins, dtype=np.float32)
    result = worst_case(single, radius)
    assert math.isfinite(result.value)
    assert abs(result.gap) <= rounding(result)
    assert result.value == worst_case(single.astype(np.float64), radius).value


@pytest.mark.parametrize("distance", [5e-324, 1e-200, 1e-16, 1e-12, 1e-8])
def test_margins_within_rounding_of_the_edge_keep_the_certificate(distance):
    for edge in (0.0, -100.0, 40.0):
        result = worst_case([edge + distance, edge + distance, edge + 1], distance / 2, (edge, edge + 1))
        assert abs(result.gap) <= rounding(result)


def test_chord_slope_survives_cancellation():
    # The losses at -3 and at the boundary differ by a few units in the last place only.
    for distance in (1e-13, 1e-12, 1e-11, 1e-10):
        result = worst_case([-3 + distance, -1.0], distance / 3, (-3, 0))
        assert result.price == pytest.approx(1 / (1 + np.exp(-3)), abs=1e-7)


@given(margin_lists, radii, supports, st.integers(1, 6))
def test_masses_and_shifts_solve_theorem_3_3(margins, radius, support, n_pieces):
    window = worst_case(margins, 0, support).support
    pieces = tangents(n_pieces, window)
    result = worst_case(margins, radius, window, pieces)
    s, q = result.masses_and_shifts(pieces)
    position = s * result.margins[:, None] - q
    objective = np.sum(position * pieces.slopes + s * pieces.intercepts) / len(margins)
    assert objective == pytest.approx(result.value, abs=1e-11)
    np.testing.assert_allclose(s.sum(axis=1), 1, atol=1e-12)
    assert s.min() >= 0
    assert np.abs(q).sum() / len(margins) <= radius + 1e-12
    assert np.all(window[0] * s <= position + 1e-12)
    assert np.all(position <= window[1] * s + 1e-12)


@given(margin_lists, radii)
def test_the_weights_of_algorithm_1_are_all_one(margins, radius):
    np.testing.assert_allclose(worst_case(margins, radius).pair_weights(), 1, atol=1e-12)


def test_at_most_one_pair_is_split():
    result = worst_case(np.random.default_rng(0).normal(size=500), 0.1)
    assert np.count_nonzero((result.moved > 0) & (result.moved < 1)) <= 1
    assert result.atoms().position.size <= 501


def test_margins_outside_the_support_are_clipped_and_counted():
    margins = np.array([-3.0, 0.0, 1.0, 7.0, 9.0])
    result = worst_case(margins, 0.1, (-1, 5))
    np.testing.assert_array_equal(result.margins, [-1, 0, 1, 5, 5])
    assert result.n_clipped == 3
    assert margins[0] == -3


def test_later_changes_to_the_input_do_not_reach_the_result():
    margins = np.array([1.0, 2.0])
    result = worst_case(margins, 0.1)
    margins[:] = 0
    np.testing.assert_array_equal(result.margins, [1, 2])


def test_result_can_be_pickled():
    result = worst_case([1.0, 2.0], 0.1, (0, 3), tangents(4, (0, 3)))
    copy = pickle.loads(pickle.dumps(result))
    assert copy.value == result.value
    np.testing.assert_array_equal(copy.moved, result.moved)


@pytest.mark.parametrize("radius", [0.01, 1.0, 4.0, 100.0])
def test_needs_at_most_four_temporary_arrays(radius):
    margins = np.random.default_rng(0).normal(0, 2, 400_000)
    worst_case(margins[:10], radius)
    tracemalloc.start()
    try:
        result = worst_case(margins, radius)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert result.margins.nbytes == margins.nbytes
    assert peak - kept <= 4.1 * margins.nbytes


def test_importing_the_follower_loads_no_heavy_library():
    heavy = ("torch", "cvxpy", "sklearn", "scipy", "pandas", "matplotlib")
    code = f"import sys, sgpo_lib.follower; print([m for m in {heavy} if m in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
