"""The judge that a params file names: it ranks for iter-dpo, and evaluates where there is no gold user."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from chat_server import reply, servers
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sgpo_lib import evaluation
from sgpo_lib.judges import external
from sgpo_lib.judges.gold import GoldJudge
from sgpo_lib.judges.reward_model import RewardModelJudge
from sgpo_lib.params import load_params

TEXTS = ["I love it, thank you so much!", "It is a brown table.", "good " * 40, "I hate it."]
RESPONSES = pd.DataFrame(
    {
        "prompt_id": ["a", "a", "b", "b"],
        "prompt": [[{"role": "user", "content": "How is it?"}]] * 4,
        "response": TEXTS,
        "policy": ["sft", "dpo"] * 2,
        "sample": 0,
        "kl": 0.0,
    }
)


def params_with(tiny_params_file, **overrides):
    return load_params(tiny_params_file, {key.replace("__", "."): value for key, value in overrides.items()})


def test_gold_and_sentiment_differ_by_the_penalty_on_words_alone(tiny_params_file, tmp_path):
    gold, _ = external.scores(params_with(tiny_params_file, annotation__judge="gold"), RESPONSES, tmp_path)
    warm, _ = external.scores(params_with(tiny_params_file, annotation__judge="sentiment"), RESPONSES, tmp_path)
    np.testing.assert_allclose(gold, GoldJudge(word_limit=1, word_penalty=0.1).score(TEXTS))
    words = np.array([len(text.split()) for text in TEXTS])
    np.testing.assert_allclose(warm - gold, 0.1 * (words - 1))


@pytest.fixture
def reward_model(tiny_model, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1)
    model.save_pretrained(tmp_path / "reward")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "reward")
    return str(tmp_path / "reward")


def test_a_reward_model_ranks_by_its_score_and_wins_where_it_scores_higher(tiny_params_file, reward_model, tmp_path):
    section = {"kind": "reward_model", "name_or_path": reward_model}
    params = params_with(tiny_params_file, annotation__judge="external", judge=section)
    expected = RewardModelJudge.load(reward_model).score(RESPONSES["prompt"].tolist(), TEXTS)
    scores, _ = external.scores(params, RESPONSES, tmp_path)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    wins, _ = external.wins_over_sft(params.judge, RESPONSES, tmp_path)
    better = (np.sign(expected[1::2] - expected[::2]) + 1) / 2
    assert wins.tolist() == [0.5, better[0], 0.5, better[1]]


def test_equal_answers_tie_whatever_rounding_makes_of_their_scores(monkeypatch, tiny_params_file, tmp_path):
    class Noisy(RewardModelJudge):
        def __init__(self):
            self.noise = np.random.default_rng(0)

        def score(self, prompts, responses):
            return 1e-7 * self.noise.normal(size=len(responses))

    monkeypatch.setattr(external, "load_judge", lambda params, cache: Noisy())
    same = RESPONSES.assign(response=[TEXTS[0], TEXTS[0], TEXTS[1], TEXTS[2]])
    wins, _ = external.wins_over_sft(None, same, tmp_path)
    assert wins.tolist()[:3] == [0.5, 0.5, 0.5]
    assert wins[3] in (0, 1)


def test_every_answer_meets_each_of_the_sft_models_and_these_meet_nobody(monkeypatch, tmp_path):
    asked = []

    class PrefersTheLonger:
        def compare(self, prompts, first, second):
            asked.extend(zip(first, second, strict=True))
            preference = [float(len(a) > len(b)) for a, b in asked]
            return pd.DataFrame({"preference": preference, "in_order": preference, "swapped": preference})

    monkeypatch.setattr(external, "load_judge", lambda params, cache: PrefersTheLonger())
    monkeypatch.setattr(external, "_usage", lambda judge: {})
    prompt = [{"role": "user", "content": "How is it?"}]
    rows = {"prompt_id": "a", "prompt": [prompt] * 4, "policy": ["sft", "dpo", "sft", "dpo"], "sample": [0, 0, 1, 1]}
    responses = pd.DataFrame(rows | {"response": ["1", "22", "333", "4444"]})
    wins, _ = external.wins_over_sft(None, responses, tmp_path)
    assert wins.tolist() == [0.5, 0.5, 0.5, 1.0]
    assert sorted(asked) == [("22", "1"), ("22", "333"), ("4444", "1"), ("4444", "333")]


def test_a_language_model_behind_an_endpoint_ranks_and_evaluates_and_what_it_said_is_counted(
    tiny_params_file, tmp_path
):
    def prefers_the_longer(n, request, headers):
        shown = re.findall(r'"(?:output|answer)": """(.*?)"""', request["messages"][1]["content"], flags=re.DOTALL)
        return 200, reply("m" if len(shown[0]) > len(shown[1]) else "M"), {}

    with servers() as start:
        section = {"kind": "llm", "url": start(prefers_the_longer).url, "model": "m"}
        params = params_with(tiny_params_file, annotation__judge="external", judge=section, gold=None)
        scores, counts = external.scores(params, RESPONSES, tmp_path)
        wins, _ = external.wins_over_sft(params.judge, RESPONSES, tmp_path)
    assert scores.tolist() == [1.0, 0.0, 1.0, 0.0]
    assert (counts["n_comparisons"], counts["n_unread"], counts["orders_disagree"]) == (2, 0, 0.0)
    summary = evaluation.summarize(evaluation.judge(RESPONSES, None, wins), n_bootstrap=20)
    assert summary["dpo"]["win_rate"]["mean"] == 0
    assert "gold_reward" not in summary["dpo"]


def test_an_external_judge_that_no_section_names_is_asked_for(tiny_params_file):
    with pytest.raises(ValueError, match="needs a judge: set judge"):
        params_with(tiny_params_file, annotation__judge="external")
