"""The toy games: every closed form against brute force or a linear program, every bound on random games."""

import csv

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize

from sgpo_lib.follower import logistic_loss, tangents, worst_case
from sgpo_lib.regret import (
    BoundViolated,
    Law,
    advantage_ratio,
    alternate,
    best_policy,
    binning_optimism,
    bisected_value,
    capped_shift,
    check_bound,
    constant,
    contraction_matrix,
    critical_weight,
    cumulative_optimism,
    distances,
    dpo_lower_bound,
    dpo_regret_bound,
    drop_bound,
    empirical,
    flip_cost,
    flip_labels,
    gap_space_value,
    grouping_optimism,
    leaders,
    margin_distance,
    measured_factor,
    pair_space,
    payoff,
    pieces_optimism,
    predicted_factor,
    proximal_minimum,
    random_game,
    random_shift,
    regret,
    regret_bracket,
    robust_leader,
    robust_value,
    sgpo_regret_bound,
    simulate_drops,
    simulate_jumps,
    simulate_noise,
    simulate_regrets,
    smooth_equilibrium,
    tangent_gap,
    tolerance_optimism,
    translation,
    transport_frontier,
    unattained,
    worst_drop,
    worst_loss,
    worst_regret,
    write_constants,
)
from sgpo_lib.regret.report import to_markdown

seeds = st.integers(0, 10_000)
SIZES = np.array([0.0, 0.5, 1.0, 2.0, 6.0])


def wasserstein(law: Law, other: Law) -> float:
    """W1 between two laws of pairs, as the transport linear program."""
    costs = distances(law.points, other.points)
    rows, columns = costs.shape
    marginals = np.vstack([np.kron(np.eye(rows), np.ones(columns)), np.kron(np.ones(rows), np.eye(columns))])
    solution = linprog(costs.ravel(), A_eq=marginals, b_eq=np.concatenate([law.weights, other.weights]))
    return solution.fun


# Policies


@given(seeds, st.sampled_from([0.0, 0.05, 0.2]), st.sampled_from([0.5, 4.0]))
def test_no_policy_nearby_beats_the_best_policy(seed, radius, bound):
    rng = np.random.default_rng(seed)
    law = empirical(random_game(rng, n_pairs=12).pairs)
    best = best_policy(law, bound, radius)
    value = payoff(best, law) - radius * np.linalg.norm(best)
    rivals = best + rng.normal(size=(40, 2)) * np.geomspace(1e-4, 3, 40)[:, None]
    rivals *= np.minimum(1, bound / np.linalg.norm(rivals, axis=1))[:, None]
    assert all(payoff(rival, law) - radius * np.linalg.norm(rival) <= value + 1e-12 for rival in rivals)


@given(seeds)
def test_best_policy_agrees_with_a_general_solver(seed):
    law = empirical(random_game(np.random.default_rng(seed), n_pairs=15, dimension=3).pairs)
    room = {"type": "ineq", "fun": lambda v: 4.0 - v @ v}
    solution = minimize(
        lambda v: -payoff(v, law),
        np.full(3, 0.1),
        constraints=[room],
        method="SLSQP",
        options={"ftol": 1e-14},
    )
    assert payoff(best_policy(law, 2.0), law) == pytest.approx(-solution.fun, abs=1e-7)


def test_the_leader_abstains_exactly_when_the_evidence_is_weaker_than_the_radius():
    pairs = np.array([[1.0, 0.0], [-0.5, 0.2]])
    pull = np.linalg.norm(pairs.mean(axis=0)) / 2
    assert not best_policy(empirical(pairs), 4.0, pull * 1.001).any()
    assert best_policy(empirical(pairs), 4.0, pull * 0.999).any()


@given(seeds)
def test_regret_is_zero_for_the_best_policy_and_positive_for_others(seed):
    rng = np.random.default_rng(seed)
    law = empirical(random_game(rng).pairs)
    assert regret(best_policy(law, 4.0), law, 4.0) == pytest.approx(0, abs=1e-12)
    assert regret(rng.normal(size=2), law, 4.0) > 0


# Shifts


