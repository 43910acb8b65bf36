"""The theory half of the paper in toy games small enough to solve exactly and see.

Features are vectors, rewards linear, policies bounded in norm; no language model appears. `games` solves for
policies, `shifts` for adversaries, `bounds` holds the theorems' lines and the check that fails loudly;
`simulation`, `equilibrium`, `alternation`, `existence`, `approximation` and `label_noise` put them together,
one question each.

This room knows games, laws and shifts. It knows nothing of language models or runs.
"""

from sgpo_lib.regret.alternation import (
    Convergence,
    alternate,
    contraction_matrix,
    critical_weight,
    measured_factor,
    paper_factor,
    predicted_factor,
    simulate_convergence,
    simulate_jumps,
)
from sgpo_lib.regret.approximation import (
    binning_optimism,
    bisected_value,
    cumulative_optimism,
    grouping_optimism,
    pieces_optimism,
    tangent_gap,
    tolerance_optimism,
)
from sgpo_lib.regret.bounds import (
    BoundViolated,
    advantage_ratio,
    check_bound,
    dpo_lower_bound,
    dpo_regret_bound,
    drop_bound,
    margin_distance,
    regret_bracket,
    sgpo_regret_bound,
)
from sgpo_lib.regret.equilibrium import robust_leader, smooth_equilibrium, worst_loss
from sgpo_lib.regret.existence import best_response, gap_space_value, robust_value, unattained
from sgpo_lib.regret.games import (
    Game,
    Law,
    best_policy,
    empirical,
    payoff,
    proximal_minimum,
    random_game,
    regret,
)
from sgpo_lib.regret.label_noise import NoiseRegrets, flip_cost, flip_labels, simulate_noise
from sgpo_lib.regret.report import constant, to_markdown, write_constants
from sgpo_lib.regret.shifts import (
    Frontier,
    capped_shift,
    distances,
    pair_space,
    policy_grid,
    random_shift,
    translation,
    transport_frontier,
    worst_drop,
    worst_regret,
)
from sgpo_lib.regret.simulation import Drops, Regrets, leaders, simulate_drops, simulate_regrets

__all__ = [
    "BoundViolated",
    "Convergence",
    "Drops",
    "Frontier",
    "Game",
    "Law",
    "NoiseRegrets",
    "Regrets",
    "advantage_ratio",
    "alternate",
    "best_policy",
    "best_response",
    "binning_optimism",
    "bisected_value",
    "capped_shift",
    "check_bound",
    "constant",
    "contraction_matrix",
    "critical_weight",
    "cumulative_optimism",
    "distances",
    "dpo_lower_bound",
    "dpo_regret_bound",
    "drop_bound",
    "empirical",
    "flip_cost",
    "flip_labels",
    "gap_space_value",
    "grouping_optimism",
    "leaders",
    "margin_distance",
    "measured_factor",
    "pair_space",
    "paper_factor",
    "payoff",
    "pieces_optimism",
    "policy_grid",
    "predicted_factor",
    "proximal_minimum",
    "random_game",
    "random_shift",
    "regret",
    "regret_bracket",
    "robust_leader",
    "robust_value",
    "sgpo_regret_bound",
    "simulate_convergence",
    "simulate_drops",
    "simulate_jumps",
    "simulate_noise",
    "simulate_regrets",
    "smooth_equilibrium",
    "tangent_gap",
    "to_markdown",
    "tolerance_optimism",
    "translation",
    "transport_frontier",
    "unattained",
    "worst_drop",
    "worst_loss",
    "worst_regret",
    "write_constants",
]
