"""LoRA layers on frozen weights as one step of autograd each, for training on a CPU.

PEFT computes W x, B A x, times the scaling, plus W x: next to the products that is two passes over all outputs, and two
more backwards. Here the adapter's products add to the frozen layer's own, y = W x + s B (A x), forwards and backwards.
Knows PEFT's layers; knows nothing of trainers or losses.
"""

import contextlib
import types
from collections.abc import Iterator

import torch
from peft.tuners import lora
from torch.autograd.function import once_differentiable


@contextlib.contextmanager
def fused_lora(model: torch.nn.Module) -> Iterator[None]:
    """For the length of a block, compute a model's plain LoRA layers in fewer passes.

    The numbers are PEFT's up to the order of rounding. Layers that are not plain (DoRA, dropout, trained or quantised
    bases, several adapters at once) remain PEFT's, as do all on an accelerator, whose compilers fuse by themselves.

    Parameters
    ----------
    model : with or without adapters; which are active may change within the block.
    """
    layers = [layer for layer in model.modules() if type(layer) is lora.Linear]
    for layer in layers:
        layer.forward = types.MethodType(_forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _forward(layer: lora.Linear, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
    if args or kwargs or not _is_plain(layer):
        return lora.Linear.forward(layer, x, *args, **kwargs)
    (name,) = layer.active_adapters
    base, a, b = layer.base_layer, layer.lora_A[name].weight, layer.lora_B[name].weight
    dtype = _product_dtype(layer)
    bias = None if base.bias is None else base.bias.to(dtype)
    return _LoraLinear.apply(x.to(dtype), base.weight.to(dtype), bias, a.to(dtype), b.to(dtype), layer.scaling[name])


def _product_dtype(layer: lora.Linear) -> torch.dtype:
    device = layer.base_layer.weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else layer.base_layer.weight.dtype


def _is_plain(layer: lora.Linear) -> bool:
    """Return whether a layer computes W x + s B A x for one adapter, and only A and B are trained."""
    base, active = layer.base_layer, layer.active_adapters
    if layer.disable_adapters or layer.merged or len(active) != 1 or active[0] not in layer.lora_A:
        return False
    (name,) = active
    dtype = layer.lora_A[name].weight.dtype
    return (
        type(base) is torch.nn.Linear
        and base.weight.device.type == "cpu"
        and not any(parameter.requires_grad for parameter in base.parameters())
        and name not in layer.lora_variant
        and isinstance(layer.lora_dropout[name], torch.nn.Identity)
        and layer.lora_B[name].bias is None
        and (torch.is_autocast_enabled("cpu") or dtype == base.weight.dtype)
    )


class _LoraLinear(torch.autograd.Function):
    """y = W x + s B (A x), shapes (..., n_in) to (..., n_out), of one dtype; gradients for x, A and B."""

    @staticmethod
    def forward(ctx, x, weight, bias, a, b, scaling):
        rows = x.flatten(0, -2)
        inner = rows @ a.T
        y = torch.nn.functional.linear(rows, weight, bias).addmm_(inner, b.T, alpha=scaling)
        ctx.save_for_backward(rows, inner, weight, a, b)
        ctx.scaling = scaling
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        rows, inner, weight, a, b = ctx.saved_tensors
        g = upstream.flatten(0, -2)
        g_inner = (g @ b).mul_(ctx.scaling)
        g_x = None
        if ctx.needs_input_grad[0]:
            g_x = (g @ weight).addmm_(g_inner, a).view(*upstream.shape[:-1], -1)
        return g_x, None, None, g_inner.T @ rows, (g.T @ inner).mul_(ctx.scaling), None