@given(seeds, st.floats(0.01, 1.0))
def test_shifts_stay_within_their_size(seed, size):
    rng = np.random.default_rng(seed)
    pairs, policy = random_game(rng, n_pairs=6).pairs, rng.normal(size=2)
    for law in (random_shift(rng, pairs, size), capped_shift(pairs, policy, size, 3 * size)):
        assert law.weights.sum() == pytest.approx(1)
        assert wasserstein(empirical(pairs), law) <= size + 1e-9
    assert wasserstein(empirical(pairs), translation(pairs, policy, size)) == pytest.approx(size, abs=1e-9)


@given(seeds, st.floats(0.01, 0.5), st.floats(1.0, 8.0))
def test_the_capped_shift_is_the_worst_of_all_capped_transports(seed, size, factor):
    rng = np.random.default_rng(seed)
    pairs, policy = random_game(rng, n_pairs=5).pairs, rng.normal(size=2)
    reach = factor * size
    worst = payoff(policy, capped_shift(pairs, policy, size, reach))
    # Along -θ/‖θ‖, the only direction that pays, as a linear program over a grid of distances moved.
    grid = np.linspace(0, reach, 21)
    losses = logistic_loss((pairs @ policy)[:, None] - np.linalg.norm(policy) * grid)
    solution = linprog(
        -losses.ravel() / 5,
        A_ub=np.tile(grid, 5)[None] / 5,
        b_ub=[size],
        A_eq=np.kron(np.eye(5), np.ones(21)),
        b_eq=np.ones(5),
    )
    assert worst == pytest.approx(solution.fun, abs=1e-9)


def test_a_growing_reach_tends_to_the_closed_form_of_lemma_3_1():
    pairs, policy = random_game(np.random.default_rng(3)).pairs, np.array([1.0, -2.0])
    supremum = -payoff(policy, empirical(pairs)) + 0.1 * np.linalg.norm(policy)
    values = [-payoff(policy, capped_shift(pairs, policy, 0.1, reach)) for reach in (0.1, 1, 10, 100, 1e4)]
    assert np.all(np.diff(values) > 0)
    assert supremum - 1e-4 < values[-1] < supremum


@given(seeds, st.floats(0.0, 2.0))
def test_the_frontier_solves_the_transport_linear_program(seed, size):
    rng = np.random.default_rng(seed)
    pairs = rng.normal(size=(4, 2))
    points = np.concatenate([pairs, rng.normal(size=(7, 2)) * 2])
    values, costs = rng.normal(size=11), distances(pairs, points)
    frontier = transport_frontier(values, costs)
    solution = linprog(
        -np.tile(values, 4) / 4,
        A_ub=costs.ravel()[None] / 4,
        b_ub=[size],
        A_eq=np.kron(np.eye(4), np.ones(11)),
        b_eq=np.ones(4),
    )
    assert values[:4].mean() + frontier.gains(size) == pytest.approx(-solution.fun, abs=1e-9)
    assert frontier.weights(size) @ values == pytest.approx(-solution.fun, abs=1e-9)


@given(seeds, st.floats(0.0, 1.0))
def test_the_frontier_with_one_target_is_the_margin_space_follower(seed, size):
    margins = np.random.default_rng(seed).normal(size=9)
    floor = margins.min() - 0.5
    points = np.append(margins, floor)
    frontier = transport_frontier(logistic_loss(points), np.abs(margins[:, None] - points))
    exact = worst_case(margins, size, (floor, margins.max())).value
    assert logistic_loss(margins).mean() + frontier.gains(size) == pytest.approx(exact, abs=1e-12)


@given(seeds)
def test_worst_regret_is_attained_and_no_smaller_than_what_random_shifts_reach(seed):
    rng = np.random.default_rng(seed)
    game = random_game(rng, n_pairs=8)
    dpo, _ = leaders(game)
    points = pair_space(game.pairs, [dpo])
    (worst,), (law,) = worst_regret(dpo, game.pairs, points, game.bound, [0.3], np.array([-dpo, 0 * dpo]))
    assert wasserstein(empirical(game.pairs), law) <= 0.3 + 1e-9
    assert worst == pytest.approx(regret(dpo, law, game.bound))
    assert worst >= max(regret(dpo, random_shift(rng, game.pairs, 0.3), game.bound) for _ in range(5))


