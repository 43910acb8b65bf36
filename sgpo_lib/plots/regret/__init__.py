"""Pictures of the regret games: single games (`games`), and what the theorems bound (`theorems`)."""

from sgpo_lib.plots.regret.games import band, live, one_game, regret_against_shift, worst_case_drop
from sgpo_lib.plots.regret.theorems import advantage, approximation, convergence, existence, label_noise

__all__ = [
    "advantage",
    "approximation",
    "band",
    "convergence",
    "existence",
    "label_noise",
    "live",
    "one_game",
    "regret_against_shift",
    "worst_case_drop",
]
