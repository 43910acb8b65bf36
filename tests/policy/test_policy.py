"""The language model: its samples follow its law, its scores are that law's, and what is saved comes back."""

import copy
import json
import re
import shutil
import time

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from scipy import stats
from transformers import AutoModelForCausalLM, AutoTokenizer

from sgpo_lib.data.builtin_prompts import builtin_prompts
from sgpo_lib.leader.packing import pack
from sgpo_lib.params import LoraParams, ModelParams
from sgpo_lib.policy import (
    Policy,
    choose_device,
    embed,
    generate,
    loading,
    merge,
    sampled_kl,
    scoring,
    sequence_log_probs,
)

NOBODY_LISTENS = "http://127.0.0.1:9"
TEXTS = ["Hello?", *builtin_prompts()[:200:29], "Describe the sea. " * 5]
PROMPTS = [[{"role": "user", "content": text}] for text in TEXTS]


def load(folder, lora=True, weights=None, **options):
    lora = LoraParams(r=4, lora_alpha=8) if lora is True else lora or None
    options = {"device": "cpu", "dtype": "float32", "lora": lora} | options
    return Policy.load(ModelParams(name_or_path=str(folder), **options), weights)


def changed(model, target, edit):
    """A copy of a model folder in which `edit` has changed a file's JSON, text or tensors, named first."""
    folder = shutil.copytree(model, target)
    name, change = edit
    if name.endswith(".safetensors"):
        save_file(change(load_file(folder / name)), folder / name, {"format": "pt"})
    elif name.endswith(".json"):
        (folder / name).write_text(json.dumps(change(json.loads((folder / name).read_text()))))
    else:
        (folder / name).write_text(change((folder / name).read_text()))
    return folder


def disturb(policy, seed=0, size=0.3):
    """Change what training would change: the adapter, or all weights."""
    policy.make_trainable(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                scale = size if isinstance(policy.model, PeftModel) else 0.1 * size
                parameter += scale * torch.randn(parameter.shape, generator=generator)
    policy.model.eval()
    return policy


def sample(policy, prompts=PROMPTS, n_samples=2, seed=0, temperature=0.7, max_new_tokens=10, **options):
    return generate(policy, prompts, n_samples, seed, temperature, max_new_tokens, **options)


def by_hand(model, prompt_ids, response_ids, temperature=1.0):
    """log pi(y|x) of one sequence, without batch, padding or cache."""
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt_ids, *response_ids]])).logits[0, len(prompt_ids) - 1 : -1]
    log_probs = (logits.double() / temperature).log_softmax(-1)
    return log_probs.gather(-1, torch.tensor(response_ids)[:, None]).sum().item()


@pytest.fixture(scope="module")
def sft(tiny_model):
    return load(tiny_model)


@pytest.fixture(scope="module")
def trained(tiny_model):
    return disturb(load(tiny_model))


@pytest.fixture(scope="module")
def responses(trained):
    return sample(trained)


# --- sampling


def test_same_seed_gives_the_same_responses_and_another_seed_others(trained, responses):
    again = sample(trained)
    assert again.equals(responses)
    other = sample(trained, seed=1)
    assert (other["response_ids"] != responses["response_ids"]).mean() > 0.9


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_responses_do_not_depend_on_the_batch_they_are_drawn_in(trained, responses, batch_size):
    other = sample(trained, batch_size=batch_size)
    assert other["response_ids"].tolist() == responses["response_ids"].tolist()
    for column in ("log_prob", "sampling_log_prob"):
        np.testing.assert_allclose(other[column], responses[column], atol=1e-4)


def test_more_samples_of_a_prompt_begin_with_the_same_ones(trained, responses):
    more = sample(trained, n_samples=5)
    first = more[more["sample"] < 2]["response_ids"]
    assert first.tolist() == responses["response_ids"].tolist()


def test_samples_of_one_prompt_differ(responses):
    pairs = responses.groupby("prompt_index")["response_ids"].agg(list)
    assert all(one != two for one, two in pairs)


def test_rows_are_ordered_by_prompt_and_sample_and_hold_their_prompts(trained, responses):
    assert responses["prompt_index"].tolist() == list(np.repeat(range(len(PROMPTS)), 2))
    assert responses["sample"].tolist() == [0, 1] * len(PROMPTS)
    encoded = trained.encode_prompts(PROMPTS)
    assert responses["prompt_ids"].tolist() == [encoded[i] for i in responses["prompt_index"]]


