"""Adapters in the type that the model computes in, for passes that are not trained on.

PEFT keeps an adapter in float32 and casts each input to it and each output from it, which on a CPU costs as much as the
model. Folded into 16-bit weights an adapter would be lost in their rounding; beside them its rounding is small, being
relative to the update and not to the weights.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from peft.tuners.lora import Linear


@contextlib.contextmanager
def in_compute_dtype(model: torch.nn.Module) -> Iterator[None]:
    """Run plain LoRA layers with copies of their adapter in their base's type; others, and all afterwards, as ever."""
    # Training on a CPU has put a forward of its own there.
    changed = [(module, vars(module).get("forward")) for module in model.modules() if _is_plain(module)]
    for module, _ in changed:
        module.forward = _forward(module)
    try:
        yield
    finally:
        for module, before in changed:
            del module.forward
            if before is not None:
                module.forward = before


def _is_plain(module: torch.nn.Module) -> bool:
    return (
        type(module) is Linear
        and type(module.base_layer) is torch.nn.Linear
        and not (module.disable_adapters or module.merged or module.training)
        and [name for name in module.active_adapters if name in module.lora_A] == list(module.lora_A)
        and len(module.lora_A) == 1
        and not module.lora_variant
        and all(part.bias is None for part in module.lora_B.values())
    )


def _forward(module: Linear) -> Callable[[torch.Tensor], torch.Tensor]:
    (name,) = module.lora_A
    base, dtype = module.base_layer, module.base_layer.weight.dtype
    down = module.lora_A[name].weight.detach().to(dtype)
    up = (module.lora_B[name].weight.detach() * module.scaling[name]).to(dtype).t()

    def forward(x: torch.Tensor) -> torch.Tensor:
        result = base(x)
        result.view(-1, result.shape[-1]).addmm_(torch.nn.functional.linear(x.reshape(-1, x.shape[-1]), down), up)
        return result

    return forward