# Bounds


@given(seeds)
def test_theorem_2_4_holds_and_the_policys_own_constant_is_tight(seed):
    rng = np.random.default_rng(seed)
    game = random_game(rng, radius=0.03)
    drops = simulate_drops(game, np.array([0.5, 1.0]) * game.radius, rng, n_random=3)
    check_bound(drops.worst, drop_bound(game.lipschitz, drops.sizes), "Theorem 2.4")
    check_bound(drops.tested, drops.supremum[:, None], "Lemma 3.1")
    assert np.all(drops.worst > 0.95 * drops.supremum)


@settings(max_examples=20)
@given(seeds, st.sampled_from([None, 0.02]))
def test_theorem_2_5_holds_for_both_policies_inside_and_beyond_the_ball(seed, mean_norm):
    game = random_game(np.random.default_rng(seed), n_pairs=10, radius=0.05, mean_norm=mean_norm)
    regrets = simulate_regrets(game, SIZES * game.radius)
    sizes, constant_ = regrets.sizes, game.lipschitz
    check_bound(regrets.sgpo, sgpo_regret_bound(constant_, game.radius, sizes), "Theorem 2.5, SGPO")
    check_bound(regrets.dpo, dpo_regret_bound(constant_, sizes), "Theorem 2.5, DPO")


@settings(max_examples=20)
@given(seeds)
def test_theorem_2_6_holds_on_near_ties_where_assumption_d_8_does(seed):
    game = random_game(np.random.default_rng(seed), n_pairs=10, radius=0.05, mean_norm=0.0225)
    regrets = simulate_regrets(game, SIZES * game.radius)
    check_bound(regrets.centre_shift, regrets.norms[0] * game.radius, "Assumption D.8")
    check_bound(dpo_lower_bound(regrets.norms[0], game.radius, regrets.sizes), regrets.dpo, "Theorem 2.6")


def test_theorem_2_6_fails_where_assumption_d_8_does():
    game = random_game(np.random.default_rng(0), strength=20, bound=6.0, radius=0.025)
    regrets = simulate_regrets(game, SIZES * game.radius)
    assert regrets.centre_shift[-1] > 10 * regrets.norms[0] * game.radius
    with pytest.raises(BoundViolated, match=r"Theorem 2\.6"):
        check_bound(dpo_lower_bound(regrets.norms[0], game.radius, regrets.sizes), regrets.dpo, "Theorem 2.6")


def test_theorem_2_6_fails_for_a_benign_target_at_any_distance():
    game = random_game(np.random.default_rng(1), radius=0.05, mean_norm=0.0225)
    regrets = simulate_regrets(game, SIZES * game.radius)
    assert regrets.benign[-1] < 1e-9 < dpo_lower_bound(regrets.norms[0], game.radius, regrets.sizes)[-1]


@settings(max_examples=20)
@given(seeds, st.sampled_from([None, 0.02]))
def test_the_worst_regret_of_both_policies_lies_in_its_bracket(seed, mean_norm):
    game = random_game(np.random.default_rng(seed), n_pairs=10, radius=0.05, mean_norm=mean_norm)
    regrets = simulate_regrets(game, SIZES * game.radius)
    found = np.stack([regrets.dpo, regrets.sgpo])
    check_bound(found, regrets.upper, "upper end")
    # SGPO's lower end at θ = 0 is log 2 - log 2 = 0.
    check_bound(regrets.lower, found, "lower end")


def test_the_bracket_is_log_2_wide_and_the_reach_only_lowers_its_lower_end():
    game = random_game(np.random.default_rng(0))
    dpo, _ = leaders(game)
    lower, upper = regret_bracket(dpo, game.pairs, SIZES)
    assert upper - lower == pytest.approx(np.log(2))
    assert np.all(regret_bracket(dpo, game.pairs, SIZES, 50.0)[0] <= lower)


def test_the_advantage_ratio_is_the_ratio_of_the_two_bounds():
    sizes = np.array([0.3, 0.5])
    ratio = dpo_lower_bound(3.0, 0.1, sizes) / sgpo_regret_bound(3.0, 0.1, 0.1)
    assert advantage_ratio(sizes, 0.1) == pytest.approx(ratio)


