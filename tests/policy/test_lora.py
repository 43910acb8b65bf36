"""Adapters in the type of their base: the same law within its rounding, and afterwards as before."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from sgpo_lib.leader.fused_lora import fused_lora
from sgpo_lib.policy import lora

IDS = torch.arange(40).reshape(4, 10)


def adapted(dtype, **options):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    model = get_peft_model(
        LlamaForCausalLM(config).to(dtype),
        LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **options),
    )
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    return model.eval()


@torch.inference_mode()
def log_probs(model):
    return model(IDS).logits.double().log_softmax(-1)


def changed_layers(model):
    return [module for module in model.modules() if "forward" in vars(module)]


def test_a_forward_that_was_there_before_is_there_again():
    model = adapted(torch.float32)
    before = log_probs(model)
    with fused_lora(model):
        own = {layer: vars(layer)["forward"] for layer in changed_layers(model)}
        with lora.in_compute_dtype(model):
            inside = log_probs(model)
        assert {layer: vars(layer)["forward"] for layer in changed_layers(model)} == own
    assert not changed_layers(model)
    torch.testing.assert_close(inside, before)


def _interrupted(model):
    with lora.in_compute_dtype(model):
        assert changed_layers(model)
        raise KeyboardInterrupt


def test_in_float32_it_is_pefts_own_law():
    model = adapted(torch.float32)
    before = log_probs(model)
    with lora.in_compute_dtype(model):
        assert len(changed_layers(model)) == 14  # seven in each of two layers
        torch.testing.assert_close(log_probs(model), before, atol=1e-5, rtol=0)
    with model.disable_adapter():
        assert (log_probs(model) - before).abs().max() > 0.1  # the test would notice an adapter left out


def test_in_bfloat16_it_is_as_near_to_the_exact_law_as_pefts():
    model = adapted(torch.bfloat16)
    by_peft = log_probs(model)
    with lora.in_compute_dtype(model):
        narrow = log_probs(model)
    exact = log_probs(model.double())
    assert (narrow - exact).square().mean().sqrt() < 1.3 * (by_peft - exact).square().mean().sqrt()


def test_afterwards_layers_and_weights_are_as_before_also_after_an_exception():
    model = adapted(torch.bfloat16)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = log_probs(model)
    with pytest.raises(KeyboardInterrupt):
        _interrupted(model)
    assert not changed_layers(model)
    assert torch.equal(log_probs(model), before)
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == weights[name].dtype
        assert torch.equal(tensor, weights[name])


@pytest.mark.parametrize(
    "prepare",
    [
        lambda: adapted(torch.float32, use_dora=True),
        lambda: adapted(torch.float32, lora_dropout=0.5).train(),
        lambda: adapted(torch.float32, lora_bias=True),
    ],
    ids=["DoRA", "training", "bias"],
)
def test_layers_that_do_more_than_add_a_product_stay_pefts(prepare):
    model = prepare()
    with lora.in_compute_dtype(model):
        assert not changed_layers(model)


def test_an_adapter_that_is_switched_off_or_merged_stays_so():
    model = adapted(torch.float32)
    with model.disable_adapter(), lora.in_compute_dtype(model):
        assert not changed_layers(model)
    model.merge_adapter()
    with lora.in_compute_dtype(model):
        assert not changed_layers(model)