def test_finished_responses_end_with_their_only_stop_token_and_others_at_the_limit(trained, responses):
    (stop,) = trained.stop_tokens
    assert responses["finished"].nunique() == 2
    for row in responses.itertuples():
        assert row.response_ids.count(stop) == row.finished
        assert (row.response_ids[-1] == stop) == row.finished
        assert row.finished or len(row.response_ids) == 10
        assert "<|im_end|>" not in row.response


def test_first_token_follows_the_softmax_of_the_logits_at_the_temperature(trained):
    n, temperature = 4000, 0.5
    drawn = sample(trained, PROMPTS[:1], n, seed=3, temperature=temperature, max_new_tokens=1, batch_size=2000)
    counts = np.bincount([ids[0] for ids in drawn["response_ids"]], minlength=600)
    with torch.inference_mode():
        logits = trained.model(torch.tensor([drawn["prompt_ids"][0]])).logits[0, -1]

    def p_value(temperature):
        expected = n * (logits.double() / temperature).softmax(-1).numpy()
        often = expected >= 5
        seen = np.append(counts[often], counts[~often].sum())
        return stats.chisquare(seen, np.append(expected[often], expected[~often].sum())).pvalue

    assert p_value(temperature) > 0.01
    assert p_value(1.1 * temperature) < 1e-4  # the test would notice


def test_tokens_of_different_positions_are_drawn_independently(trained):
    drawn = sample(trained, PROMPTS[:1], 400, temperature=100.0, max_new_tokens=2)
    pairs = np.array([ids for ids in drawn["response_ids"] if len(ids) == 2])
    assert abs(stats.spearmanr(pairs[:, 0], pairs[:, 1]).statistic) < 0.2


# --- scoring


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_scores_equal_those_of_one_unpadded_sequence_at_a_time(trained, responses, temperature):
    scores = sequence_log_probs(
        trained, responses["prompt_ids"], responses["response_ids"], temperature=temperature, batch_size=7
    )
    expected = [by_hand(trained.model, row.prompt_ids, row.response_ids, temperature) for row in responses.itertuples()]
    np.testing.assert_allclose(scores, expected, atol=1e-4)


@pytest.mark.parametrize(("column", "temperature"), [("log_prob", 1.0), ("sampling_log_prob", 0.7)])
def test_log_probs_of_sampling_equal_those_of_scoring(trained, responses, column, temperature):
    scores = sequence_log_probs(trained, responses["prompt_ids"], responses["response_ids"], temperature=temperature)
    np.testing.assert_allclose(responses[column], scores, atol=1e-4)


@pytest.mark.parametrize(
    "defaults",
    [
        {"do_sample": True, "temperature": 0.01, "top_k": 3, "top_p": 0.1},
        {"repetition_penalty": 5.0},
        {"suppress_tokens": list(range(2, 300)), "min_new_tokens": 5, "no_repeat_ngram_size": 1},
    ],
    ids=["top-k and top-p", "repetition penalty", "suppressed tokens"],
)
def test_samples_follow_the_models_law_whatever_its_own_generation_defaults(tiny_model, tmp_path, sft, defaults):
    folder = shutil.copytree(tiny_model, tmp_path / "with defaults")
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | defaults))
    drawn, plain = sample(load(folder)), sample(sft)
    assert drawn["response_ids"].tolist() == plain["response_ids"].tolist()
    np.testing.assert_allclose(drawn["log_prob"], plain["log_prob"], atol=1e-4)


def test_scores_do_not_depend_on_how_many_logits_are_held_at_once(trained, responses, monkeypatch):
    scores = [sequence_log_probs(trained, responses["prompt_ids"], responses["response_ids"])]
    monkeypatch.setattr(scoring, "_LOGIT_POSITIONS", 12)
    scores += [sequence_log_probs(trained, responses["prompt_ids"], responses["response_ids"])]
    np.testing.assert_allclose(*scores, atol=1e-4)


