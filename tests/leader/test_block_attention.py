"""Attention in blocks: the outputs and gradients of plain attention under any causal mask."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from sgpo_lib.leader import block_attention as module
from sgpo_lib.leader.block_attention import block_attention


def plain(query, key, value, mask, scaling):
    """Attention as it is defined, shape (B, L, H, D)."""
    key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for x in (key, value))
    return ((query @ key.mT * scaling + mask).softmax(-1) @ value).transpose(1, 2)


@settings(max_examples=30)
@given(
    n_rows=st.integers(1, 3),
    shared=st.integers(1, 2),
    group=st.integers(1, 3),
    length=st.integers(1, 9),
    queries=st.integers(1, 10),
    seed=st.integers(0, 99),
)
def test_outputs_and_gradients_are_those_of_plain_attention(n_rows, shared, group, length, queries, seed):
    rng = torch.Generator().manual_seed(seed)

    def draw(n_heads):
        return torch.randn(n_rows, n_heads, length, 4, dtype=torch.float64, generator=rng, requires_grad=True)

    tensors = draw(shared * group), draw(shared), draw(shared)
    hidden = (torch.rand(n_rows, 1, length, length, generator=rng) < 0.5) & ~torch.eye(length, dtype=torch.bool)
    hidden |= torch.ones(length, length, dtype=torch.bool).triu(1)
    mask = torch.zeros(hidden.shape, dtype=torch.float64).masked_fill(hidden, torch.finfo(torch.float64).min)
    expected = plain(*tensors, mask, 0.3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_QUERIES", queries)
        output, _ = block_attention(torch.nn.Module(), *tensors, mask, scaling=0.3)
        upstream = torch.randn(output.shape, dtype=torch.float64, generator=rng)
        torch.testing.assert_close(output, expected)
        torch.testing.assert_close(
            torch.autograd.grad(output, tensors, upstream), torch.autograd.grad(expected, tensors, upstream)
        )


@pytest.mark.parametrize("implementation", ["eager", "causal_blocks"])
def test_a_padded_batch_has_the_logits_of_torchs_own_attention(implementation):
    config = LlamaConfig(
        vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, initializer_range=0.5, attention_dropout=0.0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    ids, mask = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    logits = []
    for name in ("sdpa", implementation):
        model.set_attn_implementation(name)
        logits.append(model(input_ids=ids, attention_mask=mask).logits[mask.bool()])
    torch.testing.assert_close(*logits)


def test_dropout_is_torchs_matter():
    q = torch.ones(1, 1, 3, 2)
    mask = torch.zeros(1, 1, 3, 3)
    output, _ = block_attention(torch.nn.Module(), q, q, q, mask, dropout=0.999999)
    assert not output.any()
