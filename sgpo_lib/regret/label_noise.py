"""Wrong labels as a shift: flipping a pair sends its feature difference x to -x, its margin ξ to -ξ.

The cost is 2‖x‖ in features and 2|ξ| in margins, so an error rate implies a radius. A policy is trained on
the noisy pairs and judged on the clean ones.
"""

from typing import NamedTuple

import numpy as np

from sgpo_lib.regret.games import best_policy, empirical, random_game, regret


class NoiseRegrets(NamedTuple):
    """Regret on the clean law, each (P,) for the flip rates `rates`.

    `dpo`; `fixed` : SGPO at the fixed radius; `features`, `margins` : SGPO at two calibrated radii.
    `distance` : what the flips that happened cost, an upper bound of W1(noisy, clean) in feature units.
    `abstains` : whether SGPO at the `features` radius is the zero policy.
    """

    rates: np.ndarray
    dpo: np.ndarray
    fixed: np.ndarray
    features: np.ndarray
    margins: np.ndarray
    distance: np.ndarray
    abstains: np.ndarray


def flip_labels(pairs, flipped) -> np.ndarray:
    """Swap chosen and rejected where `flipped` (N,) says so."""
    return np.where(np.asarray(flipped)[:, None], -pairs, pairs)


def flip_cost(pairs, probability) -> float:
    """(2/N) Σ p_i ‖x_i‖, in the units of `pairs`: feature differences (N, d), or margins (N,).

    With the flips that happened as probabilities it bounds W1 between the noisy and the clean law.
    """
    lengths = np.abs(pairs) if np.ndim(pairs) == 1 else np.linalg.norm(pairs, axis=1)
    return 2 * float(np.mean(np.broadcast_to(probability, lengths.shape) * lengths))


def simulate_noise(rng, rates, radius=0.05, **game) -> NoiseRegrets:
    """Flip labels of one random game at each rate, train on them, and measure regret on the clean pairs.

    The `features` radius is the cost of the flips that happened, for which Theorem 2.5 guarantees 2Lε. The
    `margins` radius is what a practitioner can have: DPO's own margins on the noisy pairs and the flip rate
    give (2/N) Σ p |ξ_i|, which ‖θ_DPO‖ turns into feature units.

    Parameters
    ----------
    radius : of the fixed ball, in feature units.
    game : arguments of `games.random_game`.
    """
    clean = random_game(rng, **game)
    law, bound = empirical(clean.pairs), clean.bound
    # A pair flipped at 10% stays flipped at 20%, so that the curve shows the rate alone.
    draw = rng.random(len(clean.pairs))
    columns = []
    for rate in rates:
        flipped = draw < rate
        pairs = flip_labels(clean.pairs, flipped)
        noisy = empirical(pairs)
        dpo = best_policy(noisy, bound)
        distance = flip_cost(pairs, flipped)
        in_margins = flip_cost(pairs @ dpo, rate) / max(np.linalg.norm(dpo), 1e-12)
        robust = best_policy(noisy, bound, distance)
        columns.append(
            [
                regret(dpo, law, bound),
                regret(best_policy(noisy, bound, radius), law, bound),
                regret(robust, law, bound),
                regret(best_policy(noisy, bound, in_margins), law, bound),
                distance,
                not robust.any(),
            ]
        )
    return NoiseRegrets(np.asarray(rates, dtype=float), *np.array(columns, dtype=float).T)