@pytest.fixture(scope="module")
def bfloat16(tiny_model):
    """A policy that answers in bfloat16, and the margins of its own answers in float64, in reward units."""
    policy = disturb(load(tiny_model, dtype="bfloat16"))
    drawn = sample(policy, PROMPTS * 3, temperature=1.0, max_new_tokens=40)
    exact = copy.deepcopy(policy.model).double()
    scores = [by_hand(exact, row.prompt_ids, row.response_ids) for row in drawn.itertuples()]
    with exact.disable_adapter():
        reference = [by_hand(exact, row.prompt_ids, row.response_ids) for row in drawn.itertuples()]
    return policy, drawn, margins(np.array(scores), np.array(reference))


def margins(scores, reference, beta=0.1):
    return beta * (scores - reference).reshape(-1, 2) @ [1, -1]


def rms_error(policy, drawn, exact, **options):
    ids = drawn["prompt_ids"], drawn["response_ids"]
    own, reference = (sequence_log_probs(policy, *ids, reference=which, **options) for which in (False, True))
    return np.sqrt(np.mean((margins(own, reference) - exact) ** 2))


def test_margins_of_a_bfloat16_policy_are_exact_to_a_hundredth_of_the_papers_radius(bfloat16):
    policy, drawn, exact = bfloat16
    assert rms_error(policy, drawn, exact) < 1e-4
    policy = copy.copy(policy)
    policy.params = policy.params.model_copy(update={"scoring_dtype": "auto"})
    assert rms_error(policy, drawn, exact) > 0.01  # the test would notice


def test_scores_of_a_bfloat16_policy_do_not_depend_on_the_batch(bfloat16):
    policy, drawn, _ = bfloat16
    ids = drawn["prompt_ids"], drawn["response_ids"]
    one, all_ = (sequence_log_probs(policy, *ids, batch_size=size) for size in (1, 64))
    np.testing.assert_allclose(one, all_, atol=1e-3)


def test_sampled_kl_in_bfloat16_is_that_of_float32_up_to_noise_around_0(bfloat16):
    policy, drawn, _ = bfloat16
    ids = drawn["prompt_ids"], drawn["response_ids"]
    own, reference = (sequence_log_probs(policy, *ids, reference=which) for which in (False, True))
    exact, noisy = own - reference, sampled_kl(policy, drawn, temperature=1.0)
    noise = noisy - exact
    assert 0 < noise.std() < 0.1 * exact.std()
    assert abs(noise.mean()) < 4 * noise.std() / np.sqrt(len(noise)) < 0.1 * exact.mean()


def test_sampled_kl_takes_one_pass_and_no_wider_copy_of_the_weights(bfloat16, monkeypatch):
    policy, drawn, _ = bfloat16
    passes, score = [], scoring._padded_scores
    monkeypatch.setattr(scoring, "_can_be_packed", lambda *_: False)
    monkeypatch.setattr(
        scoring, "_padded_scores", lambda *args: passes.append((args[1].dtype, len(args[2]))) or score(*args)
    )
    sampled_kl(policy, drawn, temperature=1.0)
    assert {dtype for dtype, _ in passes} == {torch.bfloat16}
    assert sum(n for _, n in passes) == len(drawn)


def test_packing_is_checked_once_for_each_type_of_weights(tiny_model, ragged, monkeypatch):
    checked = []
    monkeypatch.setattr("sgpo_lib.leader.packed_batches.check_packed", lambda model, *_: checked.append(model.dtype))
    policy = disturb(load(tiny_model, dtype="bfloat16"))
    for dtype in ("float32", "auto", "float32"):
        for reference in (False, True):
            sequence_log_probs(policy, *ragged[:2], reference=reference, dtype=dtype)
    assert checked == [torch.float32, torch.bfloat16]


def test_scoring_leaves_the_weights_as_they_were_and_trainable(tiny_model):
    policy = disturb(load(tiny_model, dtype="bfloat16"))
    before = {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}
    with policy.scoring(reference=True) as model:
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    sequence_log_probs(policy, [[1, 2]], [[3]])
    after = policy.model.state_dict()
    assert all(
        after[name].dtype == tensor.dtype and torch.equal(after[name], tensor) for name, tensor in before.items()
    )
    policy.model(torch.tensor([[1, 2, 3]])).logits.sum().backward()


