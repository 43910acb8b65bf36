"""The plan: its counts are the model's own, its memory is what autograd keeps, its times are near measured ones."""

import functools
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig

from sgpo_lib.data import hub
from sgpo_lib.params import LoraParams, ModelParams, load_params
from sgpo_lib.plan import report
from sgpo_lib.plan.machines import USABLE, find_machine
from sgpo_lib.plan.memory import memory
from sgpo_lib.plan.report import main
from sgpo_lib.plan.shape import KNOWN_CONFIGS, Shape, find_config
from sgpo_lib.plan.stages import Lengths, stages
from sgpo_lib.policy import Policy
from sgpo_lib.policy.embedded import EMBEDDED_MODELS, folder_of

ROOT = Path(__file__).parents[2]
PUBLISHED = {
    "alignment-handbook/zephyr-7b-sft-full": 7_241_732_096,
    "meta-llama/Meta-Llama-3-8B-Instruct": 8_030_261_248,
    "smollm2-135m": 134_515_008,
    "gemma3-270m": 268_098_176,
}
SMALL = LlamaConfig(
    vocab_size=500,
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=12,
    num_attention_heads=4,
    num_key_value_heads=2,
)


@pytest.fixture(autouse=True)
def no_hub(monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "why_silent", lambda endpoint: "no network in tests")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def shape(lora: bool, config=SMALL, on_gpu=False, dtype="float32") -> Shape:
    return Shape(config, ModelParams(name_or_path="small", dtype=dtype, lora=LoraParams(r=4) if lora else None), on_gpu)


def params_of(name: str, **overrides):
    return load_params(ROOT / "params" / f"{name}.yaml", overrides)


@functools.cache
def shape_of(name: str) -> Shape:
    model = params_of(name).model
    return Shape(find_config(model)[0], model, on_gpu=True)


def needs(name: str, n_gpus: int, **overrides) -> dict[str, dict[str, float]]:
    params = params_of(name, **overrides)
    limits = params.generation.max_prompt_length, params.generation.max_new_tokens
    return memory(params, shape_of(name), find_machine("H100-80GB", n_gpus), Lengths(*limits, *limits))


# --- counts


@pytest.mark.parametrize("name", KNOWN_CONFIGS)
def test_known_models_have_their_published_number_of_parameters(name, monkeypatch, tmp_path):
    monkeypatch.setenv("SGPO_CACHE", str(tmp_path))
    model = ModelParams(name_or_path=name)
    config, source = find_config(model)
    assert "table" in source
    whole = Shape(config, model, on_gpu=True)
    assert whole.total == whole.trainable == PUBLISHED[name]


@pytest.mark.parametrize("name", EMBEDDED_MODELS)
def test_known_sizes_of_embedded_models_are_those_of_the_converted_ones(name):
    if not folder_of(name).exists():
        pytest.skip(f"{name} has not been fetched")
    converted = find_config(ModelParams(name_or_path=name))[0]
    assert {key: getattr(converted, key) for key in KNOWN_CONFIGS[name]} == KNOWN_CONFIGS[name]


@pytest.mark.parametrize("lora", [True, False], ids=["adapter", "all weights"])
def test_counted_parameters_are_those_that_training_would_have(lora):
    planned = shape(lora)
    policy = Policy(AutoModelForCausalLM.from_config(SMALL), None, planned.params)
    policy.make_trainable(0)
    real = list(policy.model.parameters())
    assert planned.total == sum(p.numel() for p in real)
    assert planned.trainable == sum(p.numel() for p in real if p.requires_grad)


