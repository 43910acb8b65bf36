"""Pairs of answers: which compete is the best choice of all, the higher score is chosen, whatever the order."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgpo_lib import annotation

# Few distinct scores and texts make ties and equal answers common.
scores = st.one_of(st.integers(-2, 2).map(float), st.floats(-5, 5))
answers = st.tuples(st.sampled_from(["a", "b", "c"]), scores)
# The last prompt's answers always differ: a table without any preference is refused.
tables = st.lists(st.lists(answers, min_size=2, max_size=2), max_size=5).map(lambda t: [*t, [("a", 0.0), ("b", 1.0)]])


def table(groups):
    """Responses with their scores, `groups[i]` to prompt i."""
    rows = [
        {
            "prompt_id": f"p{i}",
            "prompt": [{"role": "user", "content": f"question {i}"}],
            "prompt_ids": [i],
            "sample": j,
            "response": text,
            "response_ids": [i, j],
            "finished": j == 0,
            "log_prob": -10.0 * i - j,
            "score": score,
        }
        for i, group in enumerate(groups)
        for j, (text, score) in enumerate(group)
    ]
    return pd.DataFrame(rows)


# --- which answers compete

several = st.lists(st.lists(answers, min_size=2, max_size=5), min_size=1, max_size=4)


def competing(groups, rule):
    """Positions of the answers that compete, by prompt."""
    responses = table(groups).rename(columns={"score": "implicit_reward"})
    kept = annotation.choose(None, responses, rule)
    pd.testing.assert_frame_equal(kept, responses.loc[kept.index])
    return [kept.loc[kept["prompt_id"] == f"p{i}", "sample"].tolist() for i in range(len(groups))]


@given(several)
def test_best_against_worst_has_all_answers_compete_and_random_the_first_two_that_differ(groups):
    assert competing(groups, "best-worst") == [list(range(len(group))) for group in groups]
    for group, kept in zip(groups, competing(groups, "random"), strict=True):
        first = group[0][0]
        assert kept == [0, next((j for j, (text, _) in enumerate(group) if text != first), 1)]


@given(several, st.sampled_from(["min-margin", "max-margin"]))
def test_by_margin_the_two_distinct_answers_compete_that_differ_least_or_most(groups, rule):
    extreme = min if rule == "min-margin" else max
    for group, (i, j) in zip(groups, competing(groups, rule), strict=True):
        firsts = [k for k, (text, _) in enumerate(group) if text not in [other for other, _ in group[:k]]]
        if len(firsts) > 1:
            assert {i, j} <= set(firsts)
            gaps = [abs(group[a][1] - group[b][1]) for a, b in itertools.combinations(firsts, 2)]
            assert abs(group[i][1] - group[j][1]) == extreme(gaps)


def test_a_label_costs_a_comparison_of_two_answers_or_a_score_of_each_of_more():
    groups = [[("a", 0.0), ("b", 1.0)], [("a", 0.0), ("b", 1.0), ("c", 2.0), ("d", 3.0)]]
    assert annotation.n_comparisons(table(groups)).to_dict() == {"p0": 1, "p1": 4}
    assert annotation.n_comparisons(annotation.choose(None, table(groups), "random")).to_dict() == {"p0": 1, "p1": 1}


# --- lengths

sized = st.tuples(st.integers(-20, 20).map(lambda n: n / 4), st.integers(1, 30))


def with_lengths(groups):
    rows = [
        {"prompt_id": f"p{i}", "implicit_reward": reward, "response_ids": [0] * length}
        for i, group in enumerate(groups)
        for reward, length in group
    ]
    return pd.DataFrame(rows)


def longer_by(groups, alpha):
    """Mean length of the best answers less that of the worst, at a penalty a token."""
    differences = []
    for rewards, lengths in (np.transpose(group) for group in groups):
        score = rewards - alpha * lengths
        differences.append(lengths[score.argmax()] - lengths[score.argmin()])
    return np.mean(differences)


@settings(max_examples=30)
@given(st.lists(st.lists(sized, min_size=2, max_size=4), min_size=1, max_size=6))
def test_no_penalty_a_token_makes_chosen_and_rejected_nearer_in_length(groups):
    responses = with_lengths(groups)
    balanced = annotation.with_balanced_rewards(responses)
    lengths, alpha = responses["response_ids"].map(len), balanced.attrs["length_penalty"]
    np.testing.assert_allclose(balanced["balanced_reward"], responses["implicit_reward"] - alpha * lengths)
    found = abs(longer_by(groups, alpha))
    for tried in [0.0, *np.sqrt(2) * np.linspace(-15, 15, 100)]:  # irrational, so that no two of these answers tie
        assert found <= abs(longer_by(groups, tried)) + 1e-9


def test_where_longer_answers_win_a_token_costs_and_where_lengths_are_balanced_nothing():
    long_wins = [[(1.0, 20), (0.0, 10)], [(3.0, 20), (0.0, 10)]]
    balanced = annotation.with_balanced_rewards(with_lengths(long_wins))
    assert balanced.attrs["length_penalty"] == pytest.approx(0.2)  # between .1 and .3, where the pairs tie
    short_wins = [[(1.0, 10), (0.0, 20)], [(3.0, 10), (0.0, 20)]]
    assert annotation.with_balanced_rewards(with_lengths(short_wins)).attrs["length_penalty"] == pytest.approx(-0.2)
    even = [[(1.0, 20), (0.0, 10)], [(3.0, 10), (0.0, 20)]]
    assert annotation.with_balanced_rewards(with_lengths(even)).attrs["length_penalty"] == 0
    assert annotation.with_balanced_rewards(with_lengths([[(1.0, 9), (0.0, 9)]])).attrs["length_penalty"] == 0


# --- ranking


def test_best_response_is_chosen_and_worst_rejected_with_what_is_known_of_them():
    responses = table([[("x", 1.0), ("y", 3.0), ("z", 2.0)], [("u", 0.5), ("v", -0.5)]])
    pairs = annotation.rank(responses.assign(gold=responses["score"] * 10), by="score")
    assert pairs["chosen"].tolist() == ["y", "u"]
    assert pairs["rejected"].tolist() == ["x", "v"]
    assert pairs["chosen_ids"].tolist() == [[0, 1], [1, 0]]
    assert pairs["rejected_ids"].tolist() == [[0, 0], [1, 1]]
    assert pairs["chosen_gold"].tolist() == [30.0, 5.0]
    assert pairs["rejected_log_prob"].tolist() == [0.0, -11.0]
    assert pairs["chosen_finished"].tolist() == [False, True]
    assert pairs["prompt"].tolist() == [[{"role": "user", "content": f"question {i}"}] for i in (0, 1)]
    assert pairs["prompt_ids"].tolist() == [[0], [1]]


@given(tables)
def test_pairs_keep_the_order_of_prompts_and_have_a_positive_difference(groups):
    responses = table(groups)
    pairs = annotation.preferred(annotation.rank(responses, by="score"))
    assert pairs["prompt_id"].tolist() == [i for i in responses["prompt_id"].unique() if i in set(pairs["prompt_id"])]
    of = {tuple(row.response_ids): row for row in responses.itertuples()}
    for pair in pairs.itertuples():
        chosen, rejected = of[tuple(pair.chosen_ids)], of[tuple(pair.rejected_ids)]
        assert chosen.score > rejected.score
        assert (chosen.response, rejected.response) == (pair.chosen, pair.rejected)
        assert chosen.prompt_id == rejected.prompt_id == pair.prompt_id


@given(tables)
def test_prompts_with_tied_or_equal_answers_keep_their_rows_without_weight(groups):
    pairs = annotation.rank(table(groups), by="score")
    kept = [f"p{i}" for i, (one, two) in enumerate(groups) if one[0] != two[0] and one[1] != two[1]]
    assert pairs["prompt_id"].tolist() == [f"p{i}" for i in range(len(groups))]
    assert pairs["weight"].tolist() == [float(name in kept) for name in pairs["prompt_id"]]
    assert annotation.preferred(pairs)["prompt_id"].tolist() == kept


@given(tables, st.randoms(use_true_random=False))
def test_order_of_the_responses_to_a_prompt_does_not_matter(groups, random):
    responses = table(groups)
    order = list(range(len(responses)))
    random.shuffle(order)
    order.sort(key=lambda i: responses["prompt_id"][i])  # prompts stay where they are
    of = (annotation.preferred(annotation.rank(answers, by="score")) for answers in (responses, responses.iloc[order]))
    pd.testing.assert_frame_equal(*of)


def test_a_table_without_any_preference_is_refused():
    with pytest.raises(ValueError, match=r"All 2 prompts.*tie in 'score'"):
        annotation.rank(table([[("a", 0.0), ("b", 0.0)], [("c", 1.0), ("c", 2.0)]]), by="score")


def test_prompts_may_lie_between_each_other():
    responses = table([[("a", 0.0), ("b", 1.0)], [("c", 1.0), ("d", 0.0)]]).iloc[[2, 0, 3, 1]]
    pairs = annotation.rank(responses, by="score")
    assert pairs["prompt_id"].tolist() == ["p1", "p0"]
    assert pairs["chosen"].tolist() == ["c", "b"]


def test_prompt_with_one_response_holds_no_preference():
    pairs = annotation.rank(table([[("a", 0.0)], [("a", 0.0), ("b", 1.0)]]), by="score")
    assert pairs["weight"].tolist() == [0, 1]


# --- margins


@settings(max_examples=20)
@given(st.lists(st.tuples(*[st.floats(-100, 0)] * 4), min_size=1, max_size=5), st.floats(0.01, 1))
def test_margin_is_beta_times_the_difference_of_log_ratios(log_probs, beta):
    chosen, chosen_reference, rejected, rejected_reference = np.array(log_probs).T
    pairs = pd.DataFrame(
        {
            "chosen_implicit_reward": beta * (chosen - chosen_reference),
            "rejected_implicit_reward": beta * (rejected - rejected_reference),
        }
    )
    expected = beta * ((chosen - rejected) - (chosen_reference - rejected_reference))
    np.testing.assert_allclose(annotation.with_margins(pairs)["margin"], expected, atol=1e-10)


def test_agreement_with_gold_is_noted_where_gold_is_known_and_margins_do_not_depend_on_it():
    rewards = {"chosen_implicit_reward": [1.0, 2.0, 3.0], "rejected_implicit_reward": [0.0, 0.5, 1.0]}
    gold = {"chosen_gold": [1.0, 0.0, 0.5], "rejected_gold": [0.0, 1.0, 0.5]}
    blind = annotation.with_margins(pd.DataFrame(rewards))
    seeing = annotation.with_margins(pd.DataFrame(rewards | gold))
    assert seeing["agrees_with_gold"].tolist() == [True, False, False]
    assert "agrees_with_gold" not in blind
    assert blind["margin"].tolist() == seeing["margin"].tolist() == [1.0, 1.5, 2.0]


def test_pairs_ranked_by_the_implicit_reward_have_positive_margins():
    responses = table([[("a", 0.25), ("b", -1.0)], [("c", 2.0), ("d", 2.0)], [("e", -3.0), ("f", -2.5)]])
    pairs = annotation.rank(responses.rename(columns={"score": "implicit_reward"}), by="implicit_reward")
    assert annotation.with_margins(annotation.preferred(pairs))["margin"].tolist() == [1.25, 0.5]


def test_audit_counts_and_averages():
    margins, right = [0.0, 1.0, 5.0, 9.0], [True, False, True, False]
    pairs = pd.DataFrame({"margin": margins, "agrees_with_gold": right, "weight": [1.0, 1.0, 1.0, 0.0]})
    expected = {"n_pairs": 3, "n_without_preference": 1, "margin_mean": 2.0, "margin_median": 1.0, "margin_min": 0.0}
    expected |= {"margin_max": 5.0}
    assert annotation.audit(pairs) == expected | {"agreement": pytest.approx(2 / 3)}
    assert annotation.audit(pairs[["margin"]][:3]) == expected | {"n_without_preference": 0}