@pytest.fixture
def ragged(trained):
    """Prompts with one to five answers of different lengths each, in no order, and their scores one by one."""
    rng = np.random.default_rng(0)
    prompts = trained.encode_prompts(PROMPTS)
    ids = [
        (prompt, rng.integers(2, 600, rng.integers(1, 12)).tolist())
        for i, prompt in enumerate(prompts)
        for _ in range(i % 5 + 1)
    ]
    ids = [ids[i] for i in rng.permutation(len(ids))]
    return *zip(*ids, strict=True), [by_hand(trained.model, *one) for one in ids]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_answers_that_share_their_prompts_computation_have_their_scores_alone(trained, ragged, batch_size, monkeypatch):
    packs = []
    monkeypatch.setattr("sgpo_lib.policy.scoring.pack", lambda *rows: packs.append(rows) or pack(*rows))
    *ids, expected = ragged
    np.testing.assert_allclose(sequence_log_probs(trained, *ids, batch_size=batch_size), expected, rtol=1e-5)
    assert bool(packs) == (batch_size > 1)
    assert all(sum(map(len, answers)) <= batch_size for _, answers in packs)


def test_a_model_that_cannot_be_packed_is_scored_with_a_word_of_warning(trained, ragged, monkeypatch):
    *ids, expected = ragged
    monkeypatch.setattr("sgpo_lib.leader.packed_batches.why_not_packed", lambda *_: "its layers are recurrent")
    with pytest.warns(UserWarning, match="its layers are recurrent"):
        scores = sequence_log_probs(trained, *ids)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_an_answer_without_a_token_has_log_probability_0(trained):
    assert sequence_log_probs(trained, [[3, 4]] * 3, [[], [5, 6], [7]])[0] == 0
    assert sequence_log_probs(trained, [[3, 4]], [[]]).tolist() == [0]


def test_scoring_nothing_gives_nothing(sft):
    assert sequence_log_probs(sft, [], []).shape == (0,)


# --- the reference


def test_reference_of_an_adapter_is_the_sft_model(sft, trained, responses):
    ids = responses["prompt_ids"], responses["response_ids"]
    reference = sequence_log_probs(trained, *ids, reference=True)
    np.testing.assert_array_equal(reference, sequence_log_probs(sft, *ids))
    assert np.abs(reference - responses["log_prob"]).mean() > 0.1


def test_policy_without_adapter_is_its_own_reference(sft, responses):
    ids = responses["prompt_ids"], responses["response_ids"]
    np.testing.assert_array_equal(sequence_log_probs(sft, *ids, reference=True), sequence_log_probs(sft, *ids))


