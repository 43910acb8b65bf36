"""One random game, shifted at every size: what the theorems of section 2.4 say, measured."""

from typing import NamedTuple

import numpy as np

from sgpo_lib.regret.bounds import margin_distance, regret_bracket
from sgpo_lib.regret.games import Game, best_policy, empirical, payoff, regret
from sgpo_lib.regret.shifts import (
    capped_shift,
    pair_space,
    policy_grid,
    random_shift,
    translation,
    worst_drop,
    worst_regret,
)

# Feature units: far enough that a law with this reach is within 1e-3 of the supremum over all laws.
_FAR = 1e4


class Drops(NamedTuple):
    """Payoff lost by the SGPO policy, against shift size: `worst` (S,), `tested` (S, T), `supremum` (S,).

    `worst` is exact on a finite set of pairs, `tested` are individual shifts, and `supremum` = ‖θ‖δ is
    Lemma 3.1 in feature units, which no law attains.
    """

    sizes: np.ndarray
    worst: np.ndarray
    tested: np.ndarray
    supremum: np.ndarray


class Regrets(NamedTuple):
    """Regret against shift size for one game, all (S,) unless noted.

    `dpo`, `sgpo` : against the worst shift found for each policy, every law attained.
    `benign` : DPO's regret when the pairs move *with* it by the same distance.
    `centre_shift` : Assumption D.8's κ at DPO's worst shift, in margin units: W1 between the training
        margins of the policy that is best there and of DPO.
    `lower`, `upper` (2, S) : `bounds.regret_bracket` of DPO and of SGPO.
    `norms` (2,) : ‖θ‖ of DPO and SGPO.
    """

    sizes: np.ndarray
    dpo: np.ndarray
    sgpo: np.ndarray
    benign: np.ndarray
    centre_shift: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    norms: np.ndarray


def leaders(game: Game) -> tuple[np.ndarray, np.ndarray]:
    """The DPO policy and the SGPO policy of a game, each (d,)."""
    centre = empirical(game.pairs)
    return best_policy(centre, game.bound), best_policy(centre, game.bound, game.radius)


def simulate_drops(game: Game, sizes, rng, n_random=10) -> Drops:
    """Shift the pairs in every way we have, at each positive size, and record what the SGPO policy loses.

    The shifts tested one by one are random ones, the translation, and the best attack whose pairs move no
    further than 2, 5 and 20 times the size.
    """
    _, policy = leaders(game)
    pairs = game.pairs
    if not policy.any():
        raise ValueError("SGPO abstains (θ = 0) in this game, so nothing can drop: lower the radius")
    nominal = payoff(policy, empirical(pairs))
    tested = []
    for size in sizes:
        laws = [random_shift(rng, pairs, size) for _ in range(n_random)]
        laws.append(translation(pairs, policy, size))
        laws += [capped_shift(pairs, policy, size, reach) for reach in size * np.array([2, 5, 20])]
        tested.append([nominal - payoff(policy, law) for law in laws])
    points = pair_space(pairs, [policy])
    supremum = np.linalg.norm(policy) * np.asarray(sizes, dtype=float)
    return Drops(sizes, worst_drop(policy, pairs, points, sizes), np.array(tested), supremum)


def simulate_regrets(game: Game, sizes) -> Regrets:
    """Find, for DPO and for SGPO, the worst shift of every size, and the regret it causes."""
    pairs = game.pairs
    dpo, sgpo = leaders(game)
    points = pair_space(pairs, [dpo, sgpo])
    comparators = np.concatenate([policy_grid(game.bound), [dpo, sgpo, -dpo, -sgpo]])
    dpo_regret, dpo_laws = _worst(dpo, game, points, sizes, comparators)
    sgpo_regret, _ = _worst(sgpo, game, points, sizes, comparators)
    benign = [regret(dpo, translation(pairs, dpo, -size), game.bound) for size in sizes]
    brackets = [regret_bracket(policy, pairs, sizes, _FAR) for policy in (dpo, sgpo)]
    rivals = [best_policy(law, game.bound) for law in dpo_laws]
    return Regrets(
        sizes=np.asarray(sizes, dtype=float),
        dpo=dpo_regret,
        sgpo=sgpo_regret,
        benign=np.array(benign),
        centre_shift=np.array([margin_distance(pairs @ rival, pairs @ dpo) for rival in rivals]),
        lower=np.stack([lower for lower, _ in brackets]),
        upper=np.stack([upper for _, upper in brackets]),
        norms=np.linalg.norm([dpo, sgpo], axis=1),
    )


def _worst(policy, game: Game, points, sizes, comparators):
    """The worst of the exact adversary on `points`, the translation, and a little mass sent very far."""
    regrets, laws = worst_regret(policy, game.pairs, points, game.bound, sizes, comparators)
    if policy.any():
        for k, size in enumerate(sizes):
            for law in (
                translation(game.pairs, policy, size),
                capped_shift(game.pairs, policy, size, _FAR),
            ):
                moved = regret(policy, law, game.bound)
                if moved > regrets[k]:
                    regrets[k], laws[k] = moved, law
    return regrets, laws
