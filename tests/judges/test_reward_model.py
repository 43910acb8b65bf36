"""Reward models as judges: a classifier's own outputs, whatever the batch; and pairs read in both orders."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import processors
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification

from sgpo_lib.judges.pairwise import audit, score_responses
from sgpo_lib.judges.reward_model import PairwiseRewardModelJudge, RewardModelJudge

PROMPTS = [[{"role": "user", "content": text}] for text in ("Hello", "What is a table?", "Name a colour.", "Why?")]
FIRST = ["Hi!", "A board with legs, at which people eat.", "Red", "Because of that."]
SECOND = ["No.", "I do not know", "The colour of the sky on a clear day", "Yes"]


@pytest.fixture(scope="module")
def reward_model(tiny_model, tmp_path_factory):
    """Folder of the tiny model with a random reward head."""
    folder = tmp_path_factory.mktemp("models") / "reward"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(reward_model, tmp_path_factory):
    """Folder of a tiny BERT with a random head: no chat template, pairs of texts, and places told by token types."""
    folder = tmp_path_factory.mktemp("models") / "encoder"
    names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer = AutoTokenizer.from_pretrained(reward_model, model_input_names=names)
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    tokenizer.backend_tokenizer.post_processor = processors.BertProcessing(("<|im_end|>", end), ("<|im_start|>", start))
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=256, initializer_range=0.3, num_labels=1, pad_token_id=end,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def load(cls, folder, **options):
    return cls.load(folder, device="cpu", dtype="float32", **options)


def test_scores_are_the_models_outputs_on_the_templated_conversation(reward_model):
    judge = load(RewardModelJudge, reward_model, batch_size=3)
    scores = judge.score(PROMPTS, FIRST)
    assert scores.shape == (4,)
    for prompt, response, score in zip(PROMPTS, FIRST, scores, strict=True):
        text = judge.tokenizer.apply_chat_template(
            [*prompt, {"role": "assistant", "content": response}], tokenize=False
        )
        with torch.no_grad():
            expected = judge.model(**judge.tokenizer(text, return_tensors="pt")).logits
        assert score == pytest.approx(expected.item(), abs=1e-5)
    assert np.ptp(scores) > 0.01


@pytest.mark.parametrize("folder", ["reward_model", "encoder"])
def test_scores_depend_neither_on_the_batch_nor_on_the_order(request, folder):
    folder = request.getfixturevalue(folder)
    one = load(RewardModelJudge, folder, batch_size=1).score(PROMPTS, FIRST)
    assert load(RewardModelJudge, folder, batch_size=4).score(PROMPTS, FIRST) == pytest.approx(one, abs=1e-5)
    assert load(RewardModelJudge, folder).score(PROMPTS[::-1], FIRST[::-1])[::-1] == pytest.approx(one, abs=1e-5)


def test_an_encoder_without_chat_template_gets_a_pair_of_texts_with_their_types(encoder):
    judge = load(RewardModelJudge, encoder)
    inputs = judge.tokenizer("What is a table?", FIRST[1], return_tensors="pt")
    assert set(inputs["token_type_ids"][0].tolist()) == {0, 1}
    with torch.no_grad():
        expected = judge.model(**inputs).logits.item()
    assert judge.score(PROMPTS[1:2], FIRST[1:2]) == pytest.approx([expected], abs=1e-5)


def test_a_model_that_names_no_padding_token_scores_one_by_one(reward_model):
    judge = load(RewardModelJudge, reward_model)
    judge.model.config.pad_token_id = None
    assert np.ptp(judge.score(PROMPTS, FIRST)) > 0.01


@pytest.mark.parametrize("folder", ["reward_model", "encoder"])
def test_long_texts_are_cut_aloud_and_keep_the_end_of_the_conversation(request, folder):
    judge = load(RewardModelJudge, request.getfixturevalue(folder), max_length=64)
    long = [[{"role": "user", "content": "word " * 300}]]
    with pytest.warns(UserWarning, match="1 of 2 texts are longer than 64 tokens"):
        scores = judge.score([*long, *PROMPTS[:1]], ["Yes", "No"])
    assert np.isfinite(scores).all()
    kept, whole = (judge._encode(long[0], "Yes", room)["input_ids"] for room in (64, None))
    assert len(kept) == 64
    assert kept[-3:] == whole[-3:]


def test_both_judges_read_the_whole_conversation(encoder):
    asked = [[{"role": "user", "content": text}, {"role": "assistant", "content": "Yes."}] for text in ("A?", "B?")]
    prompts = [[*turns, {"role": "user", "content": "And the second one?"}] for turns in asked]
    alone, pairwise = load(RewardModelJudge, encoder), load(PairwiseRewardModelJudge, encoder)
    assert np.ptp(alone.score(prompts, ["No."] * 2)) > 1e-6
    assert np.ptp(pairwise.compare(prompts, ["No."] * 2, ["Never."] * 2)["preference"]) > 1e-6


def test_a_model_without_a_trained_head_or_with_several_outputs_is_refused(tiny_model, reward_model, tmp_path):
    with pytest.raises(ValueError, match=r"holds no trained reward head \(score.weight missing"):
        RewardModelJudge.load(tiny_model)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=3)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has 3 outputs"):
        RewardModelJudge.load(tmp_path)


def test_a_reward_model_that_lacks_or_has_other_weights_is_not_taken_in_silence(reward_model, tmp_path):
    weights = load_file(reward_model / "model.safetensors")
    layer = next(name for name in sorted(weights) if "mlp" in name)
    for name, tensors in {
        "less": {k: v for k, v in weights.items() if k != layer},
        "more": weights | {"extra.w": weights[layer].clone()},
    }.items():
        folder = shutil.copytree(reward_model, tmp_path / name)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=rf"lacks 1 tensors.*{re.escape(layer)}"):
        load(RewardModelJudge, tmp_path / "less")
    with pytest.warns(UserWarning, match=r"no place for.*extra\.w"):
        load(RewardModelJudge, tmp_path / "more")


def test_a_model_that_is_not_there_is_said_to_be_missing(monkeypatch):
    from sgpo_lib.data import hub

    monkeypatch.setattr(hub, "why_silent", lambda endpoint: "no network")
    with pytest.raises(ConnectionError, match="'no/such-reward-model' could not be loaded"):
        RewardModelJudge.load("no/such-reward-model")


def test_rewards_that_are_not_finite_are_an_error(reward_model):
    judge = load(RewardModelJudge, reward_model)
    judge.model.score.weight.data[:] = torch.inf
    with pytest.raises(FloatingPointError, match="4 of 4 rewards are not finite"):
        judge.score(PROMPTS, FIRST)


@pytest.mark.parametrize("folder", ["reward_model", "encoder"])
def test_a_pairwise_preference_is_the_complement_of_the_swapped_one(request, folder):
    judge = load(PairwiseRewardModelJudge, request.getfixturevalue(folder))
    there, back = judge.compare(PROMPTS, FIRST, SECOND), judge.compare(PROMPTS, SECOND, FIRST)
    np.testing.assert_allclose(there["preference"] + back["preference"], 1, atol=1e-5)
    np.testing.assert_allclose(there["in_order"] + back["swapped"], 1, atol=1e-5)
    assert there["preference"].between(0, 1).all()
    assert np.ptp(there["preference"]) > 0.001
    assert judge.compare(PROMPTS, FIRST, FIRST)["preference"].tolist() == pytest.approx([0.5] * 4, abs=1e-5)


def test_a_pairwise_model_scores_each_response_for_ranking(reward_model):
    judge = load(PairwiseRewardModelJudge, reward_model)
    rows = [(f"p{i}", prompt, text) for i, prompt in enumerate(PROMPTS) for text in (FIRST[i], SECOND[i])]
    responses = pd.DataFrame(rows, columns=["prompt_id", "prompt", "response"])
    scores, comparisons = score_responses(responses, judge)
    np.testing.assert_allclose(scores[::2], judge.compare(PROMPTS, FIRST, SECOND)["preference"], atol=1e-5)
    np.testing.assert_allclose(scores[::2] + scores[1::2], 1)
    assert json.dumps(audit(comparisons))


def test_cutting_a_pair_leaves_both_answers_the_same_room(reward_model):
    judge = load(PairwiseRewardModelJudge, reward_model, max_length=60)
    with pytest.warns(UserWarning, match="2 of 2 texts are longer than 60 tokens"):
        table = judge.compare(PROMPTS[:1], ["word " * 200], ["word " * 150])
    assert table["preference"].tolist() == pytest.approx([0.5], abs=1e-5)  # all that is left of them is equal
    text = judge.tokenizer.decode(judge._encode(PROMPTS[0], "word " * 200, "other " * 200, room=60)["input_ids"])
    assert text.startswith("<|source|>Hello<|candidate1|>word word")
    assert "<|candidate2|>other other" in text