def test_fresh_adapter_changes_nothing_and_is_drawn_with_the_seed(tiny_model, sft, responses):
    ids = responses["prompt_ids"], responses["response_ids"]
    drawn = []
    for seed in (0, 0, 1):
        policy = load(tiny_model)
        policy.make_trainable(seed)
        np.testing.assert_allclose(sequence_log_probs(policy, *ids), sequence_log_probs(sft, *ids), atol=1e-4)
        drawn.append(torch.cat([p.flatten() for p in policy.model.parameters() if p.requires_grad]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_reference_of_full_fine_tuning_is_the_sft_model(tiny_model, sft, responses):
    ids = responses["prompt_ids"], responses["response_ids"]
    policy = disturb(load(tiny_model, lora=False))
    reference = sequence_log_probs(policy, *ids, reference=True)
    np.testing.assert_array_equal(reference, sequence_log_probs(sft, *ids))
    assert np.abs(sequence_log_probs(policy, *ids) - reference).mean() > 0.1


# --- saving and switching


@pytest.mark.parametrize("lora", [True, False], ids=["adapter", "all weights"])
def test_saved_policy_loads_with_the_same_log_probs(tiny_model, tmp_path, responses, lora):
    ids = responses["prompt_ids"], responses["response_ids"]
    policy = disturb(load(tiny_model, lora))
    policy.save(tmp_path / "policy")
    loaded = load(tiny_model, lora, tmp_path / "policy")
    np.testing.assert_array_equal(sequence_log_probs(loaded, *ids), sequence_log_probs(policy, *ids))
    np.testing.assert_array_equal(
        sequence_log_probs(loaded, *ids, reference=True), sequence_log_probs(policy, *ids, reference=True)
    )


def test_small_steps_of_all_weights_survive_saving_and_loading(tiny_model, tmp_path, responses):
    folder = tmp_path / "sft"
    AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    ids = responses["prompt_ids"], responses["response_ids"]

    def gain(policy):
        return (sequence_log_probs(policy, *ids) - sequence_log_probs(policy, *ids, reference=True)).sum()

    policy = load(folder, lora=False, dtype="bfloat16")
    policy.make_trainable(0)
    for prompt, response in zip(*ids, strict=True):
        labels = torch.tensor([[-100] * len(prompt) + response])
        policy.model(torch.tensor([[*prompt, *response]]), labels=labels).loss.backward()
    for parameter in policy.model.parameters():  # an eightieth of a step of bfloat16, at the scale of these weights
        parameter.data -= 3e-5 * parameter.grad.sign()
    trained = gain(policy)
    policy.save(tmp_path / "policy")
    loaded = load(folder, lora=False, weights=tmp_path / "policy", dtype="bfloat16")
    assert gain(loaded) == pytest.approx(trained, rel=1e-4)
    drawn = sample(loaded)
    np.testing.assert_allclose(
        drawn["log_prob"], sequence_log_probs(policy, drawn["prompt_ids"], drawn["response_ids"]), atol=1e-4
    )
    loaded.model.bfloat16()
    assert gain(loaded) < 0.3 * trained  # the test would notice


@pytest.mark.parametrize("lora", [True, False], ids=["adapter", "all weights"])
def test_saved_policy_names_no_place_on_this_machine(tiny_model, tmp_path, monkeypatch, lora):
    monkeypatch.setattr(loading, "unpack", lambda name: tiny_model)
    policy = disturb(load("smollm2-135m", lora))
    policy.save(tmp_path / "policy")
    texts = [file.read_text() for file in (tmp_path / "policy").iterdir() if file.suffix != ".safetensors"]
    assert not [text for text in texts if str(tiny_model) in text]
    if lora:
        adapter = json.loads((tmp_path / "policy" / "adapter_config.json").read_text())
        assert adapter["base_model_name_or_path"] == "smollm2-135m"


def test_card_of_an_adapter_says_how_to_load_its_base(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "unpack", lambda name: tiny_model)
    monkeypatch.setattr("sgpo_lib.policy.embedded.unpack", lambda name: tiny_model)
    policy = disturb(load("smollm2-135m"))
    policy.save(tmp_path / "policy")
    card = (tmp_path / "policy" / "README.md").read_text()
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct" in card
    code, names = card.split("```python")[1].split("```")[0], {}
    exec(code.replace("path/of/this/folder", str(tmp_path / "policy")), names)
    row = [1, 2, 3], [4, 5]
    names["model"].float().eval()
    assert by_hand(names["model"], *row) == pytest.approx(sequence_log_probs(policy, *[[x] for x in row])[0], abs=1e-3)


@pytest.mark.parametrize("lora", [True, False], ids=["adapter", "all weights"])
def test_saved_policy_loads_with_plain_peft_and_transformers(tiny_model, tmp_path, responses, lora):
    policy = disturb(load(tiny_model, lora))
    policy.save(tmp_path / "policy")
    base = AutoModelForCausalLM.from_pretrained(tiny_model if lora else tmp_path / "policy", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, tmp_path / "policy") if lora else base
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "policy")
    row = responses.iloc[0]
    ids = tokenizer.apply_chat_template(PROMPTS[0], add_generation_prompt=True, return_dict=False)
    assert ids == row["prompt_ids"]
    own = sequence_log_probs(policy, [ids], [row["response_ids"]])[0]
    assert by_hand(model.eval(), ids, row["response_ids"]) == pytest.approx(own, abs=1e-4)


def test_loaded_adapter_can_be_trained_further_and_only_it(tiny_model, tmp_path):
    disturb(load(tiny_model)).save(tmp_path / "policy")
    policy = load(tiny_model, weights=tmp_path / "policy")
    policy.make_trainable(0)
    trainable = [name for name, parameter in policy.model.named_parameters() if parameter.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)


@pytest.mark.parametrize("lora", [True, False], ids=["adapter", "all weights"])
def test_policy_switches_between_weights_and_back_to_sft_exactly(tiny_model, tmp_path, sft, responses, lora):
    ids = responses["prompt_ids"], responses["response_ids"]
    expected = {None: sequence_log_probs(sft, *ids)}
    for seed in (1, 2):
        folder = tmp_path / str(seed)
        disturb(load(tiny_model, lora), seed).save(folder)
        expected[folder] = sequence_log_probs(load(tiny_model, lora, folder), *ids)
    one, two = tmp_path / "1", tmp_path / "2"
    assert np.abs(expected[one] - expected[two]).mean() > 0.1

    policy = load(tiny_model, lora)
    for weights in (None, one, two, None, two, None):
        policy.use(weights)
        np.testing.assert_array_equal(sequence_log_probs(policy, *ids), expected[weights])
        np.testing.assert_array_equal(sequence_log_probs(policy, *ids, reference=True), expected[None])


# --- tokens


@pytest.mark.parametrize("response", ["Bread rises.", "", "  two\nlines  ", "naïve 😀"])
def test_given_response_is_encoded_up_to_the_stop_token(sft, response):
    (prompt_ids,) = sft.encode_prompts(PROMPTS[:1])
    _, (ids,) = sft.encode_turns(PROMPTS[0], prompt_ids, [response])
    assert ids[-1] in sft.stop_tokens
    assert sft.tokenizer.decode(ids[:-1]) == response


def test_sampled_and_finished_response_is_encoded_as_it_was_sampled(sft):
    (prompt_ids,) = sft.encode_prompts(PROMPTS[:1])
    _, (ids,) = sft.encode_turns(PROMPTS[0], prompt_ids, ["What is the best part?"])
    text = sft.tokenizer.decode(ids, skip_special_tokens=True)
    assert sft.encode_turns(PROMPTS[0], prompt_ids, [text]) == (prompt_ids, [ids])


def test_conversations_are_encoded_up_to_where_the_assistant_starts(sft):
    prompt = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Hi!"},
        {"role": "user", "content": "How are you?"},
    ]
    (ids,) = sft.encode_prompts([prompt])
    text = sft.tokenizer.decode(ids)
    assert text.endswith("<|im_start|>user\nHow are you?<|im_end|>\n<|im_start|>assistant\n")
    assert text.count("<|im_start|>") == 5


