"""Log-probabilities of labels: the numbers and derivatives of a plain log-softmax, chunk by chunk."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import CohereConfig, Gemma2Config, LlamaConfig, LlamaForCausalLM
from transformers.models.cohere import CohereForCausalLM
from transformers.models.gemma2 import Gemma2ForCausalLM

from sgpo_lib.leader import label_log_probs
from sgpo_lib.leader.label_log_probs import LabelLogProbs, gives_log_probs, head_giving_log_probs

VOCABULARY, WIDTH = 11, 8
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


class HeadOnly(torch.nn.Module):
    """What the functions need of a language model: a head."""

    def __init__(self, bias: bool):
        super().__init__()
        self.head = torch.nn.Linear(WIDTH, VOCABULARY, bias=bias, dtype=torch.float64).requires_grad_(False)

    def get_output_embeddings(self):
        return self.head


@settings(max_examples=30)
@given(
    n_rows=st.integers(1, 4),
    length=st.integers(1, 5),
    rows_at_once=st.integers(1, 7),
    rows_held=st.integers(1, 7),
    temperature=st.sampled_from([1.0, 0.7, 2.0]),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_frozen_head_gives_log_probs_and_their_derivative(
    n_rows, length, rows_at_once, rows_held, temperature, bias, seed
):
    rng = torch.Generator().manual_seed(seed)
    model = HeadOnly(bias)
    torch.nn.init.normal_(model.head.weight, generator=rng)
    states = torch.randn(n_rows, length, WIDTH, dtype=torch.float64, generator=rng, requires_grad=True)
    positions = torch.randperm(n_rows * length, generator=rng)[: max(1, n_rows * length // 2)]
    labels = torch.randint(VOCABULARY, positions.shape, generator=rng)
    factors = torch.randn(positions.shape, dtype=torch.float64, generator=rng)

    logits = model.head(states).flatten(0, 1)[positions] / temperature
    expected = logits.log_softmax(-1)[range(len(labels)), labels]
    with pytest.MonkeyPatch.context() as patch, head_giving_log_probs(model, positions, labels, temperature):
        patch.setattr(label_log_probs, "_LOGITS_AT_ONCE", rows_at_once * VOCABULARY)
        patch.setattr(label_log_probs, "_LOGITS_HELD", rows_held * VOCABULARY)
        given_by_head = model.head(states)
    torch.testing.assert_close(given_by_head, expected)
    torch.testing.assert_close(
        torch.autograd.grad((given_by_head * factors).sum(), states),
        torch.autograd.grad((expected * factors).sum(), states),
    )
    assert model.head(states).shape == (n_rows, length, VOCABULARY)


def test_log_probs_from_logits_have_the_right_derivative_in_chunks_and_at_a_temperature(monkeypatch):
    monkeypatch.setattr(label_log_probs, "_LOGITS_AT_ONCE", 10)
    logits = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.tensor([0, 3, 1, 1, 2])
    expected = (logits / 0.7).log_softmax(-1)[range(5), labels]
    torch.testing.assert_close(LabelLogProbs.apply(logits, labels, 0.7), expected)
    assert torch.autograd.gradcheck(lambda x: LabelLogProbs.apply(x, labels, 0.7), logits)


def frozen(model):
    return model.requires_grad_(False)


def test_a_head_that_training_changes_gives_logits():
    model = frozen(LlamaForCausalLM(LlamaConfig(**SHAPE)))
    assert gives_log_probs(model)
    model.lm_head.weight.requires_grad_(True)
    assert not gives_log_probs(model)
    with torch.no_grad():
        assert gives_log_probs(model)
    adapter = LoraConfig(r=2, target_modules=["lm_head"])
    assert not gives_log_probs(get_peft_model(frozen(model), adapter).get_base_model())


@pytest.mark.parametrize(
    "model",
    [
        lambda: CohereForCausalLM(CohereConfig(**SHAPE, logit_scale=0.3)),
        lambda: Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=4, final_logit_softcapping=3.0)),
    ],
    ids=["scaled", "capped"],
)
def test_a_model_that_changes_its_logits_keeps_them(model):
    assert not gives_log_probs(frozen(model()))
