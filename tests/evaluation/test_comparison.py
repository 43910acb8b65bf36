"""Averages over runs and prompts, their raw numbers, and what the rounds were made of."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_judgements import judgements

from sgpo_lib.evaluation import comparison, rounds
from sgpo_lib.evaluation.judgements import with_quantities, write_judgements
from sgpo_lib.evaluation.metrics import bootstrap_length_control, length_controlled_values, length_controlled_win_rate
from sgpo_lib.evaluation.metrics import preference_accuracy as accuracy_of


def test_an_interval_contains_the_differences_between_forms():
    judged = judgements({("", "ssapo"): [0.5, 0.5, 0.5]})
    table = comparison.means(judged).set_index(["policy", "quantity"])
    reward, gain = table.loc[("round-1", "gold_reward")], table.loc[("round-1", "gold_reward_vs_sft")]
    assert reward["between_runs"] == gain["between_runs"] == 0
    assert gain["low"] == gain["high"] == 0.5
    assert reward["high"] - reward["low"] > 0.2


def test_runs_on_other_prompts_cannot_be_averaged():
    judged = judgements({("", "ssapo"): [0.5, 0.5]})
    with pytest.raises(ValueError, match="seeds 0, 1 were not evaluated on the same prompts"):
        comparison.means(judged[(judged["seed"] == 0) | (judged["form"] != "form 1")])


def test_runs_are_read_as_trained_or_at_a_kl():
    judged = judgements({("", "ssapo"): [0.5, 0.7]}, kls=(6.0,))
    as_trained, scaled = (comparison.per_run(judged, at_kl).set_index(["seed", "policy"]) for at_kl in (None, 6.0))
    assert as_trained.loc[(1, "round-1"), "gold_reward_vs_sft"] == pytest.approx(0.7)
    assert scaled.loc[(1, "round-1"), "gold_reward_vs_sft"] == pytest.approx(0.35)
    assert list(scaled.loc[0].index) == ["sft", "round-1"]


@given(st.integers(0, 1000))
def test_values_that_make_up_a_length_controlled_rate_average_to_it_and_vary_as_it_does(seed):
    rng = np.random.default_rng(seed)
    shorter_by = rng.normal(20, 50, 150)
    wins = rng.binomial(2, 1 / (1 + np.exp(-shorter_by / 60))) / 2
    values = length_controlled_values(wins, shorter_by)
    assert values.mean() == pytest.approx(length_controlled_win_rate(wins, shorter_by))
    interval = bootstrap_length_control(wins, shorter_by, n_bootstrap=400)
    assert values.std() / np.sqrt(150) == pytest.approx((interval["high"] - interval["low"]) / 3.95, rel=0.25)


def test_quantities_of_answers_and_pairs_average_to_what_the_evaluation_reports():
    rng = np.random.default_rng(0)
    keys = {"group": "", "variant": "ssapo", "method": "ssapo", "seed": 0, "is_final": True, "matched_kl": np.nan}
    answers = pd.DataFrame(
        {"policy": np.repeat(["sft", "dpo"], 60), "prompt_id": [f"p{i}" for i in range(60)] * 2, "sample": 0}
        | {"characters": rng.integers(50, 200, 120), "win": np.repeat([0.5, 1.0], 60)}
    ).assign(**keys)
    answers.loc[60:80, "win"] = 0.0
    pairs = pd.DataFrame({"margin": rng.normal(size=40), "extra_characters": rng.integers(-9, 10, 40)}).assign(
        **keys, policy="dpo", prompt_id=[f"p{i // 2}" for i in range(40)]
    )
    found = with_quantities(pd.concat([answers, pairs], ignore_index=True))
    means = comparison.per_run(found).set_index("policy").loc["dpo"]
    of_dpo, of_sft = answers[60:], answers[:60]
    shorter_by = of_sft["characters"].to_numpy() - of_dpo["characters"].to_numpy()
    reported = accuracy_of(pairs, n_bootstrap=10)["dpo"]
    assert means["win_rate"] == pytest.approx(65)
    assert means["length_controlled_win_rate"] == pytest.approx(
        length_controlled_win_rate(of_dpo["win"].to_numpy(), shorter_by)
    )
    assert means["preference_accuracy"] == pytest.approx(reported["preference_accuracy"]["mean"])
    assert means["length_balanced_accuracy"] == pytest.approx(reported["length_balanced_accuracy"]["mean"])


def test_shipped_judgements_are_small_and_give_the_same_table(tmp_path):
    judged = judgements({("", "ssapo"): list(np.linspace(0, 1, 8)), ("", "spa"): [0.1] * 8}, kls=(0.2,))
    write_judgements(judged, tmp_path / "judgements.parquet")
    read = pd.read_parquet(tmp_path / "judgements.parquet")
    assert list(read) == list(judged)
    assert set(read["matched_kl"].dropna()) == {0.2}
    assert (tmp_path / "judgements.parquet").stat().st_size < 20 * len(judged)
    pd.testing.assert_frame_equal(
        comparison.means(read), comparison.means(judged), check_dtype=False, check_categorical=False, rtol=1e-5
    )


def test_approximations_lose_value_and_groups_that_hold_all_pairs_lose_nothing():
    margins = np.random.default_rng(0).normal(0.3, 0.4, 200)
    table = rounds.approximations(margins, 0.01, (5, 7), (20, 100, 200)).set_index("follower")["lost"]
    assert table["exact"] == 0
    assert (table >= -1e-12).all()
    assert table["groups of 20"] > table["groups of 100"] > 0
    assert table["groups of 200"] == pytest.approx(0, abs=1e-12)