def test_too_long_prompts_lose_their_first_tokens_with_a_warning(sft):
    whole = sft.encode_prompts(PROMPTS)
    limit = sorted(map(len, whole))[-2]
    with pytest.warns(UserWarning, match=rf"1 of {len(whole)} prompts are longer than .*max_prompt_length={limit}"):
        cut = sft.encode_prompts(PROMPTS, limit)
    assert cut == [ids[-limit:] for ids in whole]
    assert max(map(len, cut)) == limit < max(map(len, whole))


def test_prompts_within_the_limit_pass_without_a_warning(sft, recwarn):
    whole = sft.encode_prompts(PROMPTS)
    assert sft.encode_prompts(PROMPTS, max(map(len, whole))) == whole
    assert not [warning for warning in recwarn if "max_prompt_length" in str(warning.message)]


ODD_TEMPLATES = {
    "opens a thought": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
    "ends in a space": "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}",
    "adds an empty thought": "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}<think>\n\n</think>\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "names the role otherwise": "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant, now]{% endif %}",
}


@pytest.mark.parametrize("template", ODD_TEMPLATES.values(), ids=ODD_TEMPLATES)
def test_given_responses_are_whole_whatever_the_generation_prompt(tiny_model, template):
    policy = load(tiny_model)
    policy.tokenizer.chat_template = template
    (asked,) = policy.encode_prompts(PROMPTS[:1])
    texts = ["Yes, tea is good for you.", "No.", "What is the best part?"]
    prompt_ids, answers = policy.encode_turns(PROMPTS[0], asked, texts)
    assert asked[: len(prompt_ids)] == prompt_ids
    for text, ids in zip(texts, answers, strict=True):
        turn = [*PROMPTS[0], {"role": "assistant", "content": text}]
        whole = policy.tokenizer.apply_chat_template(turn, tokenize=False).rstrip("\n")
        assert policy.tokenizer.decode([*prompt_ids, *ids]) == whole
        assert policy.tokenizer.decode(ids[:-1]).endswith(text)
        assert ids[-1] in policy.stop_tokens


