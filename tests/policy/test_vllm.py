"""vLLM as the engine: its answers become the table that `generate` makes, and a wrong law is noticed."""

import sys
from types import SimpleNamespace
from typing import Literal

import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from sgpo_lib import annotation
from sgpo_lib.data.builtin_prompts import builtin_prompts
from sgpo_lib.params import GenerationParams, LoraParams, ModelParams
from sgpo_lib.policy import Policy, generate, sequence_log_probs
from sgpo_lib.policy import vllm as engine

PROMPTS = pd.DataFrame(
    {
        "prompt_id": [f"p{i}" for i in range(8)],
        "prompt": [[{"role": "user", "content": text}] for text in builtin_prompts()[:80:10]],
    }
)


class ByVllm(GenerationParams):
    engine: Literal["transformers", "vllm"] = "vllm"


GENERATION = ByVllm(temperature=0.7, max_new_tokens=8, max_prompt_length=96)


def load(folder, size=0.3, **options):
    """A policy that training has changed, unless `size` is 0."""
    lora = LoraParams(r=4, lora_alpha=8)
    params = ModelParams(name_or_path=str(folder), **{"device": "cpu", "dtype": "float32"} | options, lora=lora)
    policy = Policy.load(params)
    if size:
        policy.make_trainable(0)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in policy.model.parameters():
                if parameter.requires_grad:
                    parameter += (size * torch.randn(parameter.shape, generator=generator)).to(parameter)
    policy.model.eval()
    return policy


@pytest.fixture(scope="module")
def policy(tiny_model):
    return load(tiny_model)


class StandIn:
    """What is used of `vllm.LLM`, by plain transformers and PEFT, one sequence at a time."""

    started = 0
    serves_adapters = True
    reports_temperature = True

    def __init__(self, model, logprobs_mode, generation_config, dtype, revision=None, **options):
        assert (logprobs_mode, generation_config, dtype, revision) == ("processed_logprobs", "vllm", "float32", None)
        assert options in ({}, {"enable_lora": True, "max_lora_rank": 8})
        type(self).started += 1
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)

    @torch.inference_mode()
    def generate(self, prompts, sampling_params, *, lora_request):
        if lora_request and self.serves_adapters and not isinstance(self.model, PeftModel):
            self.model = PeftModel.from_pretrained(self.model, lora_request.lora_path).eval()
        return [
            self._answer(prompt["prompt_token_ids"], params)
            for prompt, params in zip(prompts, sampling_params, strict=True)
        ]

    def _answer(self, prompt_ids, params):
        random = np.random.default_rng(params.seed)
        ids, log_prob, reason = [], 0.0, "length"
        while len(ids) < params.max_tokens and reason == "length":
            logits = self.model(torch.tensor([[*prompt_ids, *ids]])).logits[0, -1].double()
            law = (logits / params.temperature).log_softmax(-1)
            ids.append(int(random.choice(len(law), p=law.exp().numpy() / law.exp().sum().item())))
            log_prob += (law if self.reports_temperature else logits.log_softmax(-1))[ids[-1]].item()
            reason = "stop" if ids[-1] in params.stop_token_ids else reason
        return output(prompt_ids, ids, log_prob, reason)


def output(prompt_ids, ids, log_prob, reason):
    """What is used of `vllm.RequestOutput`."""
    drawn = SimpleNamespace(token_ids=tuple(ids), cumulative_logprob=log_prob, finish_reason=reason)
    return SimpleNamespace(prompt_token_ids=prompt_ids, outputs=[drawn])


@pytest.fixture
def vllm(monkeypatch):
    class Vllm(StandIn):
        pass

    def sampling_params(temperature, max_tokens, stop_token_ids, seed, logprobs, detokenize):
        assert (logprobs, detokenize) == (0, False)
        return SimpleNamespace(temperature=temperature, max_tokens=max_tokens, stop_token_ids=stop_token_ids, seed=seed)

    def lora_request(lora_name, lora_int_id, lora_path):
        return SimpleNamespace(lora_path=lora_path)

    modules = SimpleNamespace(LLM=Vllm, SamplingParams=sampling_params, LoRARequest=lora_request)
    monkeypatch.setattr(engine, "_import_vllm", lambda: modules)
    return Vllm


# --- conversion