@pytest.mark.parametrize("lora", [True, False], ids=["adapter", "all weights"])
def test_flops_are_what_torch_counts_in_a_real_step(lora):
    planned, length = shape(lora), 32
    policy = Policy(AutoModelForCausalLM.from_config(SMALL, attn_implementation="eager"), None, planned.params)
    policy.make_trainable(0)
    body = (policy.model.get_base_model() if lora else policy.model).base_model
    with FlopCounterMode(display=False) as forward:
        hidden = body(torch.zeros(2, length, dtype=torch.long)).last_hidden_state
    with FlopCounterMode(display=False) as backward:
        hidden.sum().backward()
    # Plain attention computes the whole square of which the causal half is planned for: as if twice as long.
    square = 2 * length
    assert forward.get_total_flops() == pytest.approx(planned.forward_flops(2 * length, square, 0), rel=0.01)
    both = forward.get_total_flops() + backward.get_total_flops()
    assert both == pytest.approx(planned.training_flops(2 * length, square, 0, False), rel=0.05)


@pytest.mark.parametrize("lora", [True, False], ids=["adapter", "all weights"])
def test_activations_are_what_autograd_keeps_in_the_real_model(lora):
    planned = shape(lora)
    policy = Policy(AutoModelForCausalLM.from_config(SMALL, attn_implementation="eager"), None, planned.params)
    policy.make_trainable(0)
    policy.model.train()
    weights = {p.untyped_storage().data_ptr() for p in policy.model.parameters()}
    kept = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = (policy.model.get_base_model() if lora else policy.model).base_model(
            torch.zeros(2, 40, dtype=torch.long), use_cache=False
        )
    assert hidden is not None
    real = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert planned.activation_bytes(2, 40, checkpointing=False) == pytest.approx(real, rel=0.02)


def test_checkpointing_saves_memory_and_costs_another_forward_pass():
    planned = shape(lora=False)
    assert planned.activation_bytes(2, 64, True) < 0.25 * planned.activation_bytes(2, 64, False)
    flops = [planned.training_flops(1000, 64, 0, checkpointing) for checkpointing in (True, False)]
    assert flops[0] - flops[1] == pytest.approx(planned.forward_flops(1000, 64, 0))


def test_stages_count_what_the_notebooks_do():
    params = params_of("smollm2-135m", **{"model.dtype": "float32"})
    config = find_config(params.model)[0]
    made = {stage.name: stage for stage in stages(params, Shape(config, params.model, False), Lengths(40, 50, 128, 64))}
    rounds = [f"{step} {t}" for t in (1, 2, 3) for step in ("annotation", "follower", "leader")]
    assert list(made) == ["seed DPO", *rounds, "evaluation"]
    assert made["seed DPO"].generated == 128 * 4 * 50
    assert made["seed DPO"].trained == 128 * 2 * 2 * 90
    assert made["annotation 2"].generated == 96 * 2 * 50
    assert made["annotation 2"].scored == 96 * 2 * 90
    assert made["leader 3"].trained == 96 * 2 * 90
    assert made["evaluation"].generated == 5 * 128 * 50
    assert made["evaluation"].scored == 4 * 128 * 90


def test_answers_of_the_evaluation_are_planned_as_often_as_asked_and_once_more_at_each_kl():
    options = {"model.dtype": "float32", "evaluation.n_samples": 2, "evaluation.match_kl": [3, 6]}
    params = params_of("smollm2-135m", **options)
    config = find_config(params.model)[0]
    *_, made = stages(params, Shape(config, params.model, False), Lengths(40, 50, 128, 64))
    search = 4 * 2 * 3 * 96
    assert made.generated == ((2 + 3) + 4 * 2) * 128 * 2 * 50 + search * 50
    assert made.scored == (4 + 4 * 2) * 128 * 2 * 90 + 2 * search * 90


def test_calibration_prompts_are_planned_with_two_answers_as_rounds_have():
    params = params_of("study", **{"model.dtype": "float32", "data.n_calibration": 32})
    config = find_config(params.model)[0]
    made = stages(params, Shape(config, params.model, False), Lengths(40, 30, 128, 40))
    labels = params.data
    n_answers = labels.n_seed * labels.n_seed_samples + labels.n_calibration * params.annotation.n_samples
    assert made[0].generated == n_answers * 30


def test_a_prompt_is_read_once_for_all_its_answers():
    planned = shape(lora=False)
    one, four = (planned.decoding(8, samples, 8, 100, 10)[0] for samples in (1, 4))
    assert one - four == pytest.approx(6 * planned.forward_flops(100, 100, 1))


