"""Parallel refinement: from any draft to the greedy answer, one more token right with every pass."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgpo_lib.params import ModelParams
from sgpo_lib.policy import Policy
from sgpo_lib.policy.refine import refine

N = 10
PROMPTS = [[{"role": "user", "content": text}] for text in ("Hello?", "Describe the sea, and the sky above it.")]


@pytest.fixture(scope="module")
def policy(tiny_model) -> Policy:
    return Policy.load(ModelParams(name_or_path=str(tiny_model), dtype="float32", device="cpu", lora=None))


def greedy(policy, prompt_ids):
    """One token at a time, by plain passes."""
    ids = list(prompt_ids)
    for _ in range(N):
        with torch.inference_mode():
            ids.append(int(policy.model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in policy.stop_tokens:
            break
    return ids[len(prompt_ids) :]


drafts = st.lists(st.lists(st.integers(5, 590), max_size=N + 3), min_size=2, max_size=2)


@settings(max_examples=25)
@given(drafts)
def test_every_draft_ends_at_the_greedy_answer_and_is_right_one_token_further_each_pass(policy, drafts):
    prompt_ids = policy.encode_prompts(PROMPTS)
    iterations = refine(policy, prompt_ids, drafts, N + 1, N)
    for row, ids in enumerate(prompt_ids):
        expected = greedy(policy, ids)
        assert iterations[-1][row] == iterations[-2][row] == expected
        for k in range(N + 1):
            assert iterations[k][row][:k] == expected[:k]


def test_before_the_first_pass_nothing_is_changed(policy):
    (draft,) = refine(policy, policy.encode_prompts(PROMPTS[:1]), [[5, 6, 7]], 0, N)[0]
    assert draft == [5, 6, 7, policy.stop_tokens[0]]


def test_an_answer_that_does_not_fit_is_refused(policy):
    with pytest.raises(ValueError, match="A prompt and n_tokens"):
        refine(policy, policy.encode_prompts(PROMPTS), [[], []], 1, 1000)


def test_the_other_rows_of_a_batch_do_not_matter(policy):
    prompt_ids, rng = policy.encode_prompts(PROMPTS), np.random.default_rng(0)
    drafts = [rng.integers(5, 590, N).tolist() for _ in PROMPTS]
    together = refine(policy, prompt_ids, drafts, 3, N)
    alone = [refine(policy, [ids], [draft], 3, N) for ids, draft in zip(prompt_ids, drafts, strict=True)]
    assert together == [[one[k][0] for one in alone] for k in range(4)]
