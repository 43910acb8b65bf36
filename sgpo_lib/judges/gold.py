"""Who prefers what: a judge scores responses to prompts, higher is better.

Judges label the seed, measure the outcome, and rank the pairs of `iter-dpo`. Self-annotation uses none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer


@dataclass(frozen=True)
class GoldJudge:
    """A simulated user whose utility is known exactly: likes warmth, dislikes wordiness.

    utility = compound - word_penalty * max(0, words - word_limit)

    where compound in [-1, 1] is the VADER sentiment of the response (Hutto and Gilbert, ICWSM 2014) and
    words are separated by white space. The prompt plays no part, so the utility is pure and cheap; a
    policy can satisfy it without being helpful, which is what makes over-optimisation visible.
    """

    word_limit: int = 30
    word_penalty: float = 0.02

    @cached_property
    def _analyzer(self) -> SentimentIntensityAnalyzer:
        return SentimentIntensityAnalyzer()

    def score(self, responses: Sequence[str]) -> np.ndarray:
        """Return the utility of each response, shape (N,)."""
        return self.sentiment(responses) - self.penalty(responses)

    def penalty(self, responses: Sequence[str]) -> np.ndarray:
        """Return what the words past the limit cost each response, at least 0, shape (N,)."""
        excess = np.array([max(0, len(text.split()) - self.word_limit) for text in responses], dtype=float)
        return self.word_penalty * excess

    def sentiment(self, responses: Sequence[str]) -> np.ndarray:
        """Return the VADER compound sentiment of each response, in [-1, 1], shape (N,)."""
        return np.array([self._analyzer.polarity_scores(text)["compound"] for text in responses], dtype=float)
