"""The evaluation: intervals that cover, comparisons that are paired, and length control by AlpacaEval's model."""

import json

import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from hypothesis import given
from hypothesis import strategies as st

from sgpo_lib import annotation
from sgpo_lib.evaluation.metrics import (
    bootstrap,
    bootstrap_length_control,
    clusters_of,
    judge,
    length_controlled_win_rate,
    preference_accuracy,
    summarize,
)
from sgpo_lib.evaluation.report import summary_table
from sgpo_lib.judges.gold import GoldJudge
from sgpo_lib.params import LoraParams, ModelParams, load_params
from sgpo_lib.policy import Policy, generate, sampled_kl


def _responses(n_samples: int = 1, **texts: list[str]) -> pd.DataFrame:
    """Answers of each policy, `n_samples` to a prompt."""
    rows = [
        {"policy": policy, "response": text, "kl": 0.0 if policy == "sft" else 1.0}
        | {"prompt_id": f"p{i // n_samples}", "sample": i % n_samples}
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


def test_length_control_takes_away_the_whole_of_a_pure_length_effect():
    rng = np.random.default_rng(2)
    shorter_by = rng.normal(40, 60, 4000)
    wins = (rng.random(4000) < 1 / (1 + np.exp(-2 * np.tanh(shorter_by / shorter_by.std())))).astype(float)
    assert wins.mean() > 0.6
    assert length_controlled_win_rate(wins, shorter_by) == pytest.approx(50, abs=4)


def test_length_control_leaves_wins_that_length_does_not_explain():
    rng = np.random.default_rng(3)
    longer_by = rng.normal(0, 60, 2000)
    wins = (rng.random(2000) < 0.7).astype(float)
    assert length_controlled_win_rate(wins, longer_by) == pytest.approx(100 * wins.mean(), abs=1)


@pytest.mark.filterwarnings("ignore")  # alpaca-eval's: of pkg_resources, and of arguments sklearn will rename
def test_length_control_is_alpaca_evals_model_without_its_penalty():
    from alpaca_eval.metrics.glm_winrate import GLM_INFO, fit_LogisticRegressionCV, make_dmatrix_for_model

    rng = np.random.default_rng(4)
    shorter_by, wins = rng.normal(30, 80, 60), rng.choice([0.0, 0.5, 1.0], 60)
    seen = pd.DataFrame(
        {"preference": wins, "std_delta_len": shorter_by / shorter_by.std(ddof=1), "not_gamed_baseline": True}
    )
    formula = GLM_INFO["length_controlled_minimal"]["formula"]
    design, at_equal_length = make_dmatrix_for_model(seen, seen.assign(std_delta_len=0.0), formula=formula)
    with sklearn.config_context():
        theirs = fit_LogisticRegressionCV(design, "preference", n_splits=0, C=1e4, tol=1e-8)
        expected = 100 * theirs.predict_proba(at_equal_length)[:, 1].mean()
    assert length_controlled_win_rate(wins, shorter_by) == pytest.approx(expected, abs=0.02)
    assert expected != pytest.approx(100 * wins.mean(), abs=0.1)


@pytest.mark.parametrize("truth", [58, 60])
def test_length_control_is_unbiased_with_a_hundred_prompts(truth):
    rng = np.random.default_rng(truth)
    rates = []
    for _ in range(300):
        shorter_by = rng.normal(40, 90, 96)
        log_odds = np.log(truth / (100 - truth)) + np.tanh(shorter_by / 90)
        wins = (rng.random(96) < 1 / (1 + np.exp(-log_odds))).astype(float)
        rates.append(length_controlled_win_rate(wins, shorter_by))
    assert np.mean(rates) == pytest.approx(truth, abs=1)
    assert 50.0 not in rates


@given(st.data())
def test_length_control_is_a_rate_also_where_length_tells_wins_from_losses(data):
    n = data.draw(st.integers(2, 12))
    delta = np.array(data.draw(st.lists(st.integers(-3, 3) | st.integers(-5000, 5000), min_size=n, max_size=n)), float)
    any_wins = st.lists(st.floats(0, 1), min_size=n, max_size=n)
    wins = np.array(data.draw(any_wins)) if data.draw(st.booleans()) else (delta > np.median(delta)).astype(float)
    interval = bootstrap_length_control(wins, delta, n_bootstrap=20)
    assert all(0 <= value <= 100 for value in interval.values())


# --- intervals by form


def _prompts_of_forms(rng, n: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Values of truth 0 of n prompts from 27 forms of 80, and their forms, which make this share of the variance."""
    form = pd.factorize(rng.permutation(np.repeat(np.arange(27), 80))[:n])[0]
    return np.sqrt(share) * rng.normal(size=27)[form] + np.sqrt(1 - share) * rng.normal(size=n), form


def test_intervals_by_form_cover_where_those_over_single_prompts_do_not():
    rng = np.random.default_rng(6)
    covered = []
    for _ in range(2000):
        values, form = _prompts_of_forms(rng, 128, share=0.15)
        intervals = [bootstrap(values, 0.95, 500, form), bootstrap(values, 0.95, 200)]
        covered.append([interval["low"] <= 0 <= interval["high"] for interval in intervals])
    by_form, over_prompts = np.mean(covered, axis=0)
    assert 0.92 <= by_form <= 0.97
    assert over_prompts < 0.89


def test_intervals_by_form_cover_where_forms_do_not_matter():
    rng = np.random.default_rng(7)
    samples = [_prompts_of_forms(rng, 128, share=0) for _ in range(2000)]
    intervals = [bootstrap(values, 0.95, 500, form) for values, form in samples]
    assert 0.92 <= np.mean([interval["low"] <= 0 <= interval["high"] for interval in intervals]) <= 0.97


def test_prompts_of_a_form_that_all_do_the_same_count_as_one():
    rng = np.random.default_rng(8)
    one = pd.DataFrame({"prompt_id": [f"p{i}" for i in range(30)], "sample": 0, "win": rng.choice([0, 0.5, 1], 30)})
    one = one.assign(policy="dpo", form=one["prompt_id"], kl=1.0, words=9, characters=rng.integers(20, 200, 30))
    sft = one.assign(policy="sft", kl=0.0, win=0.5, characters=90)
    four = pd.concat([table.assign(prompt_id=table["prompt_id"] + f"-{i}") for i in range(4) for table in (sft, one)])
    expected, found = (summarize(table, n_bootstrap=200)["dpo"] for table in (pd.concat([sft, one]), four))
    assert (expected.pop("n_prompts"), found.pop("n_prompts")) == (30, 120)
    assert expected.pop("n_clusters") == found.pop("n_clusters") == 30
    for name in ("kl", "win_rate"):
        assert found[name] == pytest.approx(expected[name])
    # The scale that lengths are standardised by counts prompts.
    assert found["length_controlled_win_rate"] == pytest.approx(expected["length_controlled_win_rate"], abs=0.2)


def test_prompts_without_a_form_stand_for_themselves():
    table = pd.DataFrame({"prompt_id": ["a", "b", "c", "d", "a"]})
    assert clusters_of(table).tolist() == [0, 1, 2, 3, 0]
    assert clusters_of(table.assign(form=["x", None, "x", None, "x"])).tolist() == [0, 1, 0, 2, 0]
    assert clusters_of(table.assign(form=[1.0, np.nan, 1.0, 2.0, 1.0])).tolist() == [0, 1, 0, 2, 0]


def test_a_single_cluster_has_no_interval():
    interval = bootstrap(np.arange(5.0), clusters=np.zeros(5, int))
    assert interval["mean"] == 2
    assert np.isnan([interval["low"], interval["high"]]).all()


def test_every_interval_draws_as_often_as_asked():
    rng = np.random.default_rng(9)
    texts = {
        name: [" ".join(rng.choice(["good", "terrible", "desk"], 3)) for _ in range(20)] for name in ("sft", "dpo")
    }
    summary = summarize(judge(_responses(**texts), GoldJudge()), n_bootstrap=1)["dpo"]
    intervals = [value for value in summary.values() if isinstance(value, dict)]
    assert len(intervals) == 7
    assert all(interval["low"] == interval["high"] for interval in intervals)


def test_judgements_keep_the_form_of_their_prompts():
    responses = _responses(sft=["good", "bad"], dpo=["fine", "evil"])
    assert "form" not in judge(responses, GoldJudge())
    forms = ["x", "y", "x", "y"]
    assert judge(responses.assign(form=forms), GoldJudge())["form"].tolist() == forms


# --- several answers to a prompt

TEXTS = st.sampled_from(["good", "bad", "fine day", "I love it so much", "the cat sat", "awful"])


@given(st.data(), st.integers(1, 3), st.integers(1, 4))
def test_win_rate_and_gain_are_means_over_all_pairs_of_answers_to_a_prompt(data, n_samples, n_prompts):
    n = n_samples * n_prompts
    sft, dpo = (data.draw(st.lists(TEXTS, min_size=n, max_size=n)) for _ in range(2))
    summary = summarize(judge(_responses(n_samples, sft=sft, dpo=dpo), GoldJudge()), n_bootstrap=5)
    gold = dict(zip(sft + dpo, GoldJudge().score(sft + dpo), strict=True))
    ahead = [
        gold[ours] - gold[theirs]
        for i in range(0, n, n_samples)
        for ours in dpo[i : i + n_samples]
        for theirs in sft[i : i + n_samples]
    ]
    assert summary["dpo"]["win_rate"]["mean"] == pytest.approx(50 * (1 + np.sign(ahead)).mean())
    assert summary["dpo"]["gold_reward_vs_sft"]["mean"] == pytest.approx(np.mean(ahead))
    assert summary["sft"]["win_rate"]["mean"] == pytest.approx(50)
    assert summary["sft"]["gold_reward_vs_sft"]["mean"] == pytest.approx(0)


def test_answers_to_a_prompt_are_drawn_together():
    rng = np.random.default_rng(10)
    one = {name: list(rng.choice(["good", "awful", "the cat sat"], 30)) for name in ("sft", "dpo")}
    twice = {name: [text for text in texts for _ in range(2)] for name, texts in one.items()}
    expected = summarize(judge(_responses(**one), GoldJudge()), n_bootstrap=200)["dpo"]
    found = summarize(judge(_responses(2, **twice), GoldJudge()), n_bootstrap=200)["dpo"]
    assert [found.pop(name) for name in ("n_prompts", "n_samples", "n_clusters")] == [30, 2, 30]
    for name in ("gold_reward", "gold_reward_vs_sft", "sentiment", "words", "win_rate"):
        assert found[name] == pytest.approx(expected[name]), name


def test_length_control_takes_away_a_pure_length_effect_between_several_answers():
    rng = np.random.default_rng(11)
    n, k = 3000, 2
    policy, sft = rng.normal(100, 40, (n, k)), rng.normal(140, 40, (n, k))
    shorter_by = sft[:, None, :] - policy[:, :, None]  # of every pair
    pairs = rng.random((n, k, k)) < 1 / (1 + np.exp(-2 * np.tanh(shorter_by / shorter_by.std())))
    rows = pd.DataFrame({"prompt_id": np.repeat(np.arange(n).astype(str), k), "sample": np.tile(np.arange(k), n)})
    judgements = [
        rows.assign(policy="sft", words=1, kl=0.0, characters=sft.ravel(), win=0.5),
        rows.assign(policy="dpo", words=1, kl=0.0, characters=policy.ravel(), win=pairs.mean(axis=2).ravel()),
    ]
    summary = summarize(pd.concat(judgements, ignore_index=True), n_bootstrap=5)["dpo"]
    assert summary["win_rate"]["mean"] > 60
    assert summary["length_controlled_win_rate"]["mean"] == pytest.approx(50, abs=3)


def test_sentiment_is_the_gold_reward_without_the_penalty_on_words():
    judgements = judge(_responses(sft=["good day"], dpo=["good " * 33]), GoldJudge(word_limit=30, word_penalty=0.02))
    np.testing.assert_allclose(judgements["sentiment"] - judgements["gold_reward"], [0, 0.06], atol=1e-12)


def test_a_policy_scaled_to_a_kl_has_a_row_beside_its_own():
    responses = _responses(sft=["good", "bad"], dpo=["fine", "good"]).assign(matched_kl=np.nan)
    scaled = responses[responses["policy"] == "dpo"].assign(matched_kl=6.0, kl=6.1, response=["bad", "awful"])
    summary = summarize(judge(pd.concat([responses, scaled], ignore_index=True), GoldJudge()), n_bootstrap=5)
    assert list(summary) == ["sft", "dpo", "dpo @ 6 nats"]
    assert (summary["dpo"]["kl"]["mean"], summary["dpo @ 6 nats"]["kl"]["mean"]) == (1, 6.1)
    assert summary["dpo @ 6 nats"]["gold_reward"]["mean"] < summary["dpo"]["gold_reward"]["mean"]
    assert summary["dpo @ 6 nats"]["matched_kl"] == 6
    assert "matched_kl" not in summary["dpo"]


# --- summaries


def test_summary_is_the_same_every_time_and_whatever_the_order_of_rows_and_policies():
    rng = np.random.default_rng(5)
    words = ["good", "evil", "glad", "sick", "desk"]  # equally long, so that length control has nothing to fit
    texts = {name: [" ".join(rng.choice(words, 3)) for _ in range(30)] for name in ("sft", "a", "b")}
    judgements = judge(_responses(**texts), GoldJudge())
    summary = summarize(judgements, n_bootstrap=100)
    assert summarize(judgements, n_bootstrap=100) == summary
    # Prompts are resampled by position, so theirs is the one order that may matter: that of the SFT model's rows.
    mixed = judgements.sample(frac=1, random_state=0).sort_values("prompt_id", key=lambda x: x.str[1:].astype(int))
    assert summarize(mixed, n_bootstrap=100) == {name: summary[name] for name in mixed["policy"].unique()}
    assert json.loads(json.dumps(summary)) == summary


def test_summary_refuses_a_policy_without_an_answer_to_every_prompt():
    judgements = judge(_responses(sft=["good", "bad"], dpo=["good"]), GoldJudge())
    with pytest.raises(KeyError, match="p1"):
        summarize(judgements, n_bootstrap=10)


def test_summary_refuses_a_kl_that_is_not_a_number():
    judgements = judge(_responses(sft=["good", "bad"], dpo=["good", "fine"]).assign(kl=[0, 0, 1, np.nan]), GoldJudge())
    with pytest.raises(ValueError, match="finite"):
        summarize(judgements, n_bootstrap=10)


def test_rewards_are_paired_by_prompt_whatever_the_order_of_the_rows():
    responses = _responses(sft=["bad", "great", "fine day"], dpo=["great", "great", "awful"])
    in_order, shuffled = (
        judge(rows, GoldJudge()).set_index(["policy", "prompt_id"])
        for rows in (responses, responses.sample(frac=1, random_state=0))
    )
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
    assert set(summary["dpo"]) == {"words", "kl", "n_prompts", "n_samples", "n_clusters"}
    assert summary_table(summary).columns.tolist() == ["words", "KL to SFT (nats)"]


@pytest.fixture(scope="module")
def policy(tiny_model):
    lora = LoraParams(r=4, lora_alpha=8)
    policy = Policy.load(ModelParams(name_or_path=str(tiny_model), device="cpu", dtype="float32", lora=lora))
    policy.make_trainable(0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    policy.model.eval()
    return policy


def test_sampled_kl_averages_to_the_divergence_of_what_is_deployed(policy):
    temperature, prompt = 0.5, [{"role": "user", "content": "Hello?"}]
    responses = generate(policy, [prompt], 3000, 0, temperature, max_new_tokens=1, batch_size=1000)
    estimates = sampled_kl(policy, responses, temperature)

    with torch.inference_mode(), policy.reference() as sft:
        reference = sft(torch.tensor([responses["prompt_ids"][0]])).logits[0, -1].double()
    with torch.inference_mode():
        logits = policy.model(torch.tensor([responses["prompt_ids"][0]])).logits[0, -1].double()
    log_p, log_q = (logits / temperature).log_softmax(-1), (reference / temperature).log_softmax(-1)
    exact = (log_p.exp() * (log_p - log_q)).sum().item()
    assert abs(estimates.mean() - exact) < 3 * estimates.std() / np.sqrt(len(estimates))
    assert exact > 20 * estimates.std() / np.sqrt(len(estimates))  # far enough from 0 that this says something


def test_sampled_kl_of_the_sft_model_is_0(policy):
    prompts = [[{"role": "user", "content": text}] for text in ("Hello?", "What is bread?")]
    with policy.model.disable_adapter():
        responses = generate(policy, prompts, 2, 0, 0.7, max_new_tokens=8)
    np.testing.assert_allclose(sampled_kl(policy, responses, 0.7), 0, atol=1e-4)


def _margins(**columns) -> pd.DataFrame:
    return pd.DataFrame({"policy": "dpo", "extra_characters": 1} | columns)


def test_preference_accuracy_counts_pairs_and_its_interval_draws_prompts():
    margins = _margins(prompt_id=["a"] * 8 + ["b", "c"], margin=[1.0] * 8 + [-1.0, 0.0])
    found = preference_accuracy(margins, n_bootstrap=5000)["dpo"]
    accuracy = found["preference_accuracy"]
    assert accuracy["mean"] == pytest.approx(100 * 8.5 / 10)
    assert accuracy["low"] == 0  # some draws hold prompt b alone
    assert accuracy["high"] == 100
    assert "length_balanced_accuracy" not in found  # no shorter answer was chosen


def test_preference_accuracy_draws_forms_where_prompts_have_one():
    margins = _margins(prompt_id=list("aabbccdd"), margin=[1.0] * 4 + [-1.0] * 4, extra_characters=[1, -1] * 4)
    one_form = preference_accuracy(margins.assign(form="x"), n_bootstrap=50)["dpo"]
    assert one_form["preference_accuracy"]["mean"] == one_form["length_balanced_accuracy"]["mean"] == 50
    assert np.isnan([accuracy["low"] for accuracy in one_form.values()]).all()
    two_forms = preference_accuracy(margins.assign(form=list("xxxxyyyy")), n_bootstrap=50)["dpo"]
    assert (two_forms["preference_accuracy"]["low"], two_forms["preference_accuracy"]["high"]) == (0, 100)


def test_a_reward_that_is_length_alone_has_a_balanced_accuracy_of_50():
    extra = np.array([30, 20, 9, 4, 2, 7, -3, -5])
    margins = _margins(prompt_id=list("aabbccdd"), margin=0.1 * extra, extra_characters=extra)
    found = preference_accuracy(margins, n_bootstrap=500)["dpo"]
    assert found["preference_accuracy"]["mean"] == 75
    assert found["length_balanced_accuracy"] == {"mean": 50, "low": 50, "high": 50}


def test_margins_of_held_out_pairs_are_those_of_the_implicit_reward(policy, tiny_params_file):
    def assistant(text):
        return [{"role": "assistant", "content": text}]

    params = load_params(tiny_params_file)
    prompt = [{"role": "user", "content": "How is it?"}]
    pairs = pd.DataFrame({"prompt_id": ["a"], "prompt": [prompt], "chosen": ["Good."], "rejected": ["Bad, I fear."]})
    swapped = pairs.rename(columns={"chosen": "rejected", "rejected": "chosen"})

    def margin(pairs: pd.DataFrame) -> float:
        with policy.model.disable_adapter():
            known = annotation.labelled(policy, pairs, params, seed=0)
        return annotation.rescore(policy, known, params.beta)["margin"].item()

    assert margin(pairs) == pytest.approx(-margin(swapped), abs=1e-5)
    assert abs(margin(pairs)) > 1e-3