@pytest.mark.parametrize("measured", [[0.5, 1.1], [0.5, float("nan")]])
def test_a_crossed_bound_is_loud(measured):
    with pytest.raises(BoundViolated, match="1 of 2 values"):
        check_bound(measured, 1.0, "a line")


def test_check_bound_returns_the_share_of_the_bound_used():
    assert check_bound([0.5, 0.9, 0.0], [1.0, 1.2, 0.0], "a line") == pytest.approx(0.75)


@given(seeds)
def test_margin_distance_is_the_transport_linear_program(seed):
    first, second = np.random.default_rng(seed).normal(size=(2, 5, 1))
    expected = wasserstein(empirical(first), empirical(second))
    assert margin_distance(first.ravel(), second.ravel()) == pytest.approx(expected, abs=1e-9)


# Equilibrium


def equilibrium_game(seed):
    """A game whose smooth equilibrium is away from zero."""
    rng = np.random.default_rng(seed)
    while True:
        pairs = random_game(rng, n_pairs=30, strength=1.5).pairs
        if np.linalg.norm(pairs.mean(axis=0)) > 0.4:
            return pairs


@given(seeds)
def test_the_gradient_of_the_value_matches_finite_differences(seed):
    rng = np.random.default_rng(seed)
    pairs, policy = random_game(rng).pairs, rng.normal(size=2)
    _, gradient = worst_loss(policy, pairs, 0.1, 0.4)
    step = 1e-6
    differences = [
        (worst_loss(policy + move, pairs, 0.1, 0.4)[0] - worst_loss(policy - move, pairs, 0.1, 0.4)[0]) / (2 * step)
        for move in step * np.eye(2)
    ]
    assert gradient == pytest.approx(differences, abs=1e-6)


@given(seeds)
def test_the_smooth_equilibrium_is_a_fixed_point_and_the_leaders_optimum(seed):
    pairs = equilibrium_game(seed)
    goal = smooth_equilibrium(pairs, 0.3)
    path = alternate(pairs, goal, 0.3, 0.3, 1.0, 1)
    assert np.linalg.norm(path[1] - goal) < 1e-10
    best, gap = robust_leader(pairs, 0.3, 0.3, bound=10.0)
    assert worst_loss(goal, pairs, 0.3, 0.3)[0] <= worst_loss(best, pairs, 0.3, 0.3)[0] + 1e-12
    assert gap < 1e-8


@given(seeds, st.floats(0.05, 5.0))
def test_the_linearisation_matches_one_round_of_the_scheme(seed, weight):
    pairs = equilibrium_game(seed)
    goal = smooth_equilibrium(pairs, 0.3)
    size = 1e-6 * np.linalg.norm(goal)
    columns = [(alternate(pairs, goal + move, 0.3, 0.3, weight, 1)[1] - goal) / size for move in size * np.eye(2)]
    matrix = contraction_matrix(goal, pairs, 0.3, weight)
    assert np.column_stack(columns) == pytest.approx(matrix, abs=1e-3 * (1 + np.abs(matrix).max()))


@given(seeds)
def test_the_scheme_converges_above_the_critical_weight_and_not_below(seed):
    pairs = equilibrium_game(seed)
    goal = smooth_equilibrium(pairs, 0.3)
    critical = critical_weight(goal, pairs, 0.3)
    assert predicted_factor(goal, pairs, 0.3, critical + 0.05) < 1
    if critical > 0:
        assert predicted_factor(goal, pairs, 0.3, critical / 2) > 1


def test_too_long_a_step_leaves_the_equilibrium():
    critical, pairs = max(
        ((critical_weight(smooth_equilibrium(p, 0.3), p, 0.3), p) for p in map(equilibrium_game, range(30))),
        key=lambda pair: pair[0],
    )
    goal = smooth_equilibrium(pairs, 0.3)
    start = goal * (1 + 1e-6)
    start = start + 1e-6 * np.array([-goal[1], goal[0]])
    assert critical > 0
    far = alternate(pairs, start, 0.3, 0.3, critical / 2, 400)[-1]
    near = alternate(pairs, start, 0.3, 0.3, 2 * critical, 400)[-1]
    assert np.linalg.norm(far - goal) > 100 * np.linalg.norm(start - goal) > np.linalg.norm(near - goal)


