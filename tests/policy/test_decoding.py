"""Answers drawn in a refilled batch are those that each prompt would be given alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, MambaConfig, MistralConfig

from sgpo_lib.policy import sampling
from sgpo_lib.policy.decoding import Answer, DecodingError, decode, why_not_decoded
from sgpo_lib.policy.drawing import draw

STOP, LIMIT, N_TOKENS = [1, 2], 12, 20
SMALL = {
    "vocab_size": N_TOKENS,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def random_model(config, **options):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, **options).eval()


def begin(lengths):
    """One answer to a random prompt of each length; equal lengths have equal prompts."""
    prompts = [np.random.default_rng(n).integers(3, N_TOKENS, n).tolist() for n in lengths]
    return [Answer(prompt, np.random.default_rng([7, i])) for i, prompt in enumerate(prompts)]


@torch.inference_mode()
def alone(model, answer, temperature):
    """Draw an answer without cache, mask or batch."""
    while len(answer.ids) < LIMIT and not (answer.ids and answer.ids[-1] in STOP):
        logits = model(torch.tensor([[*answer.prompt, *answer.ids]]), use_cache=False).logits[:, -1]
        answer.add(*(x.item() for x in draw(logits, torch.tensor([answer.stream.random()]), temperature)))
    return answer


def assert_equal_answers(drawn, expected):
    assert [answer.ids for answer in drawn] == [answer.ids for answer in expected]
    for name in ("log_prob", "sampling_log_prob"):
        own, other = ([getattr(answer, name) for answer in some] for some in (drawn, expected))
        np.testing.assert_allclose(own, other, atol=1e-4)


@pytest.fixture(scope="module")
def llama():
    return random_model(LlamaConfig(**SMALL))


# --- drawing


@given(
    st.integers(1, 600),
    st.integers(0, 10**6),
    st.floats(0, 1),
    st.sampled_from([0.01, 0.7, 1.0, 3.0]),
    st.floats(0, 30),
)
def test_a_token_is_where_the_distribution_function_passes_the_uniform(n_tokens, seed, uniform, temperature, spread):
    logits = spread * torch.randn(1, n_tokens, generator=torch.Generator().manual_seed(seed))
    token, log_prob, sampling_log_prob = (x.item() for x in draw(logits, torch.tensor([uniform]), temperature))
    law = (logits[0].double() / temperature).softmax(-1)
    below, above = law[:token].sum(), law[: token + 1].sum()
    assert below - 1e-5 <= uniform <= above + 1e-5
    assert law[token] > 0
    assert log_prob == pytest.approx(logits[0].double().log_softmax(-1)[token].item(), abs=1e-3)
    assert sampling_log_prob == pytest.approx(law[token].log().item(), rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("uniform", [0.0, 1.0])
def test_a_token_of_probability_0_is_not_drawn_at_either_end(uniform):
    logits = torch.full((1, 300), -1e4)
    logits[0, [7, 260]] = 0.0
    token, *_ = draw(logits, torch.tensor([uniform]), 1.0)
    assert token.item() == (260 if uniform else 7)


def test_tokens_follow_the_law_at_the_temperature():
    n, temperature = 20_000, 0.7
    logits = torch.randn(1, 300, generator=torch.Generator().manual_seed(1))
    uniforms = torch.from_numpy(np.random.default_rng(0).random(n))
    tokens, *_ = draw(logits.expand(n, -1), uniforms, temperature)
    counts = np.bincount(tokens, minlength=300)

    def p_value(temperature):
        law = (logits[0].double() / temperature).softmax(-1).numpy()
        return stats.chisquare(counts, n * law / law.sum()).pvalue

    assert p_value(temperature) > 0.01
    assert p_value(1.1 * temperature) < 1e-4  # the test would notice


# --- decoding


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.integers(1, 10), st.sampled_from([0.5, 1.0]))
def test_answers_do_not_depend_on_who_else_is_in_the_batch_or_comes_and_goes(llama, lengths, n_at_once, temperature):
    drawn = begin(lengths)
    ended = list(decode(llama, drawn, temperature, STOP, LIMIT, n_at_once))
    assert {id(answer) for answer in ended} == {id(answer) for answer in drawn}
    assert_equal_answers(drawn, [alone(llama, answer, temperature) for answer in begin(lengths)])


def test_a_place_that_falls_free_is_taken_before_the_others_end(llama, monkeypatch):
    read = []
    forward = llama.forward
    monkeypatch.setattr(llama, "forward", lambda **inputs: read.append(inputs["input_ids"].shape) or forward(**inputs))
    drawn = begin([4] * 40)
    list(decode(llama, drawn, 1.0, STOP, LIMIT, 8))
    steps = [rows for rows, width in read if width == 1]
    assert {len(answer.ids) for answer in drawn} >= {1, LIMIT}  # some end early
    assert len(steps) < 0.75 * (40 / 8) * LIMIT  # what five whole batches would take
    assert min(steps) < 8  # and in the end the batch shrinks


def test_a_ring_is_no_longer_than_one_prompt_with_its_answer_however_many_there_are(llama, monkeypatch):
    widths = set()
    forward = llama.forward

    def listening(**inputs):
        widths.add(inputs["attention_mask"].shape[-1] if "attention_mask" in inputs else 0)
        return forward(**inputs)

    monkeypatch.setattr(llama, "forward", listening)
    list(decode(llama, begin([5] * 30), 1.0, STOP, LIMIT, 4))
    assert max(widths) == 5 + LIMIT


def test_nothing_is_drawn_for_no_prompts(llama):
    assert list(decode(llama, [], 1.0, STOP, LIMIT, 4)) == []


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_16_bits_round_log_probs_and_no_more(attention):
    model = random_model(LlamaConfig(**SMALL), dtype=torch.bfloat16, attn_implementation=attention)
    drawn = begin([3, 5, 7] * 8)
    list(decode(model, drawn, 0.7, STOP, LIMIT, 6))
    exact = model.double()
    for answer in drawn:
        ids = torch.tensor([[*answer.prompt, *answer.ids]])
        with torch.inference_mode():
            logits = exact(ids).logits[0, len(answer.prompt) - 1 : -1].log_softmax(-1)
        plain = logits.gather(-1, torch.tensor(answer.ids)[:, None]).sum().item()
        assert abs(answer.log_prob - plain) < 0.1 * len(answer.ids) ** 0.5


# --- other models


def test_a_sliding_window_that_an_answer_fits_into_needs_no_fall_back():
    model = random_model(MistralConfig(**SMALL, sliding_window=9 + LIMIT))
    assert why_not_decoded(model, 9 + LIMIT) is None
    drawn = begin([3, 9, 9, 5])
    list(decode(model, drawn, 1.0, STOP, LIMIT, 2))
    assert_equal_answers(drawn, [alone(model, answer, 1.0) for answer in begin([3, 9, 9, 5])])


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (Gemma3TextConfig(**SMALL, head_dim=8, sliding_window=6), "sliding_window of 6"),
        (MistralConfig(**SMALL, sliding_window=6), "sliding_window of 6"),
        (MambaConfig(vocab_size=N_TOKENS, hidden_size=16, num_hidden_layers=2, state_size=4), "linear_attention"),
    ],
    ids=["Gemma3", "Mistral", "Mamba"],
)
def test_models_that_a_ring_does_not_suit_are_sampled_by_their_own_generate(config, reason):
    model, lengths = random_model(config), [3, 9, 9, 5, 7]
    with pytest.warns(UserWarning, match=reason):
        drawn = sampling._answers(model, lambda: begin(lengths), 9 + LIMIT, "generate", 1.0, STOP, LIMIT, 2)
    assert_equal_answers(drawn, [alone(model, answer, 1.0) for answer in begin(lengths)])


def test_a_model_that_drops_the_mask_is_noticed_and_sampled_by_its_own_generate(llama, monkeypatch):
    forward, lengths = llama.forward, [5, 5, 3]

    def unmasked(input_ids, attention_mask=None, **inputs):
        is_of_slots = attention_mask is not None and attention_mask.ndim == 4
        return forward(input_ids, attention_mask=None if is_of_slots else attention_mask, **inputs)

    monkeypatch.setattr(llama, "forward", unmasked)
    with pytest.raises(DecodingError, match="nats per square root of tokens"):
        list(decode(llama, begin(lengths), 1.0, STOP, LIMIT, 4))
    with pytest.warns(UserWarning, match="nats per square root of tokens"):
        drawn = sampling._answers(llama, lambda: begin(lengths), 5 + LIMIT, "generate", 1.0, STOP, LIMIT, 4)
    assert_equal_answers(drawn, [alone(llama, answer, 1.0) for answer in begin(lengths)])