def test_a_template_that_shares_nothing_between_prompt_and_turn_is_refused(tiny_model):
    policy = load(tiny_model)
    policy.tokenizer.chat_template = (
        "{% if add_generation_prompt %}Go: {% else %}{% for m in messages %}{{ m.content }}{% endfor %}{% endif %}"
    )
    (asked,) = policy.encode_prompts(PROMPTS[:1])
    with pytest.raises(ValueError, match=r"chat template of .*tiny"):
        policy.encode_turns(PROMPTS[0], asked, ["No."])


def test_a_conversation_without_tokens_is_refused_by_its_number(tiny_model):
    policy = load(tiny_model)
    policy.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(ValueError, match=r"Conversation 1 .* has no tokens"):
        policy.encode_prompts([PROMPTS[0], [{"role": "user", "content": ""}]])


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}", "no system role"),
        ("", "leaves out system messages"),
    ],
    ids=["raises", "drops it"],
)
def test_a_system_message_that_the_template_does_not_take_is_refused(tiny_model, template, message):
    policy = load(tiny_model)
    policy.tokenizer.chat_template = template + "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    policy.encode_prompts(PROMPTS)
    with pytest.raises(ValueError, match=rf"template of .*tiny.*{message}"):
        policy.encode_prompts([[{"role": "system", "content": "Be kind."}, *PROMPTS[0]]])


@pytest.mark.parametrize(
    "use",
    [
        lambda policy: sample(policy, PROMPTS[-1:], max_new_tokens=250),
        lambda policy: sequence_log_probs(policy, [[1] * 200], [[2] * 57]),
        lambda policy: embed(policy, [[{"role": "user", "content": "A long text. " * 100}]], 300),
    ],
    ids=["generate", "score", "embed"],
)
def test_text_past_the_models_context_is_refused_at_once(sft, use):
    with pytest.raises(ValueError, match=r"reads 256 at most"):
        use(sft)


# --- what cannot be loaded


def without(*names):
    return lambda values: {name: value for name, value in values.items() if name not in names}


def with_nan(tensors):
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = torch.nan
    return tensors


def with_fewer_embeddings(tensors):
    return tensors | {name: tensors[name][:590].clone() for name in ("model.embed_tokens.weight", "lm_head.weight")}


@pytest.mark.parametrize(
    ("edits", "error", "message"),
    [
        ([("tokenizer_config.json", without("eos_token"))], ValueError, "no end-of-sequence token"),
        ([("chat_template.jinja", lambda text: "{{ messages[0].content }}")], ValueError, "leaves out what is said"),
        (
            [
                ("config.json", lambda values: values | {"vocab_size": 590}),
                ("model.safetensors", with_fewer_embeddings),
            ],
            ValueError,
            "token ids up to 599, but the model embeds 590",
        ),
        ([("model.safetensors", with_nan)], FloatingPointError, r"layers\.1\.mlp\.up_proj.* has 1 values"),
        ([("model.safetensors", without("model.norm.weight"))], ValueError, r"lacks 1 tensors.*model\.norm"),
    ],
    ids=["no end of sequence", "template without answers", "small embedding", "NaN", "missing weights"],
)
def test_a_model_that_cannot_be_used_is_refused_when_it_is_loaded(tiny_model, tmp_path, edits, error, message):
    folder = tiny_model
    for i, edit in enumerate(edits):
        folder = changed(folder, tmp_path / str(i), edit)
    with pytest.raises(error, match=message):
        load(folder)


def test_overflow_in_the_first_pass_is_refused_when_the_model_is_loaded(tiny_model, tmp_path):
    large = changed(tiny_model, tmp_path / "large", ("model.safetensors", lambda x: {k: v * 3e4 for k, v in x.items()}))
    with pytest.raises(FloatingPointError, match=r"first pass .*float16.*float32"):
        load(large, dtype="float16")


def test_tensors_without_a_place_in_the_model_are_named(tiny_model, tmp_path):
    extra = changed(tiny_model, tmp_path / "extra", ("model.safetensors", lambda x: x | {"v_head.w": torch.ones(2)}))
    with pytest.warns(UserWarning, match=r"no place for.*v_head\.w"):
        load(extra)