def test_the_same_tokens_become_the_same_table(policy):
    table = generate(policy, PROMPTS["prompt"].tolist(), 2, 0, 0.7, 8)
    assert table["finished"].nunique() == 2
    outputs = [
        output(row.prompt_ids, row.response_ids, row.sampling_log_prob, "stop" if row.finished else "length")
        for row in table.itertuples()
    ]
    jobs = list(zip(table["prompt_index"], table["sample"], strict=True))
    converted = engine.to_responses(policy, jobs, outputs)
    pd.testing.assert_frame_equal(converted, table, check_exact=False, atol=1e-4, rtol=0)
    for column in table.columns.drop("log_prob"):
        assert converted[column].tolist() == table[column].tolist(), column
    assert converted["response_ids"].map(type).eq(list).all()


@pytest.mark.parametrize(("ids", "reason"), [([5, 6], "stop"), ([], "abort"), ([5], "repetition")])
def test_an_answer_that_did_not_end_as_ours_do_is_refused(policy, ids, reason):
    with pytest.raises(RuntimeError, match=f"sample 1 of prompt 7 by '{reason}'.*engine: transformers"):
        engine.to_responses(policy, [(7, 1)], [output([1, 2], ids, -1.0, reason)])


# --- the whole way


def test_responses_by_vllm_have_the_form_and_the_log_probs_of_those_by_transformers(policy, vllm):
    responses = annotation.respond(policy, PROMPTS, GENERATION, seed=0)
    ours = annotation.respond(policy, PROMPTS, GenerationParams(**GENERATION.model_dump(exclude={"engine"})), seed=0)
    assert responses.dtypes.equals(ours.dtypes)
    for column in ("prompt_id", "prompt", "sample", "prompt_ids"):
        assert responses[column].tolist() == ours[column].tolist()
    for column, temperature in {"log_prob": 1.0, "sampling_log_prob": 0.7}.items():
        ids = responses["prompt_ids"], responses["response_ids"]
        np.testing.assert_allclose(
            responses[column], sequence_log_probs(policy, *ids, temperature=temperature), atol=1e-4
        )
    assert len({tuple(ids) for ids in responses["response_ids"]}) > len(PROMPTS)


def test_vllm_starts_once_for_all_shards_and_not_at_all_when_they_are_there(policy, vllm, tmp_path):
    whole = annotation.respond(policy, PROMPTS, GENERATION, seed=0)
    sharded = annotation.respond(policy, PROMPTS, GENERATION, seed=0, shards=tmp_path, shard_size=3)
    assert vllm.started == 2
    assert sharded["response_ids"].tolist() == whole["response_ids"].tolist()
    again = annotation.respond(policy, PROMPTS, GENERATION, seed=0, shards=tmp_path, shard_size=3)
    assert vllm.started == 2
    pd.testing.assert_frame_equal(again, sharded, check_exact=True)


def test_policy_without_adapter_is_served_from_its_folder(tiny_model, vllm):
    policy = load(tiny_model, size=0)
    responses = annotation.respond(policy, PROMPTS, GENERATION, seed=0, n_samples=1)
    np.testing.assert_array_equal(
        responses["log_prob"],
        sequence_log_probs(policy, responses["prompt_ids"], responses["response_ids"], batch_size=64),
    )


def test_another_temperature_than_the_one_asked_for_is_noticed(policy, vllm):
    vllm.reports_temperature = False
    with pytest.raises(RuntimeError, match=r"nats per token apart.*engine: transformers"):
        annotation.respond(policy, PROMPTS, GENERATION, seed=0)


@pytest.mark.parametrize("size", [0.3, 0.03])
def test_a_missing_adapter_is_noticed_also_where_it_changes_little(tiny_model, vllm, size):
    vllm.serves_adapters = False
    with pytest.raises(RuntimeError, match=r"log-probabilities are not the policy's.*engine: transformers"):
        annotation.respond(load(tiny_model, size), PROMPTS, GENERATION, seed=0)


def test_a_fresh_adapter_that_changes_nothing_is_no_reason_to_complain(tiny_model, vllm):
    policy = load(tiny_model, size=0)
    policy.make_trainable(0)
    policy.model.eval()
    assert len(annotation.respond(policy, PROMPTS, GENERATION, seed=0)) == 2 * len(PROMPTS)


def test_without_vllm_people_are_told_what_to_do(policy, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match=r"pip install vllm.*or set generation\.engine: transformers"):
        annotation.respond(policy, PROMPTS, GENERATION, seed=0)


def test_vllm_itself_answers_by_the_policys_law():
    pytest.importorskip("vllm", reason="vLLM is not installed")
    if not torch.cuda.is_available():
        pytest.skip("vLLM is installed, but there is no GPU")
    policy = load("smollm2-135m", size=0.02, device="cuda", dtype="bfloat16")
    responses = annotation.respond(policy, PROMPTS, GENERATION, seed=0)  # which checks the law
    assert responses["response_ids"].map(len).between(1, GENERATION.max_new_tokens).all()
