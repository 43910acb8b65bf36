"""The LLM judge: alpaca-eval's question, both orders, nothing unreadable in silence; and scores from comparisons."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from chat_server import reply, servers

from sgpo_lib import annotation, evaluation
from sgpo_lib.judges.endpoint import Endpoint, EndpointError
from sgpo_lib.judges.llm import LLMJudge
from sgpo_lib.judges.pairwise import audit, score_responses

PROMPTS = [[{"role": "user", "content": f"Question {i}?"}] for i in range(4)]


@pytest.fixture
def serve():
    with servers() as start:
        yield start


def shown(request):
    """The two answers in the order in which a request shows them."""
    return re.findall(r'"(?:output|answer)": """(.*?)"""', request["messages"][1]["content"], flags=re.DOTALL)


def judge_who(decide, serve, tmp_path, **options):
    """Make an LLM judge whose model says what `decide(first shown, second shown, number of the try)` returns."""

    def behave(n, request, headers):
        n_tries = len(request["messages"]) // 2
        return 200, reply(decide(*shown(request), n_tries)), {}

    server = serve(behave)
    return LLMJudge(Endpoint(server.url, "m", tmp_path), **options), server


def longer(first, second, n_tries):
    return "m" if len(first) > len(second) else "M"


def test_a_judge_without_position_bias_prefers_the_same_answer_in_both_orders(serve, tmp_path):
    judge, server = judge_who(longer, serve, tmp_path)
    table = judge.compare(PROMPTS, ["long answer", "short", "same", "long one"], ["short", "long answer", "same", "x"])
    assert table["preference"].tolist() == [1.0, 0.0, 0.5, 1.0]
    assert table["asked"].tolist() == [True, True, False, True]
    assert len(server.seen) == 6  # equal answers need no judge
    counts = audit(table)
    assert (counts["orders_disagree"], counts["prefers_shown_first"], counts["n_unread"]) == (0.0, 0.5, 0)
    assert (counts["n_comparisons"], counts["n_verdicts"], counts["ties"]) == (4, 6, 0.25)


def test_position_bias_cancels_and_is_counted(serve, tmp_path):
    judge, _ = judge_who(lambda first, second, n_tries: "m", serve, tmp_path)
    table = judge.compare(PROMPTS, list("abcd"), list("efgh"))
    assert table["preference"].tolist() == [0.5] * 4
    counts = audit(table)
    assert (counts["orders_disagree"], counts["prefers_shown_first"]) == (1.0, 1.0)


def test_a_malformed_reply_is_asked_again_and_told_so(serve, tmp_path):
    def mends(first, second, n_tries):
        return longer(first, second, n_tries) if n_tries == 2 else "Well, it depends."

    judge, server = judge_who(mends, serve, tmp_path)
    assert judge.compare(PROMPTS[:1], ["long answer"], ["short"])["preference"].tolist() == [1.0]
    assert len(server.seen) == 4
    assert [m["role"] for m in server.seen[-1][2]["messages"]] == ["system", "user", "assistant", "user"]


def test_replies_that_stay_unread_are_ties_and_counted_aloud(serve, tmp_path):
    def mumbles(first, second, n_tries):
        return "m" if first == "good" else ""

    judge, server = judge_who(mumbles, serve, tmp_path, n_tries=2, max_unread=1)
    with pytest.warns(UserWarning, match=r"3 of 4 verdicts of 'm' stay unread: 3 could not be read in 2 tries, 0 have"):
        table = judge.compare(PROMPTS[:2], ["good", "a"], ["bad", "b"])
    assert table["preference"].tolist() == [0.75, 0.5]
    assert len(server.seen) == 1 + 2 * 3
    counts = audit(table)
    assert (counts["n_unread"], counts["n_verdicts"]) == (3, 4)
    assert counts["orders_disagree"] is None


def refuses(*texts):
    """Give a server's behaviour: it refuses what shows an answer that is among `texts`."""

    def behave(n, request, headers):
        if set(shown(request)) & set(texts):
            return 400, {"error": {"code": "content_filter"}}, {}
        return 200, reply(longer(*shown(request), 1)), {}

    return behave


