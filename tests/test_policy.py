"""The language model: its samples follow its law, its scores are that law's, and what is saved comes back."""

import json
import shutil
import time

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
from peft import PeftModel
from scipy import stats
from transformers import AutoModelForCausalLM, AutoTokenizer

from sgpo_lib import policy as policy_module
from sgpo_lib.params import LoraParams, ModelParams
from sgpo_lib.policy import Policy, generate, sequence_log_probs
from sgpo_lib.prompt_pool import builtin_prompts

NOBODY_LISTENS = "http://127.0.0.1:9"
TEXTS = ["Hello?", *builtin_prompts()[:200:29], "Describe the sea. " * 5]
PROMPTS = [[{"role": "user", "content": text}] for text in TEXTS]


def load(folder, lora=True, weights=None, **options):
    params = ModelParams(
        name_or_path=str(folder),
        device="cpu",
        dtype="float32",
        lora=LoraParams(r=4, lora_alpha=8) if lora else None,
        **options,
    )
    return Policy.load(params, weights)


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
    monkeypatch.setattr(policy_module, "_LOGIT_POSITIONS", 12)
    scores += [sequence_log_probs(trained, responses["prompt_ids"], responses["response_ids"])]
    np.testing.assert_allclose(*scores, atol=1e-4)


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


# --- what cannot be loaded


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
    n_prompt = len(policy.encode_prompts(prompts)[0])
    read = []
    policy.model.model.embed_tokens.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].numel()))
    responses = generate(policy, prompts, 3, 0, temperature=1.0, max_new_tokens=4)
    assert sum(read) <= n_prompt + 3 * 4
    alone = generate(policy, prompts, 1, 0, temperature=1.0, max_new_tokens=4)
    assert alone["response_ids"].iloc[0] == responses["response_ids"].iloc[0]
    assert alone["log_prob"].iloc[0] == pytest.approx(responses["log_prob"].iloc[0], abs=1e-4)