def test_the_measured_factor_of_a_geometric_path_is_its_ratio():
    path = 1e-4 * 0.7 ** np.arange(30)[:, None] * np.ones((1, 2))
    assert measured_factor(path, np.zeros(2)) == pytest.approx(0.7)


def test_a_jumping_best_response_keeps_some_game_from_settling():
    lengths = simulate_jumps(np.random.default_rng(3), 20)[:, -20:].max(axis=1)
    assert 0 < (lengths > 1e-8).sum() < 20


# Existence


def test_equation_4_as_printed_has_dpos_optimum():
    pairs = np.random.default_rng(0).normal(0.4, 1.0, size=20)
    policies = np.linspace(-3, 3, 301)
    dpo = robust_value(policies, pairs, 0.0)
    assert gap_space_value(policies, pairs, 0.2) == pytest.approx(dpo - 0.2)


@given(st.floats(0.0, 0.5), st.floats(2.5, 8.0))
def test_the_value_falls_with_the_radius_and_with_the_window(radius, window):
    pairs = np.clip(np.random.default_rng(0).normal(0.4, 1.0, size=20), -2.4, 2.4)
    policies = np.linspace(-3, 3, 13)
    value = robust_value(policies, pairs, radius, window)
    assert np.all(value <= robust_value(policies, pairs, radius / 2, window) + 1e-12)
    assert np.all(value >= robust_value(policies, pairs, radius, 2 * window) - 1e-12)
    assert np.all(value >= robust_value(policies, pairs, radius) - 1e-12)


def test_the_infimum_on_the_line_is_approached_and_never_attained():
    margins = np.random.default_rng(0).normal(size=50)
    missing, moved = unattained(margins, 0.1, -np.geomspace(5, 5e6, 7))
    assert np.all(missing > 0)
    assert np.all(np.diff(missing) < 0)
    assert moved[-1] < 1e-7


def test_the_value_missing_is_the_difference_to_the_closed_form():
    margins = np.random.default_rng(0).normal(size=50)
    (missing,), _ = unattained(margins, 0.1, np.array([-6.0]))
    direct = logistic_loss(margins).mean() + 0.1 - worst_case(margins, 0.1, (-6.0, margins.max())).value
    assert missing == pytest.approx(direct, abs=1e-12)


# Approximation


@st.composite
def follower_problems(draw):
    rng = np.random.default_rng(draw(seeds))
    margins = rng.normal(0.5, 2.0, size=draw(st.integers(10, 60)))
    return margins, draw(st.floats(0.01, 0.3)), (margins.min() - 0.1, margins.max() + 0.1)


@given(follower_problems())
def test_optimism_in_tangents_is_within_its_bound_and_falls_over_nested_counts(problem):
    optimism, bound = pieces_optimism(*problem, [2, 3, 5, 9, 17])
    check_bound(optimism, bound, "Proposition D.12")
    check_bound(-optimism, 0.0, "Proposition 3.2 (i)")
    assert np.all(np.diff(optimism) <= 1e-12)


@given(follower_problems(), st.integers(2, 12))
def test_the_tangent_gap_is_the_largest_on_a_fine_grid(problem, count):
    support = problem[2]
    pieces = tangents(count, support)
    grid = np.linspace(*support, 4001)
    brute = (logistic_loss(grid) - pieces(grid)).max()
    assert brute <= tangent_gap(pieces, support) + 1e-12
    assert brute == pytest.approx(tangent_gap(pieces, support), abs=2e-2 * (support[1] - support[0]) / count)


@given(follower_problems())
def test_optimism_in_groups_is_within_its_bound(problem):
    optimism, bound = grouping_optimism(*problem, [1, 3, 7, 100])
    check_bound(optimism, bound, "Proposition D.13")
    check_bound(-optimism, 0.0, "groups weaken the adversary")
    assert optimism[-1] == pytest.approx(0, abs=1e-12)