def test_labelled_data_is_planned_with_all_pairs_of_a_prompt_calibration_and_held_out_pairs():
    params = params_of("labelled-pairs", **{"data.n_calibration": 10, "model.scoring_dtype": "auto"})
    lengths = Lengths(40, 50, 128, 64)
    made = {stage.name: stage for stage in stages(params, shape_of("smollm2-135m"), lengths, pairs_per_prompt=4)}
    assert made["seed DPO"].trained == 2 * 32 * 4 * 90
    assert made["seed DPO"].scored == 2 * (32 + 10) * 4 * 90
    assert made["annotation 1"].scored == 2 * (96 + 10 * 4) * 90
    held_out = 2 * 3 * 64 * 4  # by the SFT model, seed DPO and round 1
    assert made["evaluation"].scored == (2 * 64 + held_out) * 90


# --- memory


def test_four_bit_weights_take_about_a_quarter_and_adapters_what_they_took():
    model = params_of("mistral-7b-lora").model
    plain, nf4 = (
        Shape(find_config(model)[0], model.model_copy(update={"quantization": kind}), on_gpu=True)
        for kind in (None, "nf4")
    )
    assert plain.frozen_bytes == 2 * (plain.total - plain.trainable)
    assert 3.5 < nf4.frozen_bytes / 2**30 < 4.1


def test_answering_holds_weights_and_what_its_batch_caches_in_float32_where_all_weights_are_trained():
    params, lengths = params_of("mistral-7b"), Lengths(1024, 300, 1024, 300)
    full = memory(params, shape_of("mistral-7b"), find_machine("H100-80GB"), lengths)["answering"]
    keys_and_values = 2 * 32 * 8 * 128 * 4  # both, layers, heads, their width, bytes
    assert full["KV cache"] == 64 * (1024 + 300) * keys_and_values
    assert full["weights"] == 4 * PUBLISHED[params.model.name_or_path]


def test_scoring_in_float32_widens_frozen_weights_of_16_bits():
    assert needs("mistral-7b-lora", 1)["answering"]["float32 copy for scoring"] == 0
    widened = needs("mistral-7b-lora", 1, **{"model.scoring_dtype": "float32"})["answering"]
    assert widened["float32 copy for scoring"] == 4 * PUBLISHED[params_of("mistral-7b").model.name_or_path]


def test_answers_sampled_in_16_bits_are_scored_by_the_policy_once_more_for_their_margins():
    made, flops = {}, {}
    for dtype in ("auto", "float32"):
        params = params_of("smollm2-135m", **{"model.scoring_dtype": dtype, "model.dtype": "bfloat16"})
        shape = Shape(SMALL, params.model, on_gpu=False)
        planned = stages(params, shape, Lengths(50, 40, 60, 64))
        made[dtype] = {stage.name: stage.scored for stage in planned}
        flops[dtype] = {stage.name: stage.flops.get("score") for stage in planned}
    assert made["float32"]["annotation 1"] == 2 * made["auto"]["annotation 1"] > 0
    assert made["float32"]["evaluation"] == made["auto"]["evaluation"] > 0
    assert flops["float32"]["evaluation"] < flops["auto"]["evaluation"]  # rates are of float32 where margins are


def test_sharding_divides_weights_gradients_and_optimiser():
    one, eight = (needs("mistral-7b", n)["leader"] for n in (1, 8))
    assert (
        one["weights"]
        == one["gradients"]
        == one["optimiser"] / 2
        == 4 * PUBLISHED[params_of("mistral-7b").model.name_or_path]
    )
    for part in ("weights", "gradients", "optimiser"):
        assert eight[part] == one[part] / 8
    assert eight["activations"] == one["activations"]


def test_accumulated_gradients_are_not_sharded():
    accumulating = needs("mistral-7b", 8, **{"leader.gradient_accumulation_steps": 2})["leader"]
    assert accumulating["gradients"] == 8 * needs("mistral-7b", 8)["leader"]["gradients"]


