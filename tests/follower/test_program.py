"""The exact follower against the finite convex program, which two unrelated solvers solve."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgpo_lib.follower import ConvexProgram, Grouped, Published, side_by_side, tangents, worst_case

quarters = st.integers(-16, 16).map(lambda i: i / 4)


@st.composite
def problems(draw):
    """Margins, radius, window, pieces; ties, edges, radius 0 and too large a radius are common."""
    margins = np.array(draw(st.lists(st.one_of(quarters, st.floats(-4, 4)), min_size=1, max_size=12)))
    radius = draw(st.one_of(st.just(0.0), st.floats(1e-3, 0.5), st.floats(0.5, 12)))
    room = draw(st.sampled_from([0.0, 0.1, 2.0, -0.5]))
    low, high = margins.min() - room, margins.max() + room
    window = (low, high) if low <= high else (high, low)
    pieces = tangents(draw(st.integers(1, 7)), window)
    return margins, radius, window, pieces


@given(problems())
@settings(max_examples=150)
def test_exact_follower_equals_highs(problem):
    margins, radius, window, pieces = problem
    exact = worst_case(margins, radius, window, pieces)
    reference = ConvexProgram("HIGHS")(margins, radius, window, pieces)
    assert exact.value == pytest.approx(reference.value, abs=1e-9)
    assert exact.n_clipped == reference.n_clipped


@given(problems())
@settings(max_examples=25)
def test_exact_follower_equals_clarabel(problem):
    margins, radius, window, pieces = problem
    exact = worst_case(margins, radius, window, pieces)
    reference = ConvexProgram("CLARABEL")(margins, radius, window, pieces)
    assert exact.value == pytest.approx(reference.value, abs=1e-6)


@given(problems())
@settings(max_examples=40)
def test_the_programs_distribution_attains_its_value(problem):
    margins, radius, window, pieces = problem
    result = ConvexProgram("HIGHS")(margins, radius, window, pieces)
    atoms = result.atoms()
    assert atoms.weight.sum() == pytest.approx(1, abs=1e-9)
    assert atoms.weight @ result.loss(atoms.position) == pytest.approx(result.value, abs=1e-6)
    assert result.transport <= radius + 1e-8


@given(problems())
@settings(max_examples=40)
def test_the_programs_price_certifies_the_exact_value(problem):
    # A bound from another solver's dual variable, computed without the greedy pass.
    margins, radius, window, pieces = problem
    bound = ConvexProgram("HIGHS")(margins, radius, window, pieces).dual_value
    assert worst_case(margins, radius, window, pieces).value <= bound + 1e-12


def test_a_hundred_pairs_agree_to_the_last_digits():
    margins = np.random.default_rng(0).normal(0, 2, 100)
    window = (margins.min() - 0.1, margins.max() + 0.1)
    pieces = tangents(6, window)
    reference = ConvexProgram("HIGHS")(margins, 0.05, window, pieces)
    assert worst_case(margins, 0.05, window, pieces).value == pytest.approx(reference.value, abs=1e-13)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=10), st.floats(0, 0.3), st.integers(1, 7))
@settings(max_examples=40)
def test_exact_follower_equals_highs_in_probability_space(probabilities, radius, n_pieces):
    pieces = tangents(n_pieces, space="probability")
    exact = worst_case(probabilities, radius, (0, 1), pieces)
    reference = ConvexProgram("HIGHS")(probabilities, radius, (0, 1), pieces)
    assert exact.value == pytest.approx(reference.value, abs=1e-9)


def test_the_program_refuses_what_the_exact_follower_refuses():
    pieces = tangents(3, (0, 1))
    with pytest.raises(ValueError, match="radius"):
        ConvexProgram()([0.5], -1, (0, 1), pieces)
    with pytest.raises(ValueError, match="NaN"):
        ConvexProgram()([math.nan], 0.1, (0, 1), pieces)


@pytest.fixture(scope="module")
def published_solve():
    margins = np.abs(np.random.default_rng(0).normal(0, 2, 24))
    probabilities = 1 / (1 + np.exp(-margins))
    return probabilities, Published(12)(probabilities, 0.01, (0, 1), tangents(6, space="probability"))


def test_the_published_solve_is_not_optimal(published_solve):
    _, result = published_solve
    assert result.gap > 0.01


def test_the_published_solve_works_in_groups(published_solve):
    _, result = published_solve
    loss = tangents(6, space="probability")
    halves = [worst_case(part, 0.01, (0, 1), loss).value for part in np.split(result.margins, 2)]
    assert result.dual_value == pytest.approx(np.mean(halves), abs=1e-12)


def test_the_published_solve_still_returns_a_distribution(published_solve):
    _, result = published_solve
    atoms = result.atoms()
    assert atoms.weight.sum() == pytest.approx(1, abs=1e-9)
    assert atoms.position.min() >= 0
    assert atoms.position.max() <= 1


def test_solvers_side_by_side_report_what_they_lost():
    rows = side_by_side({"exact": worst_case, "each pair alone": Grouped(1)}, np.array([0.5, 1.0, 2.0]), 0.1)
    assert [row["solver"] for row in rows] == ["exact", "each pair alone"]
    assert rows[0]["value"] > rows[1]["value"] > rows[1]["nominal"]
    assert all(abs(row["lost"]) < 1e-15 and row["excess"] < 1e-15 and row["seconds"] > 0 for row in rows)


@pytest.mark.parametrize("follower", [ConvexProgram(), Published()])
def test_followers_made_for_lines_refuse_another_loss(follower):
    with pytest.raises(ValueError, match="tangents"):
        follower([0.5], 0.1, (0, 1), np.exp)
