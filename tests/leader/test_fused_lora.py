"""Fused LoRA layers: PEFT's own numbers and gradients, and PEFT itself where a layer is not plain."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from peft.tuners import lora

from sgpo_lib.leader import fused_lora as module
from sgpo_lib.leader.fused_lora import fused_lora


def make(n_in=6, n_out=4, rank=2, bias=False, dtype=torch.float32, **options) -> torch.nn.Module:
    """A model of one LoRA layer whose adapter is not zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(n_in, n_out, bias=bias, dtype=dtype))
        config = LoraConfig(r=rank, lora_alpha=3, target_modules=["0"], init_lora_weights=False, **options)
        return get_peft_model(model, config, autocast_adapter_dtype=dtype == torch.float32)


def results(model, x) -> list[torch.Tensor]:
    """Outputs, and gradients of a function of them for the input and the trained weights."""
    trained = [p for p in model.parameters() if p.requires_grad]
    y = model(x)
    return [y, *torch.autograd.grad((y.float() * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum(), [x, *trained])]


@settings(max_examples=25)
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    n_in=st.integers(1, 6),
    n_out=st.integers(1, 6),
    rank=st.integers(1, 4),
    bias=st.booleans(),
)
def test_outputs_and_gradients_are_pefts(shape, n_in, n_out, rank, bias):
    model = make(n_in, n_out, rank, bias, torch.float64)
    x = torch.randn(*shape, n_in, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    expected = results(model, x)
    with fused_lora(model):
        fused = results(model, x)
    torch.testing.assert_close(fused, expected)


def test_under_autocast_outputs_and_gradients_are_pefts_within_its_rounding():
    model = make(32, 16, 4, True)
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(1), requires_grad=True)
    exact = results(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        peft = results(model, x)
        with fused_lora(model):
            fused = results(model, x)
    assert [t.dtype for t in fused] == [t.dtype for t in peft]
    for ours, theirs, true in zip(fused, peft, exact, strict=True):
        assert (ours - true).norm() <= 1.5 * (theirs - true).norm() + 1e-3 * true.norm()


@pytest.fixture
def fused_calls(monkeypatch):
    """How many layers were fused."""
    calls = []
    right = module._LoraLinear.apply
    monkeypatch.setattr(module._LoraLinear, "apply", lambda *args: calls.append(1) or right(*args))
    return calls


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"lora_dropout": 0.5}, {"lora_bias": True, "bias": True}])
def test_only_plain_layers_are_fused_and_all_give_pefts_outputs(options, fused_calls):
    model, x = make(**options).eval(), torch.ones(2, 6)
    expected = model(x)
    with fused_lora(model):
        torch.testing.assert_close(model(x), expected)
    assert len(fused_calls) == (not options)


def test_a_disabled_or_merged_adapter_is_pefts_matter(fused_calls):
    model, x = make().eval(), torch.ones(2, 6)
    with fused_lora(model):
        with model.disable_adapter():
            torch.testing.assert_close(model(x), model.get_base_model()[0].base_layer(x))
        before = model(x)
        model.merge_adapter()
        torch.testing.assert_close(model(x), before)
    assert len(fused_calls) == 1


def test_a_trained_base_keeps_its_gradient():
    model, x = make(), torch.ones(2, 6, requires_grad=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    with fused_lora(model):
        model(x).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_after_the_block_layers_are_as_before():
    model = make()
    with pytest.raises(KeyError), fused_lora(model):
        raise KeyError
    assert all("forward" not in vars(layer) for layer in model.modules() if isinstance(layer, lora.Linear))