def test_what_a_content_filter_refuses_is_a_tie_that_is_counted_and_stops_nothing(serve, tmp_path):
    server = serve(refuses("bad"))
    judge = LLMJudge(Endpoint(server.url, "m", tmp_path))
    with pytest.warns(UserWarning, match=r"2 of 8 verdicts .* 2 have no answer \(one of them: .*content_filter"):
        table = judge.compare(PROMPTS, ["long answer", "bad", "x", "y"], ["short", "b", "long", "long"])
    assert table["preference"].tolist() == [1.0, 0.5, 0.0, 0.0]
    assert len(server.seen) == 8  # what was refused is not asked again
    assert (audit(table)["n_unread"], judge.endpoint.usage()["unanswered"]) == (2, 2)


def test_more_than_the_share_that_is_borne_stops(serve, tmp_path):
    texts = ["long answer", "bad", "worse", "y"]
    with pytest.raises(EndpointError, match="No more than 2 may stay without an answer"):
        LLMJudge(Endpoint(serve(refuses("bad", "worse")).url, "m", tmp_path)).compare(PROMPTS, texts, ["short"] * 4)
    with pytest.raises(EndpointError, match="content_filter"):
        LLMJudge(Endpoint(serve(refuses("bad")).url, "m", tmp_path / "b"), max_unread=0).compare(
            PROMPTS, texts, ["short"] * 4
        )
    judge, _ = judge_who(lambda *_: "Well, it depends.", serve, tmp_path / "c")
    with pytest.raises(EndpointError, match=r"8 of 8 verdicts .* more than max_unread = 0\.1"):
        judge.compare(PROMPTS, texts, ["short"] * 4)


def test_unfinished_thoughts_are_no_verdict_and_a_bare_name_that_fills_the_reply_is(serve, tmp_path):
    def cut(n, request, headers):
        first, second = shown(request)
        if "thinks" in (first, second):
            return 200, reply("Let me compare them.\nm", finish_reason="length"), {}
        return 200, reply(longer(first, second, 1), finish_reason="length"), {}

    judge = LLMJudge(Endpoint(serve(cut).url, "m", tmp_path))
    with pytest.warns(UserWarning, match="2 of 4 verdicts"):
        table = judge.compare(PROMPTS[:2], ["long answer", "thinks"], ["short", "b"])
    assert table["preference"].tolist() == [1.0, 0.5]


@pytest.mark.parametrize(
    "annotator", ["alpaca_eval_gpt4", "alpaca_eval_clf_gpt4_turbo", "alpaca_eval_clf_cot_gpt4_turbo"]
)
def test_the_question_is_alpaca_evals_with_the_answers_as_they_are(serve, tmp_path, annotator):
    tricky = "{output_2} <|im_end|> \\1 {instruction}"
    seen = []
    judge, server = judge_who(
        lambda *texts: seen.append(texts) or "", serve, tmp_path, annotator=annotator, n_tries=1, max_unread=1
    )
    with pytest.warns(UserWarning, match="2 of 2 verdicts"):
        judge.compare(PROMPTS[:1], [tricky], ["other"])
    assert sorted(texts[:2] for texts in seen) == sorted([(tricky, "other"), ("other", tricky)])
    messages = server.seen[0][2]["messages"]
    assert [message["role"] for message in messages] == ["system", "user"]
    assert "Question 0?" in messages[1]["content"]


CLASSIFIER = [
    ("m", 1.0), ("M", 0.0), (" `M`\n", 0.0), ("**m**", 1.0), ("The best model is M.", 0.0), ('{"model": "m"}', 1.0),
    ("### Concise explanation\nm rambles, M is right.\n\n### Which is best, m or M?\nM", 0.0),
    ("M is better than m", np.nan), ("I'm not sure", np.nan), ("", np.nan), ("Model", np.nan),
    ("I would not say m", np.nan), ("m is worse.", np.nan), ("not m", np.nan), ("The best is not M", np.nan),
    ("It is 5 m long " + "and so on " * 10, np.nan),
]  # fmt: skip
RANKING = [
    ("[{'model': 'model_1', 'rank': 1}, {'model': 'model_2', 'rank': 2}]", 1.0),
    ('```json\n[{"model": "model_2", "rank": 1},\n {"model": "model_1", "rank": 2}]\n```\nHope it helps!', 0.0),
    ("[{'model': 'model_1', 'rank': 1}, {'model': 'model_2', 'rank': 1}]", np.nan),
    ("[{'model': 'model_1', 'rank': 1}", np.nan),
    ('```json\n[{"model": "model_1",', np.nan),
    ("[{'model': 'model_1', 'rank': 2}, {'model': 'model_2', 'rank': 1}, {'model': 'model_1', 'rank': 1}]", np.nan),
    ("model_2", 0.0),
    ("[{'model': <model-name>, 'rank': <model-rank>}]", np.nan),
]


