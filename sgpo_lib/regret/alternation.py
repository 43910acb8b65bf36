"""Alternating best responses with a proximal leader step (Theorem 2.3), and how fast they converge."""

from typing import NamedTuple

import numpy as np
from scipy.special import expit

from sgpo_lib.regret.equilibrium import robust_leader, smooth_equilibrium
from sgpo_lib.regret.games import proximal_minimum, random_game
from sgpo_lib.regret.shifts import capped_shift, translation


def alternate(pairs, start, radius: float, reach: float, proximal_weight: float, n_steps: int) -> np.ndarray:
    """Play eqs. (7)-(8): the follower's best response, then the leader's proximal step.

    Parameters
    ----------
    start : (d,) first policy, not zero.
    proximal_weight : λ in θ_{t+1} = argmin E_{P_t}[ℓ] + λ/2 ‖θ - θ_t‖²; the step size is 1/λ.

    Returns
    -------
    path, shape (n_steps + 1, d).
    """
    path = [np.asarray(start, dtype=float)]
    for _ in range(n_steps):
        law = capped_shift(pairs, path[-1], radius, reach)
        path.append(proximal_minimum(law, proximal_weight, path[-1], centre=path[-1]))
    return np.stack(path)


def contraction_matrix(equilibrium, pairs, radius: float, proximal_weight: float) -> np.ndarray:
    """Linearise one round of `alternate` at the equilibrium, for reach = radius.

    The leader's optimality condition g(θ_{t+1}, P(θ_t)) + λ(θ_{t+1} - θ_t) = 0, differentiated at the fixed
    point, gives dθ_{t+1} = (H + λI)^-1 (λI - C) dθ_t with H = ∂g/∂θ the leader's curvature and
    C = ∂g/∂P · dP/dθ the follower's reaction. Here C = radius·E[σ(-ξ)] (I - uuᵀ)/‖θ‖ with u = θ/‖θ‖.
    """
    dimension = len(equilibrium)
    leader, follower = curvatures(equilibrium, pairs, radius)
    identity = np.eye(dimension)
    return np.linalg.solve(leader + proximal_weight * identity, proximal_weight * identity - follower)


def curvatures(equilibrium, pairs, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """The leader's curvature H and the follower's reaction C at the equilibrium, each (d, d)."""
    points, weights = translation(pairs, equilibrium, radius)
    slope = expit(-(points @ equilibrium))
    leader = (points.T * (weights * slope * (1 - slope))) @ points
    norm = np.linalg.norm(equilibrium)
    unit = equilibrium / norm
    follower = radius * (weights @ slope) / norm * (np.eye(len(unit)) - np.outer(unit, unit))
    return leader, follower


def predicted_factor(equilibrium, pairs, radius: float, proximal_weight: float) -> float:
    """Asymptotic contraction factor, the spectral radius of `contraction_matrix`; above 1 it diverges."""
    matrix = contraction_matrix(equilibrium, pairs, radius, proximal_weight)
    return float(np.abs(np.linalg.eigvals(matrix)).max())


def paper_factor(equilibrium, pairs, radius: float, proximal_weight: float) -> float:
    """The factor L_ℓ L_f L_R / μ of the proof of Theorem D.5.

    L_f = 2 as printed; L_R = max ‖x‖; L_ℓ = max ‖x‖ / 4, the Lipschitz constant of the leader's gradient in
    the margin; μ = λ plus the leader's smallest curvature at the equilibrium.
    """
    leader, _ = curvatures(equilibrium, pairs, radius)
    longest = np.linalg.norm(pairs, axis=1).max()
    return float(longest / 4 * 2 * longest / (np.linalg.eigvalsh(leader)[0] + proximal_weight))


def critical_weight(equilibrium, pairs, radius: float) -> float:
    """Smallest proximal weight that converges: half the largest eigenvalue of C - H, or 0.

    An eigenvalue of `contraction_matrix` reaches -1 where λI - C = -(H + λI). It never reaches +1, because
    H + C is the curvature of -V, which is positive. So only a step that is too long fails, by overshooting.
    """
    leader, follower = curvatures(equilibrium, pairs, radius)
    return max(0.0, float(np.linalg.eigvalsh(follower - leader)[-1]) / 2)


def measured_factor(path, equilibrium, floor=1e-11, ceiling=1e-3) -> float:
    """Geometric mean of the last ratios, four at most, of distances to the equilibrium along a path near it.

    The path counts until it first leaves (floor, ceiling): below rounding takes over, above the
    linearisation ends. Returns nan if fewer than three distances lie between.
    """
    distance = np.linalg.norm(path - equilibrium, axis=1)
    outside = (distance <= floor) | (distance >= ceiling)
    usable = int(np.argmax(outside)) if outside.any() else len(distance)
    if usable < 3:
        return float("nan")
    back = min(4, usable - 1)
    return float((distance[usable - 1] / distance[usable - 1 - back]) ** (1 / back))


class Convergence(NamedTuple):
    """The scheme in G games at each of W proximal weights, for reach = radius.

    `weights` (W,); `predicted`, `measured`, `paper` (G, W) contraction factors; `distances` (G, W, T + 1) to
    the equilibrium, relative to its norm, along paths that start 0.3 away; `critical` (G,) the smallest
    weight that converges. `rejected` counts draws whose equilibrium is too near 0.
    """

    weights: np.ndarray
    predicted: np.ndarray
    measured: np.ndarray
    paper: np.ndarray
    distances: np.ndarray
    critical: np.ndarray
    rejected: int


def simulate_convergence(rng, n_games: int, weights, radius=0.3, n_steps=80) -> Convergence:
    """Alternate in random games at each proximal weight: from far to see it, from near for the factor."""
    rows, rejected = [], 0
    while len(rows) < n_games:
        pairs = random_game(rng, n_pairs=40, strength=1.5).pairs
        if np.linalg.norm(pairs.mean(axis=0)) < 1.3 * radius:
            rejected += 1
            continue
        goal = smooth_equilibrium(pairs, radius)
        norm = np.linalg.norm(goal)
        step = rng.normal(size=2)
        step *= norm / np.linalg.norm(step)

        def paths(offset, pairs=pairs, goal=goal, step=step):
            start = goal + offset * step
            return np.stack([alternate(pairs, start, radius, radius, weight, n_steps) for weight in weights])

        rows.append(
            (
                [predicted_factor(goal, pairs, radius, weight) for weight in weights],
                [measured_factor(path, goal) for path in paths(1e-6)],
                [paper_factor(goal, pairs, radius, weight) for weight in weights],
                np.linalg.norm(paths(0.3) - goal, axis=2) / norm,
                critical_weight(goal, pairs, radius),
            )
        )
    columns = (np.array(column) for column in zip(*rows, strict=True))
    return Convergence(np.asarray(weights, dtype=float), *columns, rejected)


def simulate_jumps(rng, n_games: int, n_pairs=20, weight=1.0, radius=0.15, reach=0.6, n_steps=300) -> np.ndarray:
    """Step lengths ‖θ_{t+1} - θ_t‖, shape (n_games, n_steps), when the follower's best response can jump.

    Starts 20% beyond the equilibrium, where every game has a finite one.
    """
    lengths = []
    for _ in range(n_games):
        game = random_game(rng, n_pairs=n_pairs, strength=1.5, radius=radius)
        goal, _ = robust_leader(game.pairs, radius, reach, game.bound)
        path = alternate(game.pairs, 1.2 * goal, radius, reach, weight, n_steps)
        lengths.append(np.linalg.norm(np.diff(path, axis=0), axis=1))
    return np.array(lengths)
