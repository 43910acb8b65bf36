"""Who prefers what: the simulated user, language models behind an endpoint, and reward models.

Judges label the seed, rank the pairs of `iter-dpo`, and measure the outcome; self-annotation uses none. This room
knows texts and scores. It knows nothing of margins, training or where answers came from.
"""

from sgpo_lib.judges.gold import GoldJudge

__all__ = ["GoldJudge"]
