"""The methods, by name: what each of them sets."""

from typing import Any

from sgpo_lib.leader.modes import MODES

_SELF = {"annotation.judge": "implicit"}


METHODS: dict[str, dict[str, Any]] = {
    "dpo": {},
    "iter-dpo": {"leader.mode": "dpo", "annotation.judge": "sentiment"},
    "iter-dpo-gold": {"leader.mode": "dpo", "annotation.judge": "gold"},
    "iter-dpo-external": {"leader.mode": "dpo", "annotation.judge": "external"},
} | {mode.method: _SELF | {"leader.mode": name} | mode.sets for name, mode in MODES.items()}
"""What each method sets, as dotted overrides: those of leader modes as `sgpo_lib.leader.modes` has them.

`dpo` stops at the labelled seed: it has no rounds, whatever the params say. `self-dpo` trains on the
self-labels as they are, which is SSAPO at radius 0. `iter-dpo` has the pairs ranked by an external judge that
shares the gold user's taste in part, `iter-dpo-gold` by the gold user itself, a ceiling, and `iter-dpo-external` by
the section `judge`, such as PairRM. A prompt whose answers tie has no pair, so that these may train on fewer rows than
self-annotation (of 96 prompts in params/study.yaml 90 by sentiment, 92 by the gold user, 96 by the implicit reward); a
study's trainings.csv shows it.
"""
