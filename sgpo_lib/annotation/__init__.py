"""Prompts in, ranked preference pairs out: the model answers, a score ranks, nobody labels.

The score that ranks is the implicit reward in self-annotation, and a judge's score for the labelled seed. This room
knows answers, pairs and margins; it knows nothing of followers, of training or of where results live.
"""

from sgpo_lib.annotation.answers import encode_pairs, labelled, rescore, respond, with_implicit_rewards
from sgpo_lib.annotation.pairs import (
    audit,
    choose,
    n_comparisons,
    preferred,
    rank,
    with_balanced_rewards,
    with_margins,
)

__all__ = [
    "audit",
    "choose",
    "encode_pairs",
    "labelled",
    "n_comparisons",
    "preferred",
    "rank",
    "rescore",
    "respond",
    "with_balanced_rewards",
    "with_implicit_rewards",
    "with_margins",
]