@pytest.mark.parametrize(
    ("name", "n_gpus", "fits"),
    [
        ("mistral-7b", 8, True),
        ("llama3-8b", 8, True),
        ("mistral-7b", 1, False),
        ("mistral-7b-lora", 1, True),
        ("llama3-8b-lora", 1, True),
    ],
)
def test_params_fit_the_gpus_that_they_say_they_are_for(name, n_gpus, fits):
    peak = max(sum(parts.values()) for parts in needs(name, n_gpus).values())
    assert (peak < USABLE * find_machine("H100-80GB").memory) == fits


# --- time


def test_times_predicted_from_two_steps_are_near_those_measured():
    spec = importlib.util.spec_from_file_location("benchmark", ROOT / "benchmarks" / "plan_predicts_measured_times.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    _, times = benchmark.compare(ROOT / "figures" / "smollm2-135m")
    held_out = times[times["calibrated on"] == ""]
    assert len(held_out) >= 5
    assert held_out["ratio"].between(0.67, 1.5).all()


# --- what is printed


def test_plan_says_cost_bounds_and_where_the_sizes_are_from(capsys):
    main([str(ROOT / "params" / "mistral-7b-lora.yaml"), "--gpu", "H100-80GB", "--price", "2.5"])
    said = capsys.readouterr().out
    for text in ("the table in sgpo_lib/shape.py", "upper bounds", "the price that you gave", "**Fits**", "| leader 3"):
        assert text in said


def test_plan_of_expected_lengths_says_when_it_does_not_fit(monkeypatch):
    huge = {"weights": 1e12}
    monkeypatch.setattr(report, "memory", lambda *_, **__: {"answering": huge, "seed": huge, "leader": huge})
    said = report.plan(params_of("mistral-7b"), find_machine("A100-40GB", 2), 100, 200)
    assert "DOES NOT FIT" in said
    assert "200 an answer expected" in said
    assert "cost" not in said.split("Not in the times")[1]


@pytest.mark.parametrize(
    ("name", "gib", "known"),
    [
        ("NVIDIA H100 80GB HBM3", 79.6, "H100-80GB"),
        ("NVIDIA A100-SXM4-40GB", 39.4, "A100-40GB"),
        ("NVIDIA A100-SXM4-80GB", 79.2, "A100-80GB"),
        ("NVIDIA GeForce RTX 4090", 23.6, "RTX4090-24GB"),
        ("NVIDIA RTX A6000", 47.5, "A6000-48GB"),
        ("NVIDIA L40S", 44.4, "L40S-48GB"),
        ("NVIDIA L4", 22.0, "L4-24GB"),
        ("NVIDIA A10G", 22.0, "A10G-24GB"),
        ("NVIDIA H200", 139.8, "H200-141GB"),
        ("Something Else", 16.0, None),
    ],
)
def test_gpus_are_known_by_the_names_that_torch_gives_them(monkeypatch, name, gib, known):
    properties = SimpleNamespace(name=name, total_memory=gib * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    assert find_machine().rates == (find_machine(known).rates if known else None)


@pytest.mark.parametrize(
    ("file", "options", "message"),
    [
        ("mistral-7b", ["--gpu", "H10"], r"no GPU 'H10'.*H100-80GB"),
        ("nothing", [], "No params file"),
    ],
)
def test_what_cannot_be_planned_is_explained(file, options, message):
    with pytest.raises(SystemExit, match=message):
        main([str(ROOT / "params" / f"{file}.yaml"), *options])


def test_unknown_model_without_a_hub_is_explained():
    with pytest.raises(ConnectionError, match=r"nobody/nothing.*no network.*zephyr"):
        find_config(ModelParams(name_or_path="nobody/nothing"))


def test_a_model_folder_is_planned_from_its_config(tiny_model):
    config, source = find_config(ModelParams(name_or_path=str(tiny_model)))
    assert source == "its folder"
    assert config.num_hidden_layers == 2
