"""Answers and labelled pairs: every number is the model's own, and what a label costs is counted."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from small_model import changed_policy

from sgpo_lib import annotation, data
from sgpo_lib.annotation import answers as of_answers
from sgpo_lib.data.builtin_prompts import builtin_prompts
from sgpo_lib.params import GenerationParams, LoraParams, ModelParams, load_params
from sgpo_lib.policy import Policy, embed_responses, sequence_log_probs
from sgpo_lib.runs import Run
from sgpo_lib.steps.launch import make_seed

GENERATION = GenerationParams(temperature=1.0, max_new_tokens=8, max_prompt_length=64, batch_size=8)
BETA = 0.3


@pytest.fixture(scope="module")
def policy(tiny_model):
    return changed_policy(tiny_model, LoraParams(r=4, lora_alpha=8))


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


def test_a_response_is_embedded_by_the_sft_models_states_at_its_own_tokens(policy, responses):
    some = responses.head(5)
    found = embed_responses(policy, some["prompt_ids"].tolist(), some["response_ids"].tolist(), batch_size=2)
    with policy.reference() as model, torch.inference_mode():
        for state, row in zip(found, some.itertuples(), strict=True):
            ids = torch.tensor([[*row.prompt_ids, *row.response_ids]])
            states = model(ids, output_hidden_states=True).hidden_states[-1][0]
            np.testing.assert_allclose(state, states[len(row.prompt_ids) :].mean(0), atol=1e-5)


def test_the_prompt_is_not_among_the_answers_that_aepo_chooses_from(policy, prompts):
    """As it is in the package `aepo` 0.1.6, where it is chosen for being unlike the answers, and then loses."""
    drawn = annotation.respond(policy, prompts, GENERATION, seed=0, n_samples=5)
    kept = annotation.choose(policy, drawn, "aepo")
    assert kept.groupby("prompt_id").size().eq(2).all()
    pd.testing.assert_frame_equal(kept, drawn.loc[kept.index])
    asked = prompts.set_index("prompt_id")["prompt"].map(lambda prompt: prompt[-1]["content"])
    assert not (kept["response"] == kept["prompt_id"].map(asked)).any()
    states = embed_responses(policy, drawn["prompt_ids"].tolist(), drawn["response_ids"].tolist())
    states /= np.linalg.norm(states, axis=1, keepdims=True)
    for name, of_prompt in drawn.groupby("prompt_id"):
        own = states[of_prompt.index] @ states[of_prompt.index].T
        i, j = data.choose_two(own)
        assert kept.index[kept["prompt_id"] == name].tolist() == [of_prompt.index[i], of_prompt.index[j]]
        # Among candidates as unlike the answers as a prompt is, it would be one of the two.
        with_prompt = np.zeros((6, 6))
        with_prompt[1:, 1:] = 0.5 + own / 2
        assert data.choose_two(with_prompt)[0] == 0


def test_the_judge_scores_every_answer_or_compares_the_two_that_were_chosen(policy, prompts, tiny_params_file):
    for rule, cost in (("best-worst", 4), ("random", 1), ("aepo", 1)):
        params = load_params(tiny_params_file, {"data.n_seed_samples": 4, "data.choose_seed": rule})
        pairs = annotation.labelled(policy, prompts, params, seed=0)
        assert pairs["n_comparisons"].tolist() == [cost] * len(prompts)
        drawn = annotation.respond(policy, prompts, params.generation, 0, 4)
        of_prompt = annotation.choose(policy, drawn, rule).groupby("prompt_id")["response"].agg(set)
        for pair in annotation.preferred(pairs).itertuples():
            assert {pair.chosen, pair.rejected} <= of_prompt[pair.prompt_id]
            assert pair.chosen_gold > pair.rejected_gold


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
    monkeypatch.setattr(of_answers, "sequence_log_probs", None)
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
