import numpy as np
import pandas as pd
import pytest

from sgpo_lib.evaluation import across_seeds, bootstrap, judge, length_controlled_win_rate, summarize, summary_table
from sgpo_lib.judges import GoldJudge


def _responses(**texts: list[str]) -> pd.DataFrame:
    rows = [
        {"policy": policy, "prompt_id": f"p{i}", "response": text, "kl": 0.0 if policy == "sft" else 1.0}
        for policy, answers in texts.items()
        for i, text in enumerate(answers)
    ]
    return pd.DataFrame(rows)


def test_bootstrap_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    intervals = [bootstrap(rng.exponential(size=60), 0.9, 400) for _ in range(300)]
    coverage = np.mean([interval["low"] <= 1 <= interval["high"] for interval in intervals])
    assert 0.83 <= coverage <= 0.95


def test_bootstrap_refuses_what_has_no_mean():
    for values in ([], [1.0, np.nan]):
        with pytest.raises(ValueError, match="finite"):
            bootstrap(np.array(values))


def test_length_control_changes_nothing_at_equal_lengths():
    wins = np.array([1.0, 0.0, 1.0, 1.0, 0.5, 0.0])
    assert length_controlled_win_rate(wins, np.zeros(6)) == pytest.approx(100 * wins.mean())


def test_length_control_removes_wins_that_length_explains():
    rng = np.random.default_rng(1)
    shorter_by = rng.normal(120, 60, 400)  # the policy's answers are mostly shorter, and short answers win
    wins = (rng.random(400) < 1 / (1 + np.exp(-2 * np.tanh(shorter_by / shorter_by.std())))).astype(float)
    assert wins.mean() > 0.8
    assert length_controlled_win_rate(wins, shorter_by) < 100 * wins.mean() - 15


def test_length_control_leaves_the_settings_of_scikit_learn_alone():
    import sklearn

    before = sklearn.get_config()
    length_controlled_win_rate(np.tile([0.0, 1.0, 1.0], 10), np.arange(30.0))
    assert sklearn.get_config() == before


def test_rewards_are_paired_by_prompt_whatever_the_order_of_the_rows():
    responses = _responses(sft=["bad", "great", "fine day"], dpo=["great", "great", "awful"])
    in_order = judge(responses, GoldJudge()).set_index(["policy", "prompt_id"])
    shuffled = judge(responses.sample(frac=1, random_state=0), GoldJudge()).set_index(["policy", "prompt_id"])
    pd.testing.assert_frame_equal(shuffled.loc[in_order.index], in_order)
    assert in_order.loc["dpo", "win"].tolist() == [1.0, 0.5, 0.0]


def test_the_sft_model_does_not_differ_from_itself():
    answers = ["I am happy", "so sad", "the cat sat"]
    summary = summarize(judge(_responses(sft=answers, dpo=answers[::-1]), GoldJudge()), n_bootstrap=50)
    assert summary["sft"]["gold_reward_vs_sft"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert summary["sft"]["win_rate"]["mean"] == 50
    assert summary["dpo"]["gold_reward_vs_sft"]["low"] <= 0 <= summary["dpo"]["gold_reward_vs_sft"]["high"]


def test_a_policy_that_always_wins_has_a_win_rate_of_100():
    summary = summarize(judge(_responses(sft=["bad"] * 5, dpo=["so good"] * 5), GoldJudge()), n_bootstrap=50)
    assert summary["dpo"]["win_rate"]["mean"] == 100
    assert summary["dpo"]["length_controlled_win_rate"]["mean"] == 100


def test_without_a_gold_user_length_and_kl_remain():
    summary = summarize(judge(_responses(sft=["a b", "c"], dpo=["d", "e f g"]), None), n_bootstrap=50)
    assert set(summary["dpo"]) == {"words", "kl", "n_prompts"}
    assert summary_table(summary).columns.tolist() == ["words", "KL to SFT (nats)"]


def test_the_interval_over_seeds_is_students():
    summaries = [
        {"dpo": {"gold_reward": {"mean": mean, "low": 0, "high": 0}, "n_prompts": 3}} for mean in (1.0, 2.0, 3.0)
    ]
    row = across_seeds(summaries).iloc[0]
    # t(0.975, 2) = 4.3027, standard error 1 / sqrt(3)
    assert row[["mean", "low", "high", "n_seeds"]].tolist() == pytest.approx([2, 2 - 2.4841, 2 + 2.4841, 3], abs=1e-4)
    assert np.isnan(across_seeds(summaries[:1]).iloc[0]["low"])