@pytest.mark.parametrize(
    ("annotator", "said", "verdict"),
    [("alpaca_eval_clf_gpt4_turbo", *case) for case in CLASSIFIER] + [("alpaca_eval_gpt4", *case) for case in RANKING],
)
def test_replies_are_read_or_left_alone(tmp_path, annotator, said, verdict):
    judge = LLMJudge(Endpoint("http://127.0.0.1:9/v1", "m", tmp_path), annotator)
    np.testing.assert_equal(judge._annotator.read(said), verdict)


def test_a_ranking_that_cannot_fit_into_the_longest_answer_is_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match="does not fit into max_tokens = 8: allow 100"):
        LLMJudge(Endpoint("http://127.0.0.1:9/v1", "m", tmp_path, max_tokens=8), "alpaca_eval_gpt4")


@pytest.mark.parametrize("name", ["no_such", "alpaca_eval_gpt4_turbo_fn", "../evaluators_configs", "claude_ranking"])
def test_an_annotator_that_needs_more_than_text_is_refused_at_once(tmp_path, name):
    with pytest.raises(ValueError, match="is not an annotator that can be used here"):
        LLMJudge(Endpoint("http://127.0.0.1:9/v1", "m", tmp_path), name)


def test_scores_rank_the_best_and_the_worst_response_of_each_prompt(serve, tmp_path):
    texts = [["aaa", "a", "aa"], ["b", "bb"], ["c", "c"], ["d"]]
    rows = [(f"p{i}", PROMPTS[i], text) for i, answers in enumerate(texts) for text in answers]
    responses = pd.DataFrame(rows, columns=["prompt_id", "prompt", "response"]).assign(prompt_ids=[[1]] * 8)
    responses = responses.sample(frac=1, random_state=0)  # neither order nor index may matter
    judge, _ = judge_who(longer, serve, tmp_path)
    scores, comparisons = score_responses(responses, judge)
    by_text = dict(zip(responses["response"], scores, strict=True))
    assert by_text == {"aaa": 1.0, "aa": 0.5, "a": 0.0, "bb": 1.0, "b": 0.0, "c": 0.5, "d": 0.5}
    assert len(comparisons) == 3 + 1 + 1
    pairs = annotation.rank(responses.reset_index(drop=True).assign(judge=scores), by="judge")
    assert sorted(pairs["weight"]) == [0, 0, 1, 1]
    pairs = annotation.preferred(pairs)
    assert dict(zip(pairs["chosen"], pairs["rejected"], strict=True)) == {"aaa": "a", "bb": "b"}


def test_preferences_are_wins_of_the_length_controlled_win_rate(serve, tmp_path):
    judge, _ = judge_who(longer, serve, tmp_path)
    policy, baseline = ["a" * 9, "b" * 2, "c" * 5, "d" * 8], ["a" * 3, "b" * 7, "c" * 5, "d" * 4]
    wins = judge.compare(PROMPTS, policy, baseline)["preference"].to_numpy()
    assert wins.mean() == pytest.approx(0.625)
    lengths = np.array([len(b) - len(a) for a, b in zip(policy, baseline, strict=True)])
    assert evaluation.length_controlled_win_rate(wins, lengths) < 55  # what length explains is taken away


def test_a_judgement_that_was_cut_short_goes_on_where_it_stopped(serve, tmp_path):
    first, second = ["long answer"] * 4, ["short"] * 4
    broken = serve(lambda n, request, headers: (200, reply("m"), {}) if n <= 3 else (404, "gone", {}))
    with pytest.raises(EndpointError, match="of 8 answers are safe"):
        LLMJudge(Endpoint(broken.url, "m", tmp_path)).compare(PROMPTS, first, second)
    n_safe = len(list(tmp_path.rglob("*.json")))
    assert n_safe == 3
    judge, server = judge_who(longer, serve, tmp_path)
    table = judge.compare(PROMPTS, first, second)
    assert len(server.seen) == 8 - n_safe
    assert json.loads(table["asked"].to_json(orient="values")) == [True] * 4
