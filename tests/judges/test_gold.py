"""The gold user's utility: the documented formula, pure, and against wordiness."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from sgpo_lib.judges.gold import GoldJudge

# Words that VADER's lexicon does not hold, so that only their number counts.
words = st.lists(st.sampled_from(["the", "table", "is", "brown", "and", "long"]), max_size=80).map(" ".join)
texts = st.text(max_size=200)


def compound(text):
    return SentimentIntensityAnalyzer().polarity_scores(text)["compound"]


@pytest.mark.parametrize(
    ("text", "n_words"),
    [
        ("", 0),
        ("I love it.", 3),
        ("What a horrible,  awful\n day", 5),
        ("good " * 30, 30),
        ("good " * 31, 31),
        ("\tgood\u00a0good " * 50, 100),
    ],
)
def test_utility_is_sentiment_less_the_penalty_of_words_past_the_limit(text, n_words):
    expected = compound(text) - 0.02 * max(0, n_words - 30)
    assert GoldJudge().score([text]) == pytest.approx([expected], abs=1e-15)


def test_limit_and_penalty_are_those_asked_for():
    text = "this is a terrible plan"
    assert GoldJudge(word_limit=2, word_penalty=0.5).score([text])[0] == pytest.approx(compound(text) - 1.5)
    assert GoldJudge(word_limit=2, word_penalty=0.0).score([text])[0] == compound(text)


def test_warm_answers_are_liked_better_than_neutral_and_those_better_than_cold():
    warm, neutral, cold = GoldJudge().score(["I love it, thank you!", "It is a table.", "I hate it, how awful."])
    assert warm > neutral == 0 > cold


@settings(max_examples=20)
@given(words, st.integers(1, 40))
def test_every_word_past_the_limit_costs_the_same(text, n_more):
    judge = GoldJudge(word_limit=10)
    shorter, longer = judge.score([text, f"{text} {'table ' * n_more}"])
    past = max(0, len(text.split()) + n_more - 10) - max(0, len(text.split()) - 10)
    assert shorter - longer == pytest.approx(0.02 * past)


@settings(max_examples=15)
@given(st.lists(texts, max_size=5), texts)
def test_score_of_a_text_does_not_depend_on_the_others_or_on_earlier_calls(others, text):
    judge = GoldJudge()
    judge.score(others)
    assert judge.score([*others, text])[-1] == GoldJudge().score([text])[0]


@given(st.lists(texts, max_size=5))
def test_scores_are_finite_and_one_a_response(responses):
    judge = GoldJudge()
    scores, sentiment = judge.score(responses), judge.sentiment(responses)
    assert scores.shape == sentiment.shape == (len(responses),)
    assert np.isfinite(scores).all()
    assert (np.abs(sentiment) <= 1).all()
    assert (scores <= sentiment).all()
