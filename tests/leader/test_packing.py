"""Packed rows: the log-probabilities and gradients of plain rows, no look from one answer into another."""

import re
import types

import numpy as np
import pytest
import torch
from accelerate.utils import send_to_device
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    FalconMambaConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
    Qwen3NextConfig,
)

from sgpo_lib.leader.packing import check_packed, pack, packed_log_probs, row_length, why_not_packed

VOCABULARY = 50
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE, head_dim=8),
    "gemma3": Gemma3TextConfig(**SHAPE, head_dim=8, sliding_window=64, final_logit_softcapping=3.0),
    "gemma2, capped attention": Gemma2Config(**SHAPE, head_dim=8, sliding_window=64, final_logit_softcapping=3.0),
    "cohere, scaled logits": CohereConfig(**SHAPE, logit_scale=0.3),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.3, bos_token_id=None
    ),
}
PAIRS = (
    [[3, 4, 5, 6], [7], [8, 9, 10]],
    [[[11, 12, 13], [14, 15, 16, 17, 18]], [[19, 20], [21]], [[22], [22]]],
)


def make(config, implementation: str = "eager", adapter: bool = False) -> torch.nn.Module:
    """A model with random weights, and on demand an adapter that is not zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
        if adapter:
            model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    return model.eval()


@pytest.fixture(scope="module")
def llama():
    return make(CONFIGS["llama"])


def alone(model, prompts, answers) -> torch.Tensor:
    """Log-probability of each answer from a forward pass of its own, without any mask."""
    result = []
    for prompt, own in zip(prompts, answers, strict=True):
        for answer in own:
            logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
            result.append(logits.log_softmax(-1)[range(len(answer)), answer].sum())
    return torch.stack(result)


def gradients(model, log_probs: torch.Tensor) -> torch.Tensor:
    """Gradient of a function of all answers, as one vector."""
    model.zero_grad()
    (log_probs * torch.linspace(-1, 1, len(log_probs))).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


CASES = [(name, "eager", False) for name in CONFIGS] + [
    ("llama", "sdpa", False),
    ("qwen3", "sdpa", True),
    ("llama", "causal_blocks", True),
    ("gemma3", "causal_blocks", False),
    ("gpt2", "causal_blocks", False),
]


@pytest.mark.parametrize(("name", "implementation", "adapter"), CASES)
def test_packed_log_probs_and_gradients_are_those_of_plain_rows(name, implementation, adapter):
    model = make(CONFIGS[name], implementation, adapter)
    assert why_not_packed(model, 9) is None
    packed, plain = packed_log_probs(model, pack(*PAIRS)), alone(model, *PAIRS)
    torch.testing.assert_close(packed, plain, atol=1e-5, rtol=1e-6)
    by_packed, by_plain = gradients(model, packed), gradients(model, plain)
    assert (by_packed - by_plain).norm() <= 1e-5 * by_plain.norm()


tokens = st.integers(2, VOCABULARY - 1)
answers_of = st.lists(st.lists(tokens, min_size=1, max_size=12), min_size=1, max_size=5)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.lists(tokens, min_size=1, max_size=12), answers_of), min_size=1, max_size=4))
def test_any_lengths_and_any_number_of_answers_pack_exactly(llama, rows):
    prompts, answers = zip(*rows, strict=True)
    with torch.no_grad():
        packed, plain = packed_log_probs(llama, pack(prompts, answers)), alone(llama, prompts, answers)
    torch.testing.assert_close(packed, plain, atol=1e-5, rtol=1e-6)
    assert pack(prompts, answers).input_ids.shape[1] == max(map(row_length, prompts, answers))


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "causal_blocks"])
@pytest.mark.parametrize("changed", [0, 1])
def test_another_text_of_one_answer_leaves_the_other_bit_identical(implementation, changed):
    model = make(CONFIGS["llama"], implementation)
    prompts, answers = [[3, 4, 5]], [[[6, 7, 8, 9], [10, 11, 12]]]
    other = [[list(answer) for answer in answers[0]]]
    other[0][changed] = [token + 20 for token in other[0][changed]]
    before, after = (packed_log_probs(model, pack(prompts, texts)) for texts in (answers, other))
    assert before[1 - changed].item() == after[1 - changed].item()
    assert before[changed].item() != after[changed].item()


def test_neither_padding_nor_the_order_of_rows_matters(llama):
    together = packed_log_probs(llama, pack(*PAIRS))
    reversed_rows = packed_log_probs(llama, pack(*(part[::-1] for part in PAIRS)))
    torch.testing.assert_close(together.view(3, 2).flip(0).flatten(), reversed_rows, atol=1e-5, rtol=1e-6)
    one_by_one = [packed_log_probs(llama, pack([p], [a])) for p, a in zip(*PAIRS, strict=True)]
    torch.testing.assert_close(together, torch.cat(one_by_one), atol=1e-5, rtol=1e-6)


def test_a_temperature_divides_the_logits(llama):
    cooled = packed_log_probs(llama, pack(*PAIRS), temperature=0.5)
    llama.lm_head.weight.data *= 2
    try:
        torch.testing.assert_close(cooled, packed_log_probs(llama, pack(*PAIRS)), atol=1e-5, rtol=1e-6)
        assert gradients(llama, cooled).isfinite().all()
    finally:
        llama.lm_head.weight.data /= 2


def test_gradient_checkpointing_changes_nothing(llama):
    plain = gradients(llama, packed_log_probs(llama, pack(*PAIRS)))
    llama.gradient_checkpointing_enable({"use_reentrant": False})
    llama.train()
    try:
        torch.testing.assert_close(gradients(llama, packed_log_probs(llama, pack(*PAIRS))), plain)
    finally:
        llama.gradient_checkpointing_disable()
        llama.eval()


def test_training_on_packed_rows_gives_the_loss_curve_of_plain_ones():
    curves = []
    for log_probs in (lambda model: packed_log_probs(model, pack(*PAIRS)), lambda model: alone(model, *PAIRS)):
        model = make(CONFIGS["llama"], adapter=True)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        losses = []
        for _ in range(20):
            chosen, rejected = log_probs(model).view(-1, 2).T
            loss = -torch.nn.functional.logsigmoid(0.1 * (chosen - rejected)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves.append(losses)
    assert curves[0] == pytest.approx(curves[1], abs=1e-3)
    assert curves[0][-1] < curves[0][0] - 0.1


@pytest.mark.parametrize(
    ("prompts", "answers"), [([[]], [[[3]]]), ([[3]], [[]]), ([[3], [4]], [[[5]], [[], []]])], ids=str
)
def test_rows_without_a_prompt_or_an_answer_are_refused(prompts, answers):
    with pytest.raises(ValueError, match=r"leave such rows out"):
        pack(prompts, answers)


def test_an_attention_that_takes_no_mask_is_refused():
    with pytest.raises(ValueError, match="'eager' or 'sdpa', not 'flash_attention_2'"):
        pack(*PAIRS).attention_mask("flash_attention_2", torch.float32)


def _as_boolean(arguments):
    arguments["attention_mask"] = arguments["attention_mask"] == 0


def _without_mask(arguments):
    arguments["attention_mask"] = None


def _without_positions(arguments):
    arguments["position_ids"] = torch.arange(arguments["input_ids"].shape[1])[None]


def _causal_only(arguments):
    mask = arguments["attention_mask"]
    arguments["attention_mask"] = torch.full_like(mask, torch.finfo(mask.dtype).min).triu_(1)


@pytest.mark.parametrize("fault", [_as_boolean, _without_mask, _without_positions, _causal_only])
def test_a_model_that_is_silently_wrong_on_packed_rows_fails_the_check(llama, monkeypatch, fault):
    check_packed(llama, *PAIRS)
    right = llama.forward

    def wrong(self, **arguments):
        if "position_ids" in arguments:
            fault(arguments)
        return right(**arguments)

    monkeypatch.setattr(llama, "forward", types.MethodType(wrong, llama))
    with pytest.raises(RuntimeError, match="LlamaForCausalLM cannot be packed"):
        check_packed(llama, *PAIRS)


def test_the_check_switches_dropout_off_and_training_on_again():
    model = make(LlamaConfig(**SHAPE, attention_dropout=0.5)).train()
    check_packed(model, *PAIRS)
    assert model.training


def test_the_check_passes_in_the_noise_of_bfloat16():
    with torch.autocast("cpu", torch.bfloat16):
        check_packed(make(CONFIGS["llama"], adapter=True), *PAIRS)
    check_packed(make(CONFIGS["llama"]).bfloat16(), *PAIRS)


TINY_RECURRENT = Qwen3NextConfig(
    **SHAPE, head_dim=8, linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=8,
    linear_value_head_dim=8, layer_types=["linear_attention", "full_attention"], num_experts=2,
    num_experts_per_tok=1, moe_intermediate_size=8, shared_expert_intermediate_size=8,
)  # fmt: skip


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (TINY_RECURRENT, "linear_attention"),
        (
            FalconMambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, state_size=4),
            r"layers \(\w+\) pass on",
        ),
        (MistralConfig(**SHAPE, sliding_window=16), "sliding_window of 16 tokens is shorter .* 17"),
        (Gemma3TextConfig(**SHAPE, head_dim=8, sliding_window=16), "sliding_window of 16"),
    ],
    ids=["hybrid", "recurrent", "mistral", "gemma3"],
)
def test_a_model_that_cannot_be_packed_says_why(config, reason):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    assert re.search(reason, why_not_packed(model, 17))


def test_a_window_that_holds_the_longest_sequence_is_no_obstacle():
    model = make(MistralConfig(**SHAPE, sliding_window=16))
    assert why_not_packed(model, 16) is None
    prompts, answers = [[*range(2, 12)]], [[[*range(12, 18)], [*range(18, 24)], [*range(24, 30)]]]
    torch.testing.assert_close(
        packed_log_probs(model, pack(prompts, answers)), alone(model, prompts, answers), atol=1e-5, rtol=1e-6
    )


def test_another_attention_or_virtual_tokens_are_named():
    assert "'flex_attention'" in why_not_packed(make(CONFIGS["llama"], "flex_attention"), 9)
    adapter = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    assert "PREFIX_TUNING" in why_not_packed(get_peft_model(make(CONFIGS["llama"]), adapter), 9)


def test_rows_travel_to_a_device_as_any_batch_and_their_mask_is_made_there_without_waiting():
    rows = send_to_device({"packed": pack(*PAIRS)}, "meta")["packed"]
    for implementation in ("eager", "sdpa"):
        assert rows.attention_mask(implementation, torch.bfloat16).is_meta  # a look at a value would raise


def test_ids_may_be_arrays(llama):
    as_arrays = [np.array(p) for p in PAIRS[0]], [[np.array(a) for a in own] for own in PAIRS[1]]
    assert torch.equal(packed_log_probs(llama, pack(*as_arrays)), packed_log_probs(llama, pack(*PAIRS)))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_log_probs_and_gradients_are_made_without_the_host_waiting_for_a_device(implementation, monkeypatch):
    """On a device without values: what would need a look at one, and so make the host wait, raises."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)  # which torch cannot say of this device
    with torch.device("meta"):
        model = make(CONFIGS["llama"], implementation, adapter=True)
    log_probs = packed_log_probs(model, pack(*PAIRS).to("meta"))
    assert log_probs.shape == (6,)
    log_probs.sum().backward()
    assert all(p.grad.shape == p.shape for p in model.parameters() if p.requires_grad)
