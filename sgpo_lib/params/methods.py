"""The methods, by name: what each of them sets."""

from typing import Any

from sgpo_lib.leader.modes import MODES

_SELF = {"annotation.judge": "implicit"}


METHODS: dict[str, dict[str, Any]] = {
    "dpo": {},
    "iter-dpo": {"leader.mode": "dpo", "annotation.judge": "sentiment"},
    "iter-dpo-gold": {"leader.mode": "dpo", "annotation.judge": "gold"},
    "iter-dpo-external": {"leader.mode": "dpo", "annotation.judge": "external"},
    "flips-replay": _SELF | {"leader.mode": "flips", "leader.replay": 0.25},
    "dice": _SELF | {"leader.mode": "dpo", "leader.replay": 0.5, "annotation.length_penalty": "balanced"},
} | {mode.method: _SELF | {"leader.mode": name} | mode.sets for name, mode in MODES.items()}
"""What each method sets, as dotted overrides: those of leader modes as `sgpo_lib.leader.modes` has them.

`dpo` stops at the labelled seed: it has no rounds, whatever the params say. `self-dpo` trains on the
self-labels as they are, which is SSAPO at radius 0. `iter-dpo` has the pairs ranked by an external judge that
shares the gold user's taste in part, `iter-dpo-gold` by the gold user itself, a ceiling, and `iter-dpo-external` by
the section `judge`, such as PairRM. `flips-replay` and `dice` train on the labelled seed again in
every round: the one beside the follower on labels, the other, without a follower, beside self-labels balanced in length
(Chen et al., ICLR 2025, arXiv 2406.09760; its pairs are best and worst of 16: `annotation.n_samples`).
"""
