"""Log-probabilities of given tokens without the logits of all others held at once.

Knows a language model's head and its logits; knows nothing of rows, pairs or losses.
"""

import contextlib
import types
from collections.abc import Iterator

import torch
from torch.autograd.function import once_differentiable

# Logits held at once: 67 MB in bfloat16; a product with fewer rows takes longer for unpacking the head than for itself.
_LOGITS_HELD = 2**25
# And widened at once: 4 MB in float32, which stay in a cache.
_LOGITS_AT_ONCE = 2**20

# Where a config has one of these, the model changes the logits that its head gives. The names are those that TRL's
# `add_fused_lm_head` knows.
_CHANGES_OF_LOGITS = (
    "final_logit_softcapping",
    "logit_scale",
    "output_multiplier",
    "lm_head_multiplier",
    "logits_scaling",
)


def gives_log_probs(causal_lm: torch.nn.Module) -> bool:
    """Return whether a model's head can give log-probabilities in place of logits (`head_giving_log_probs`).

    Not if the head is trained, adapted or sharded, nor if the model makes something else of its logits.
    """
    head = causal_lm.get_output_embeddings()
    if type(head) is not torch.nn.Linear or "forward" in vars(head):
        return False
    config = causal_lm.config.get_text_config()
    is_trained = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in head.parameters())
    return not is_trained and all(getattr(config, name, None) is None for name in _CHANGES_OF_LOGITS)


@contextlib.contextmanager
def head_giving_log_probs(
    causal_lm: torch.nn.Module, positions: torch.Tensor, labels: torch.Tensor, temperature: float
) -> Iterator[None]:
    """For the length of a block, let a model's output `logits` be log-probabilities of labels, shape (N,).

    Parameters
    ----------
    causal_lm : a model for which `gives_log_probs`.
    positions : shape (N,); places in the batch's tokens, counted row by row, that are to predict `labels`.
    labels : shape (N,).
    temperature : divides the logits.
    """
    head = causal_lm.get_output_embeddings()

    def forward(head: torch.nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
        on = torch.is_autocast_enabled(hidden.device.type)
        dtype = torch.get_autocast_dtype(hidden.device.type) if on else head.weight.dtype
        scored = hidden.flatten(0, -2).index_select(0, positions).to(dtype)
        bias = None if head.bias is None else head.bias.to(dtype)
        return _HeadLogProbs.apply(scored, head.weight.to(dtype), bias, labels, temperature)

    head.forward = types.MethodType(forward, head)
    try:
        yield
    finally:
        del head.forward


class _HeadLogProbs(torch.autograd.Function):
    """Log-probabilities of labels, (N,), from states, (N, d), and a frozen head, (V, d).

    A log-probability depends on its own state alone, so its gradient is made while its logits are at hand, and the
    backward pass only multiplies: no logits are kept, and each is computed once.
    """

    @staticmethod
    def forward(ctx, states, weight, bias, labels, temperature):
        wide = torch.promote_types(states.dtype, torch.float32)
        log_probs, gradients = [], []
        n_held, n_at_once = (max(1, n // weight.shape[0]) for n in (_LOGITS_HELD, _LOGITS_AT_ONCE))
        for held, wanted in zip(states.split(n_held), labels.split(n_held), strict=True):
            logits = torch.nn.functional.linear(held, weight, bias)
            for some, label in zip(logits.split(n_at_once), wanted.split(n_at_once), strict=True):
                scaled = some if temperature == 1.0 else some.to(wide).div_(temperature)
                log_p = scaled.log_softmax(-1, dtype=wide)
                log_probs.append(log_p.gather(-1, label[:, None]))
                if ctx.needs_input_grad[0]:
                    # - d log p(label) / d logits = p - onehot
                    some.copy_(log_p.exp_())
                    some.scatter_(-1, label[:, None], log_probs[-1].expm1().to(some.dtype))
            if ctx.needs_input_grad[0]:
                gradients.append(logits @ weight)
        if gradients:
            ctx.save_for_backward(torch.cat(gradients))
            ctx.temperature = temperature
        return torch.cat(log_probs)[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        (gradient,) = ctx.saved_tensors
        # In the wider type: rounding the factor would shift a whole answer's gradient.
        return (gradient * (upstream / -ctx.temperature)[:, None]).to(gradient.dtype), None, None, None, None


class LabelLogProbs(torch.autograd.Function):
    """Log-probabilities of labels, (N,), from logits, (N, V), without a wider copy of all logits or of their gradient.

    For models whose head does not give log-probabilities itself. `apply(logits, labels, temperature)`.
    """

    @staticmethod
    def forward(ctx, logits, labels, temperature):
        """Return float32 or wider."""
        wide = torch.promote_types(logits.dtype, torch.float32)
        at_once = max(1, _LOGITS_AT_ONCE // logits.shape[1])
        normalizer = torch.cat([part.to(wide).div(temperature).logsumexp(-1) for part in logits.split(at_once)])
        ctx.save_for_backward(logits, labels, normalizer)
        ctx.temperature, ctx.at_once = temperature, at_once
        return logits.gather(-1, labels[:, None])[:, 0].to(wide) / temperature - normalizer

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        """Return the gradient of the logits, in their type."""
        gradient = torch.empty_like(ctx.saved_tensors[0])
        parts = (x.split(ctx.at_once) for x in (gradient, *ctx.saved_tensors, upstream / ctx.temperature))
        for out, logits, labels, normalizer, scale in zip(*parts, strict=True):
            # d log p(label) / d logits = onehot - p
            minus = logits.to(normalizer.dtype).div(ctx.temperature).sub_(normalizer[:, None]).exp_()
            minus.mul_(-scale[:, None]).scatter_add_(-1, labels[:, None], scale[:, None])
            out.copy_(minus)
        return gradient, None, None
