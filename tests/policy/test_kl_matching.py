"""At equal KL: the scale that is found gives the KL that was asked for, and scaling leaves no trace."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sgpo_lib.data.builtin_prompts import builtin_prompts
from sgpo_lib.params import GenerationParams, LoraParams, ModelParams
from sgpo_lib.policy import Policy, generate, match_kl, sampled_kl, stepwise_kl
from sgpo_lib.policy.kl_matching import find_scales

PROMPTS = [[{"role": "user", "content": text}] for text in builtin_prompts()[::9]]
GENERATION = GenerationParams(temperature=0.7, max_new_tokens=8, max_prompt_length=96, batch_size=64)


@pytest.fixture(scope="module")
def policy(tiny_model, adapter) -> Policy:
    params = ModelParams(
        name_or_path=str(tiny_model), device="cpu", dtype="float32", lora=LoraParams(r=4, lora_alpha=8)
    )
    return Policy.load(params, adapter)


def logits(policy: Policy) -> torch.Tensor:
    (ids,) = policy.encode_prompts(PROMPTS[:1])
    with torch.inference_mode():
        return policy.model(torch.tensor([ids])).logits


def answers(policy: Policy, prompts=PROMPTS, seed=1):
    return generate(policy, prompts, 1, seed, 0.7, max_new_tokens=8)


# --- scaling an adapter


def test_scale_0_is_the_sft_model_and_scale_1_the_policy_bit_for_bit(policy):
    own = logits(policy)
    with policy.reference():
        sft = logits(policy)
    with policy.scaled(0.0):
        assert torch.equal(logits(policy), sft)
    with policy.scaled(1.0):
        assert torch.equal(logits(policy), own)
    with policy.scaled(0.5):
        half = logits(policy)
        with policy.reference():
            assert torch.equal(logits(policy), sft)
    assert not torch.equal(half, own)
    assert not torch.equal(half, sft)


def test_after_an_exception_the_policy_is_as_before(policy):
    own = logits(policy)
    with pytest.raises(ZeroDivisionError), policy.scaled(0.3):
        1 / torch.equal(logits(policy), own)
    assert torch.equal(logits(policy), own)


def test_what_has_no_adapter_cannot_be_scaled(tiny_model, whole):
    for weights in (None, whole):
        policy = Policy.load(ModelParams(name_or_path=str(tiny_model), device="cpu", dtype="float32"), weights)
        with pytest.raises(ValueError, match="only an adapter can be scaled"), policy.scaled(0.5):
            pass


# --- the KL along answers


def test_stepwise_kl_of_one_token_is_the_divergence_itself(policy):
    found = generate(policy, PROMPTS[:5], 1, 0, 0.7, max_new_tokens=1)
    divergences = []
    for ids in found["prompt_ids"]:
        with torch.inference_mode():
            p = (policy.model(torch.tensor([ids])).logits[0, -1].double() / 0.7).softmax(-1)
            with policy.reference() as sft:
                q = (sft(torch.tensor([ids])).logits[0, -1].double() / 0.7).softmax(-1)
        divergences.append((p * (p / q).log()).sum().item())
    np.testing.assert_allclose(stepwise_kl(policy, found["prompt_ids"], found["response_ids"], 0.7), divergences, 1e-4)
    assert min(divergences) > 0.1


def test_stepwise_kl_has_the_mean_of_the_log_ratio_and_varies_less(policy):
    found = answers(policy, PROMPTS * 2)
    ratio = sampled_kl(policy, found, 0.7)
    stepwise = stepwise_kl(policy, found["prompt_ids"], found["response_ids"], 0.7)
    difference = ratio - stepwise
    assert abs(difference.mean()) < 3 * difference.std() / np.sqrt(len(difference))
    assert stepwise.std() < ratio.std()
    assert stepwise.min() >= 0


def test_stepwise_kl_of_an_answer_does_not_depend_on_those_beside_it(policy):
    found = answers(policy, PROMPTS[:20])
    assert found["response_ids"].map(len).nunique() > 1
    ids = [*found["prompt_ids"], found["prompt_ids"][0]], [*found["response_ids"], []]
    alone = [stepwise_kl(policy, [p], [r], 0.7)[0] for p, r in zip(*ids, strict=True)]
    np.testing.assert_allclose(stepwise_kl(policy, *ids, 0.7), alone, atol=1e-4)
    assert alone[-1] == 0


# --- the scale of a KL


@given(
    power=st.floats(1.2, 3),
    size=st.floats(0.1, 100),
    bend=st.floats(0, 3),
    targets=st.lists(st.floats(0.5, 60), min_size=1, max_size=4, unique=True),
)
def test_a_scale_is_found_in_a_few_estimates_or_said_to_be_out_of_reach(power, size, bend, targets):
    asked = []

    def curve(alpha):
        return size * alpha**power / (1 + bend * alpha**power)

    def kl_at(alpha):
        asked.append(alpha)
        return np.full(3, curve(alpha))

    matches = find_scales(kl_at, targets)
    assert len(asked) == len(set(asked)) <= 1 + 6 * len(targets)
    assert max(asked) <= 1.5
    for target, match in zip(targets, matches, strict=True):
        assert match.target == target
        if target * 0.95 > curve(1.5):
            assert match.alpha is None
            assert "as far as was tried" in match.why_not
        else:
            assert curve(match.alpha) == pytest.approx(target, rel=0.05)
            assert not match.why_not


def test_a_policy_that_is_the_sft_model_matches_nothing():
    (match,) = find_scales(lambda alpha: np.zeros(3), [6.0])
    assert match.alpha is None
    assert match.why_not == "0.0 nats at 1.00 times the adapter, as far as was tried"


@pytest.mark.parametrize("share", [0.2, 0.6])
def test_the_scale_that_is_found_gives_the_kl_on_fresh_answers_to_other_prompts(policy, share):
    fresh = answers(policy, PROMPTS[120:])
    target = share * stepwise_kl(policy, fresh["prompt_ids"], fresh["response_ids"], 0.7).mean()
    (match,) = match_kl(policy, PROMPTS[:120], [target], GENERATION, seed=0)
    assert match.kl == pytest.approx(target, rel=0.05)
    assert 0 < match.alpha < 1
    with policy.scaled(match.alpha):
        found = answers(policy, PROMPTS[120:], seed=2)
        kl = stepwise_kl(policy, found["prompt_ids"], found["response_ids"], 0.7)
    error = np.hypot(kl.std() / np.sqrt(len(kl)), match.standard_error)
    assert kl.mean() == pytest.approx(target, abs=0.05 * target + 3 * error)
    assert error < 0.15 * target
