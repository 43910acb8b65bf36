"""Self-annotation: the higher score is chosen, whatever the order, and every number is the model's own."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgpo_lib import annotation, data
from sgpo_lib.data.builtin_prompts import builtin_prompts
from sgpo_lib.params import GenerationParams, LoraParams, ModelParams, load_params
from sgpo_lib.policy import Policy, sequence_log_probs
from sgpo_lib.runs import Run
from sgpo_lib.steps.launch import make_seed

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
    pairs = annotation.rank(responses, by="score")
    assert pairs["prompt_id"].tolist() == [i for i in responses["prompt_id"].unique() if i in set(pairs["prompt_id"])]
    of = {tuple(row.response_ids): row for row in responses.itertuples()}
    for pair in pairs.itertuples():
        chosen, rejected = of[tuple(pair.chosen_ids)], of[tuple(pair.rejected_ids)]
        assert chosen.score > rejected.score
        assert (chosen.response, rejected.response) == (pair.chosen, pair.rejected)
        assert chosen.prompt_id == rejected.prompt_id == pair.prompt_id


@given(tables)
def test_prompts_with_tied_or_equal_answers_are_left_out_and_counted(groups):
    pairs = annotation.rank(table(groups), by="score")
    kept = [f"p{i}" for i, (one, two) in enumerate(groups) if one[0] != two[0] and one[1] != two[1]]
    assert pairs["prompt_id"].tolist() == kept
    assert pairs.attrs["n_without_preference"] == len(groups) - len(kept)


@given(tables, st.randoms(use_true_random=False))
def test_order_of_the_responses_to_a_prompt_does_not_matter(groups, random):
    responses = table(groups)
    order = list(range(len(responses)))
    random.shuffle(order)
    order.sort(key=lambda i: responses["prompt_id"][i])  # prompts stay where they are
    pairs = annotation.rank(responses, by="score")
    pd.testing.assert_frame_equal(annotation.rank(responses.iloc[order], by="score"), pairs)


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
    assert (len(pairs), pairs.attrs["n_without_preference"]) == (1, 1)


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
    assert annotation.with_margins(pairs)["margin"].tolist() == [1.25, 0.5]


def test_audit_counts_and_averages():
    pairs = pd.DataFrame({"margin": [0.0, 1.0, 5.0], "agrees_with_gold": [True, False, True]})
    expected = {"n_pairs": 3, "margin_mean": 2.0, "margin_median": 1.0, "margin_min": 0.0, "margin_max": 5.0}
    assert annotation.audit(pairs) == expected | {"agreement": pytest.approx(2 / 3)}
    assert annotation.audit(pairs[["margin"]]) == expected


# --- with a model

GENERATION = GenerationParams(temperature=1.0, max_new_tokens=8, max_prompt_length=64, batch_size=8)
BETA = 0.3


@pytest.fixture(scope="module")
def policy(tiny_model):
    import torch

    lora = LoraParams(r=4, lora_alpha=8)
    policy = Policy.load(ModelParams(name_or_path=str(tiny_model), device="cpu", dtype="float32", lora=lora))
    policy.make_trainable(0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    policy.model.eval()
    return policy


@pytest.fixture(scope="module")
def prompts():
    texts = builtin_prompts()[:90:13]
    rows = {
        "prompt_id": [f"p{i}" for i in range(len(texts))],
        "prompt": [[{"role": "user", "content": t}] for t in texts],
    }
    # An index of its own, as a part of a larger table has.
    return pd.DataFrame(rows, index=range(100, 100 - len(texts), -1))


@pytest.fixture(scope="module")
def responses(policy, prompts):
    return annotation.with_implicit_rewards(policy, annotation.respond(policy, prompts, GENERATION, seed=0), BETA)


def test_every_prompt_is_answered_as_often_as_asked_beside_its_own_text(policy, prompts):
    responses = annotation.respond(policy, prompts, GENERATION, seed=0, n_samples=3)
    assert responses["prompt_id"].tolist() == list(itertools.chain(*zip(*[prompts["prompt_id"]] * 3, strict=True)))
    assert responses["prompt_ids"].tolist() == policy.encode_prompts(responses["prompt"].tolist())


def test_answers_keep_the_form_of_their_prompts(policy, prompts):
    forms = [f"form {i % 2}" for i in range(len(prompts))]
    asked = annotation.respond(policy, prompts.assign(form=forms, other=1), GENERATION, seed=0)
    assert asked["form"].tolist() == list(itertools.chain(*zip(forms, forms, strict=True)))
    assert "other" not in asked


def test_answers_kept_from_a_killed_call_are_not_taken_for_those_of_the_policy_scaled(policy, prompts, tmp_path):
    own = annotation.respond(policy, prompts, GENERATION, 0, shards=tmp_path)
    with policy.scaled(0.0):
        scaled = annotation.respond(policy, prompts, GENERATION, 0, shards=tmp_path)
    with policy.reference():
        sft = annotation.respond(policy, prompts, GENERATION, 0)
    assert scaled["response"].tolist() == sft["response"].tolist() != own["response"].tolist()


def test_implicit_reward_is_beta_times_the_log_ratio_to_the_sft_model(policy, responses):
    ids = responses["prompt_ids"], responses["response_ids"]
    policy_scores = sequence_log_probs(policy, *ids)
    sft_scores = sequence_log_probs(policy, *ids, reference=True)
    expected = BETA * (policy_scores - sft_scores)
    np.testing.assert_allclose(responses["implicit_reward"], expected, atol=1e-4)
    np.testing.assert_array_equal(responses["reference_log_prob"], sft_scores)
    assert responses["implicit_reward"].std() > 0.1


def test_self_annotation_is_reproducible(policy, prompts, responses):
    again = annotation.with_implicit_rewards(policy, annotation.respond(policy, prompts, GENERATION, seed=0), BETA)
    pd.testing.assert_frame_equal(again, responses, check_exact=True)


def test_log_probs_of_labelled_pairs_are_the_policys(policy, prompts):
    pairs = prompts.assign(chosen="Bread rises.", rejected=[f"No {i}." for i in range(len(prompts))])
    encoded = annotation.encode_pairs(policy, pairs, max_prompt_length=64)
    assert encoded["prompt_ids"].tolist() == policy.encode_prompts(prompts["prompt"].tolist())
    for side in ("chosen", "rejected"):
        ids = encoded[f"{side}_ids"]
        assert [policy.tokenizer.decode(row[:-1]) for row in ids] == pairs[side].tolist()
        assert all(row[-1] in policy.stop_tokens for row in ids)
        expected = sequence_log_probs(policy, encoded["prompt_ids"], ids)
        np.testing.assert_allclose(encoded[f"{side}_log_prob"], expected, atol=1e-4)


def test_cut_prompts_of_labelled_pairs_keep_their_whole_responses(policy, prompts):
    pairs = prompts.assign(chosen="Bread rises.", rejected="No.")
    whole = annotation.encode_pairs(policy, pairs, max_prompt_length=64)
    with pytest.warns(UserWarning, match="lose their first ones"):
        cut = annotation.encode_pairs(policy, pairs, max_prompt_length=12)
    assert cut["prompt_ids"].tolist() == [ids[-12:] for ids in whole["prompt_ids"]]
    assert cut["chosen_ids"].tolist() == whole["chosen_ids"].tolist()


def test_labelled_pairs_too_long_to_train_on_are_refused_before_any_is_scored(policy, prompts, monkeypatch):
    pairs = prompts.assign(chosen="Yes. " * 50, rejected="No.")
    monkeypatch.setattr(annotation, "sequence_log_probs", None)
    with pytest.raises(
        ValueError, match=rf"{len(pairs)} of {len(pairs)} labelled pairs are longer than seed_dpo\.max_len"
    ):
        annotation.encode_pairs(policy, pairs, max_prompt_length=64, max_length=96)


def test_rescoring_brings_pairs_up_to_the_present_policy(policy, responses):
    pairs = annotation.with_margins(annotation.rank(responses, by="implicit_reward"))
    np.testing.assert_allclose(annotation.rescore(policy, pairs, BETA)["margin"], pairs["margin"], atol=1e-4)

    with policy.model.disable_adapter():  # the SFT model takes the policy's place
        present = annotation.rescore(policy, pairs, BETA)
    np.testing.assert_allclose(present["margin"], 0, atol=1e-4)
    for side in ("chosen", "rejected"):
        np.testing.assert_allclose(present[f"{side}_log_prob"], pairs[f"{side}_reference_log_prob"], atol=1e-4)
        assert present[side].tolist() == pairs[side].tolist()
    assert pairs["margin"].min() > 0  # the argument is left as it was


# --- in bfloat16


@pytest.fixture(scope="module")
def bfloat16(policy, tiny_model):
    import torch

    params = policy.params.model_copy(update={"dtype": "bfloat16"})
    narrow = Policy.load(params)
    narrow.make_trainable(0)
    adapter = {name: tensor for name, tensor in policy.model.state_dict().items() if "lora_" in name}
    narrow.model.load_state_dict(adapter, strict=False)
    assert narrow.model.dtype == torch.bfloat16
    return narrow


def test_answers_sampled_in_bfloat16_are_ranked_by_float32_scores(bfloat16, prompts):
    drawn = annotation.respond(bfloat16, prompts, GENERATION, seed=0)
    scored = annotation.with_implicit_rewards(bfloat16, drawn, BETA)
    ids = drawn["prompt_ids"], drawn["response_ids"]
    own, reference = (sequence_log_probs(bfloat16, *ids, reference=which) for which in (False, True))
    np.testing.assert_allclose(scored["log_prob"], own, atol=1e-4)
    np.testing.assert_allclose(scored["implicit_reward"], BETA * (own - reference), atol=1e-4)
    assert np.abs(drawn["log_prob"] - own).max() > 1e-3  # sampling's would not do


def test_references_of_the_labelled_seed_are_float32_scores_too(bfloat16, prompts, tiny_params_file):
    params = load_params(tiny_params_file)
    pairs = annotation.labelled(bfloat16, prompts, params, seed=0)
    for side in ("chosen", "rejected"):
        scores = sequence_log_probs(bfloat16, pairs["prompt_ids"], pairs[f"{side}_ids"])
        for column in ("log_prob", "reference_log_prob"):
            np.testing.assert_allclose(pairs[f"{side}_{column}"], scores, atol=1e-4)


def test_calibration_pairs_are_made_of_as_many_answers_as_self_annotated_pairs_are(tiny_params_file):
    overrides = {"data.n_calibration": 6, "data.n_seed_samples": 4, "annotation.n_samples": 3}
    run = Run.open(tiny_params_file, overrides=overrides)
    step = run.step("seed_dpo").begin()
    make_seed(step)
    policy = Policy.load(run.params.model)
    part = data.prepare(run.params.data, run.params.root, run.seed)
    for name, prompts, seed, n_samples in (
        ("pairs", part.seed, step.seed, 4),
        ("calibration", part.calibration, step.seed + 1, 3),
    ):
        answers = annotation.respond(policy, prompts, run.params.generation, seed, n_samples)
        of_prompt = answers.groupby("prompt_id")["response"].agg(list)
        pairs = pd.read_parquet(step.draft / f"{name}.parquet")
        assert len(pairs)
        for pair in pairs.itertuples():
            assert {pair.chosen, pair.rejected} <= set(of_prompt[pair.prompt_id])
            assert len(of_prompt[pair.prompt_id]) == n_samples


def test_a_generation_prompt_that_finished_turns_do_not_repeat_is_named(tiny_model, prompts):
    policy = Policy.load(ModelParams(name_or_path=str(tiny_model), device="cpu"))
    policy.tokenizer.chat_template = policy.tokenizer.chat_template.replace(
        "<|im_start|>assistant\\n", "<|im_start|>assistant\\n<think>\\n"
    )
    pairs = prompts.assign(chosen="Yes, tea is good for you.", rejected="No.")
    with pytest.warns(UserWarning, match=r"template of .*tiny.*asks for an answer by '<think>"):
        encoded = annotation.encode_pairs(policy, pairs, max_prompt_length=64)
    for side in ("chosen", "rejected"):
        assert [policy.tokenizer.decode(ids[:-1]) for ids in encoded[f"{side}_ids"]] == pairs[side].tolist()