def test_finer_bins_disarm_the_adversary_instead_of_converging():
    rng = np.random.default_rng(0)
    margins = rng.normal(size=200)
    support = (margins.min() - 0.1, margins.max() + 0.1)
    optimism, claim = binning_optimism(margins, 0.05, support, [1, 2, 10, 200])
    assert np.all(np.diff(optimism) < 0)
    with pytest.raises(BoundViolated):
        check_bound(optimism, claim, "Appendix F.3")


@given(follower_problems(), st.sampled_from([1e-1, 1e-3, 1e-6, 1e-9]))
def test_bisection_is_feasible_and_keeps_its_tolerance(problem, tolerance):
    value, gap = bisected_value(*problem, tolerance)
    exact = worst_case(*problem).value
    assert gap <= tolerance
    assert exact - gap - 1e-12 <= value <= exact + 1e-12


@given(follower_problems())
def test_tolerance_optimism_is_within_the_certified_gap(problem):
    optimism, gap = tolerance_optimism(*problem, [1e-2, 1e-5])
    check_bound(optimism, gap, "Proposition D.14, tolerance", tolerance=1e-12)


@given(follower_problems(), st.integers(2, 9), st.integers(1, 30), st.sampled_from([1e-2, 1e-4]))
def test_all_three_approximations_together_are_within_the_sum(problem, count, size, tolerance):
    optimism, bound = cumulative_optimism(*problem, count, size, tolerance)
    check_bound(optimism, bound, "Proposition D.14")
    check_bound(-optimism, 0.0, "every approximation weakens the adversary")


# Label noise


@given(seeds, st.floats(0.0, 1.0))
def test_flips_are_a_shift_of_at_most_their_cost(seed, rate):
    rng = np.random.default_rng(seed)
    pairs = rng.normal(size=(6, 2))
    flipped = rng.random(6) < rate
    noisy = flip_labels(pairs, flipped)
    assert wasserstein(empirical(pairs), empirical(noisy)) <= flip_cost(pairs, flipped) + 1e-9


def test_the_flip_cost_of_margins_is_twice_their_size():
    assert flip_cost(np.array([-1.0, 3.0]), 0.25) == pytest.approx(2 * 0.25 * 2.0)


@settings(max_examples=30)
@given(seeds)
def test_theorem_2_5_covers_label_noise_at_the_radius_of_the_flips(seed):
    rates = np.array([0.0, 0.1, 0.3])
    noise = simulate_noise(np.random.default_rng(seed), rates, n_pairs=12, bound=4.0)
    check_bound(noise.features, 2 * 4.0 * noise.distance, "Theorem 2.5 under label noise")
    check_bound(noise.dpo, 2 * 4.0 * noise.distance, "Theorem 2.5 under label noise, DPO")


# Report


def test_the_table_holds_the_same_rows_in_both_forms(tmp_path):
    rows = [constant("a", 0.5, "<= 1", 20, True), constant("b", 2.0, "<= 1", 20, False, "why")]
    table, page = write_constants(rows, tmp_path)
    with table.open(encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == [{k: str(v) for k, v in row.items()} for row in rows]
    assert page.read_text(encoding="utf-8") == to_markdown(rows)


# Errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: proximal_minimum(empirical(np.ones((2, 2))), 0.0, np.ones(2)), "must be positive"),
        (lambda: translation(np.ones((2, 2)), np.zeros(2), 1.0), "no direction"),
        (lambda: capped_shift(np.ones((2, 2)), np.ones(2), 1.0, 0.5), "raise the reach"),
        (lambda: smooth_equilibrium(np.array([[0.1, 0.0]]), 0.3), "lower the radius"),
        (
            lambda: simulate_drops(random_game(np.random.default_rng(0), radius=9.0), [1.0], None),
            "lower the radius",
        ),
    ],
)
def test_errors_say_what_to_change(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_worst_drop_is_zero_without_a_shift():
    pairs = random_game(np.random.default_rng(0)).pairs
    assert worst_drop(np.ones(2), pairs, pair_space(pairs), [0.0]) == pytest.approx([0.0])
