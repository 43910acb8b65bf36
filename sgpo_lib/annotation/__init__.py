"""Prompts in, ranked preference pairs out: the model answers, a score ranks, nobody labels.

The score that ranks is the implicit reward in self-annotation, and a judge's score for the labelled seed. This room
knows answers, pairs and margins; it knows nothing of followers, of training or of where results live.

Importing it loads no language model; the names that need one do so when they are asked for.
"""

from importlib import import_module

from sgpo_lib.annotation.pairs import (
    audit,
    choose,
    n_comparisons,
    preferred,
    rank,
    with_balanced_rewards,
    with_margins,
)

_LATER = ("encode_pairs", "labelled", "rescore", "respond", "with_implicit_rewards")

__all__ = ["audit", "choose", "n_comparisons", "preferred", "rank", "with_balanced_rewards", "with_margins", *_LATER]


def __getattr__(name: str):
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.answers"), name)
