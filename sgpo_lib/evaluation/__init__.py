"""How good the policies are: gold reward, win rates, KL, accuracy on labelled pairs, each with its interval.

This room knows samples, statistics and tables of finished runs (`metrics`, `comparison`, `report`), and the two public
benchmarks (`alpaca`, `mt_bench`). It trains nothing and draws nothing.
"""

from sgpo_lib.evaluation.metrics import (
    bootstrap,
    bootstrap_length_control,
    clusters_of,
    judge,
    length_controlled_win_rate,
    preference_accuracy,
    summarize,
)

__all__ = [
    "bootstrap",
    "bootstrap_length_control",
    "clusters_of",
    "judge",
    "length_controlled_win_rate",
    "preference_accuracy",
    "summarize",
]
