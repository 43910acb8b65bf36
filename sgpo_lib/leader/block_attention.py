"""Causal attention with any mask in blocks that stay in a CPU's cache, with a backward pass, as transformers takes it.

Plain attention passes some ten times over all scores of a batch, and keeps six bytes or more of each; torch's fused
one has a slow backward pass on CPUs. Here one block of queries of one row is worked on at a time, against the keys up
to its end, and two bytes (in bfloat16) of each of its scores are kept.
"""

import itertools
import math

import torch
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, eager_mask

NAME = "causal_blocks"  # as `model.set_attn_implementation` takes it
_QUERIES = 160  # of a block, at most: fewer cost calls, more cost scores that no query may see


def supports_blocks(model: torch.nn.Module) -> bool:
    """Return whether a transformers model's attention is a function of queries, keys, values and mask alone."""
    is_capped = getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None
    return bool(model._supports_sdpa) and not is_capped


def block_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Return what each query reads, shape (B, L, H, D), and no weights; as transformers' attention functions.

    Parameters
    ----------
    query : shape (B, H, L, D).
    key, value : shape (B, H', L, D); H is a multiple of H'.
    attention_mask : shape (B or 1, 1, L, L), added to the scores; what stands after a query must be masked.
    dropout : if not 0, torch's own attention does all, or refuses to; so also for anything that changes the scores.
    """
    changes = any(kwargs.get(name) is not None for name in ("position_bias", "softcap", "s_aux"))
    if dropout or changes or attention_mask is None or query.shape[2] != key.shape[2]:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    scaling = 1 / math.sqrt(query.shape[-1]) if scaling is None else scaling
    mask = attention_mask.expand(len(query), -1, -1, -1)[:, 0].to(query.dtype)
    output = _BlockAttention.apply(query * scaling, key.to(query.dtype), value.to(query.dtype), mask)
    return output.transpose(1, 2), None


AttentionInterface.register(NAME, block_attention)
AttentionMaskInterface.register(NAME, eager_mask)


def _blocks(length: int) -> list[tuple[int, int]]:
    """Return first and last + 1 of each block of queries, all of about one size."""
    n = -(-length // _QUERIES)
    ends = [length * i // n for i in range(n + 1)]
    return list(itertools.pairwise(ends))


class _BlockAttention(torch.autograd.Function):
    """softmax(Q K^T + mask) V, shapes (B, H, L, D), (B, H', L, D) twice, (B, L, L); no gradient for the mask.

    The heads that share keys stand below each other as further queries, so that no key is copied.
    """

    @staticmethod
    def forward(ctx, query, key, value, mask):
        n_rows, n_heads, length, _ = query.shape
        shared = key.shape[1]
        grouped = query.unflatten(1, (shared, n_heads // shared))
        output = value.new_empty(*grouped.shape[:-1], value.shape[-1])
        weights = []
        for row in range(n_rows):
            for start, end in _blocks(length):
                q = grouped[row, :, :, start:end].flatten(1, 2)
                scores = q @ key[row, :, :end].mT
                scores.unflatten(1, (-1, end - start)).add_(mask[row, start:end, :end])
                weights.append(scores.softmax(-1))
                output[row, :, :, start:end] = (weights[-1] @ value[row, :, :end]).unflatten(1, (-1, end - start))
        ctx.save_for_backward(query, key, value, *weights)
        return output.flatten(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        query, key, value, *weights = ctx.saved_tensors
        shared = key.shape[1]
        grouped, upstream = (x.unflatten(1, (shared, -1)) for x in (query, upstream))
        g_query = torch.empty_like(grouped)
        wide = torch.promote_types(key.dtype, torch.float32)  # of what adds up over blocks
        g_key, g_value = (torch.zeros(x.shape, dtype=wide) for x in (key, value))
        remaining = iter(weights)
        for row in range(len(query)):
            for start, end in _blocks(query.shape[2]):
                p = next(remaining)
                q, g = (x[row, :, :, start:end].flatten(1, 2) for x in (grouped, upstream))
                g_value[row, :, :end] += p.mT @ g
                # d softmax: p * (g - sum(p * g)), torch's own kernel for it
                g_scores = torch.ops.aten._softmax_backward_data(g @ value[row, :, :end].mT, p, -1, p.dtype)
                g_query[row, :, :, start:end] = (g_scores @ key[row, :, :end]).unflatten(1, (-1, end - start))
                g_key[row, :, :end] += g_scores.mT @ q
        return g_query.flatten(1, 2), g_key.to(key.dtype), g_value.to(value.dtype), None