def test_an_adapter_that_lacks_weights_is_refused(tiny_model, tmp_path):
    disturb(load(tiny_model)).save(tmp_path / "policy")
    first = sorted(load_file(tmp_path / "policy" / "adapter_model.safetensors"))[0]
    broken = changed(tmp_path / "policy", tmp_path / "broken", ("adapter_model.safetensors", without(first)))
    with pytest.raises(ValueError, match=r"broken.* lacks 1 tensors"):
        load(tiny_model, weights=broken)
    with pytest.raises(ValueError, match=r"broken.* lacks 1 tensors"):
        load(tiny_model).use(broken)


def test_an_sft_adapter_is_refused_as_a_model_and_its_merger_is_taken(tiny_model, tmp_path, responses):
    policy = disturb(load(tiny_model))
    policy.save(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"(?s)adapter on .*tiny.*merge\(") as refused:
        load(tmp_path / "adapter")
    assert "adapter-merged" in str(refused.value)
    merge(tmp_path / "adapter", tmp_path / "merged")
    merged = load(tmp_path / "merged")
    ids = responses["prompt_ids"], responses["response_ids"]
    own = sequence_log_probs(policy, *ids)
    np.testing.assert_allclose(sequence_log_probs(merged, *ids, reference=True), own, atol=1e-3)


def test_merging_names_the_base_that_is_not_there(tiny_model, tmp_path):
    disturb(load(tiny_model)).save(tmp_path / "policy")
    moved = ("adapter_config.json", lambda values: values | {"base_model_name_or_path": str(tmp_path / "gone")})
    adapter = changed(tmp_path / "policy", tmp_path / "adapter", moved)
    with pytest.raises(ValueError, match=r"adapter' *, which is an adapter on .*gone"):
        load(adapter)
    with pytest.raises(ConnectionError, match=r"gone"):
        merge(adapter, tmp_path / "merged")


@pytest.mark.parametrize("targets", [["q_proj", "v_porj"], "v_porj"])
def test_misspelt_lora_targets_are_refused_when_the_model_is_loaded(tiny_model, targets):
    with pytest.raises(ValueError, match=r"v_porj, which .*did you mean v_proj\?"):
        load(tiny_model, LoraParams(target_modules=targets))


def test_known_lora_targets_are_taken(tiny_model, recwarn):
    for targets in (["q_proj", "mlp.up_proj"], r".*layers\.1\..*_proj"):
        load(tiny_model, LoraParams(target_modules=targets)).make_trainable(0)
    assert not [warning for warning in recwarn if "no place" in str(warning.message)]


def test_a_device_that_torch_does_not_find_is_refused_with_its_build(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:1"):
        with pytest.raises(RuntimeError, match=rf"'{device}'.* torch {re.escape(torch.__version__)}, built"):
            choose_device(device)
    assert choose_device("cpu") == "cpu"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Send all calls of the hub to an address, with an empty cache."""

    def send_to(address):
        constants = huggingface_hub.constants
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{address}/{{repo_id}}/{{filename}}")
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    return send_to


def test_unreachable_hub_is_explained_within_seconds(hub):
    hub(NOBODY_LISTENS)
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=r"owner/model.*smollm2-135m.*folder"):
        load("owner/model")
    assert time.monotonic() - start < 15


def test_a_prompt_is_read_once_for_all_its_samples(tiny_model):
    policy = Policy.load(ModelParams(name_or_path=str(tiny_model), device="cpu", dtype="float32"))
    prompts = [[{"role": "user", "content": "A long question, asked three times over. " * 3}]]
    read = []
    policy.model.model.embed_tokens.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].numel()))
    alone = generate(policy, prompts, 1, 0, temperature=1.0, max_new_tokens=4)
    n_read = sum(read)
    responses = generate(policy, prompts, 3, 0, temperature=1.0, max_new_tokens=4)
    assert sum(read) - n_read <= n_read + 2 * 4
    assert alone["response_ids"].iloc[0] == responses["response_ids"].iloc[0]
    assert alone["log_prob"].iloc[0] == pytest.approx(responses["log_prob"].iloc[0], abs=1e-4)
