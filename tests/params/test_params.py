"""Params: what the shipped files say, and that every mistake is named where it was made."""

import json
import re
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import yaml

from sgpo_lib.params import METHODS, LoraParams, load_params, training

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "params").glob("*.yaml"))
EMBEDDED = ROOT / "params" / "smollm2-135m.yaml"

MINIMAL = {
    "model": {"name_or_path": "smollm2-135m"},
    "data": {"source": "builtin", "n_seed": 8, "n_prompts": [8], "n_evaluation": 8},
    "seed_dpo": {"learning_rate": 1e-4},
    "leader": {"learning_rate": 1e-4},
}


@pytest.fixture
def write(tmp_path):
    """Write a params file: the minimal one with some sections replaced, or a given text."""

    def write(text=None, **sections):
        path = tmp_path / "params" / "mine.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(MINIMAL | sections) if text is None else text)
        return path

    return write


# --- the shipped files

# What a newcomer's file can do without: rivals, studies and other data than a file.
_OPTIONAL = {
    "rounds",
    "split",
    "revision",
    "choose_seed",
    "seed_selection",
    "held_out_forms",
    "match_kl",
    "label_noise",
    "n_calibration",
    "n_pieces",
    "group_size",
    "flip_radius",
    "engine",
    "bad_rows",
}


# What a method needs that a file need not have.
_NEEDED = {method: {"data.n_calibration": 32} for method in ("ssapo-flips", "flips-replay")}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_file_can_be_asked_for_every_method(path):
    known = {"implicit", "sentiment", "gold"} if load_params(path).gold else {"implicit"}
    for method, sets in METHODS.items():
        if sets.get("annotation.judge", "implicit") in known:
            load_params(path, _NEEDED.get(method), method)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_files_made_for_gpus_do_not_fall_back_to_the_cpu(path):
    made_for_gpus = "80 GB GPU" in path.read_text().split("\nmodel:")[0]
    assert load_params(path).model.device == ("cuda" if made_for_gpus else "auto")


def test_weights_in_4_bits_cannot_be_scored_in_float32(write):
    model = {"name_or_path": "a/b", "quantization": "nf4", "lora": {}}
    with pytest.raises(ValueError, match=r"quantization needs model\.scoring_dtype: auto"):
        load_params(write(model=model))
    assert load_params(write(model=model | {"scoring_dtype": "auto"})).model.scoring_dtype == "auto"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_file_leaves_no_section_or_size_to_defaults(path):
    params, written = load_params(path), yaml.safe_load(path.read_text())
    if "extends" in written:
        return
    assert set(written) == set(params.model_dump(mode="json")) - {"name", "annotation", "judge"}
    for section in ("data", "generation", "follower", "evaluation"):
        assert set(written[section]) >= set(params.model_dump()[section]) - _OPTIONAL
    assert {"name_or_path", "device", "dtype", "lora"} <= set(written["model"])
    assert "accumulate" in written["leader"]
    for section in (written["seed_dpo"], written["leader"]):
        assert {"learning_rate", "num_train_epochs", "per_device_train_batch_size", "max_length"} <= set(section)


@pytest.mark.parametrize(
    ("name", "model", "learning_rate", "beta", "seed_epochs", "n_prompts"),
    [
        ("mistral-7b", "alignment-handbook/zephyr-7b-sft-full", 5e-7, 0.1, 3, [8000, 20000, 30000]),
        ("llama3-8b", "meta-llama/Meta-Llama-3-8B-Instruct", 1e-6, 0.05, 1, [8000, 20000]),
    ],
)
def test_files_of_the_papers_models_hold_its_settings(name, model, learning_rate, beta, seed_epochs, n_prompts):
    params = load_params(ROOT / "params" / f"{name}.yaml")
    assert params.model.name_or_path == model
    assert params.model.lora is None
    assert params.data.source == "argilla/ultrafeedback-binarized-preferences-cleaned"
    assert (params.data.n_seed, params.data.n_prompts, params.n_rounds) == (2000, n_prompts, len(n_prompts))
    assert (params.data.shuffle_seed, params.data.reshuffle) == (42, False)
    assert params.beta == beta
    assert (params.generation.temperature, params.generation.max_new_tokens) == (0.7, 300)
    assert params.seed_dpo.learning_rate == params.leader.learning_rate == learning_rate
    assert params.seed_dpo.num_train_epochs == seed_epochs
    assert params.follower.radius == 0.01
    assert (params.leader.mode, params.leader.reference, params.leader.accumulate) == ("transport", "previous", False)
    assert params.gold is None


def test_embedded_default_runs_three_rounds_with_an_adapter_and_a_gold_user():
    params = load_params(EMBEDDED)
    assert params.n_rounds == 3
    assert params.model.lora == LoraParams(r=16, lora_alpha=32)
    assert (params.gold.word_limit, params.gold.word_penalty) == (30, 0.02)


# --- mistakes


@pytest.mark.parametrize(
    ("misspelt", "nearest"),
    [
        ("betta", "beta"),
        ("sead_dpo", "seed_dpo"),
        ("leader.learning_rte", "leader.learning_rate"),
        ("follower.raduis", "follower.radius"),
        ("follower.support.tua", "follower.support.tau"),
        ("model.lora.alpha", "model.lora.lora_alpha"),
        ("data.seed", "data.n_seed"),
        ("radius", "follower.radius"),
    ],
)
def test_misspelt_key_is_named_with_the_nearest_valid_one(misspelt, nearest):
    with pytest.raises(ValueError, match="is not a parameter") as caught:
        load_params(EMBEDDED, {misspelt: 1})
    assert f"'{misspelt}' is not a parameter; did you mean '{nearest}'?" in str(caught.value)
    assert str(EMBEDDED) in str(caught.value)


def test_all_misspelt_keys_are_named_at_once():
    with pytest.raises(ValueError, match="cannot be used") as caught:
        load_params(EMBEDDED, {"betta": 1, "leader.mod": "transport", "data.n_sead": 3})
    assert all(f"'{key}'" in str(caught.value) for key in ("betta", "leader.mod", "data.n_sead"))


@pytest.mark.parametrize("key", ["name", "root"])
def test_where_the_file_lies_cannot_be_set_in_it(key):
    with pytest.raises(ValueError, match=f"'{key}' is not a parameter"):
        load_params(EMBEDDED, {key: "elsewhere"})


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("beta", "small", "valid number"),
        ("beta", 0, "greater than 0"),
        ("beta", None, "valid number"),
        ("data.n_seed", 2.5, "valid integer"),
        ("data.n_seed", 0, "greater than or equal to 1"),
        ("data.n_prompts", [0], "greater than or equal to 1"),
        ("data.label_noise", 1.5, "less than or equal to 1"),
        ("annotation.judge", "me", "'implicit'"),
        ("data.n_prompts", 96, "valid list"),
        ("generation.temperature", -0.7, "greater than 0"),
        ("leader.mode", "peices", "'transport'"),
        ("leader.reference", "last", "'previous' or 'initial'"),
        ("leader.warmup_steps", -1, "greater than or equal to 0"),
        ("model.device", "gpu", "pattern"),
        ("model.dtype", "float8", "'auto'"),
        ("model.lora.r", 0, "greater than or equal to 1"),
        ("follower.radius", -0.01, "greater than or equal to 0"),
        ("follower.radius", float("nan"), "finite"),
        ("follower.radius", float("inf"), "finite"),
        ("leader.learning_rate", float("inf"), "finite"),
        ("follower.support", {"rule": "quantile", "q": 0.5}, "less than 0.5"),
        ("follower.support", {"rule": "window"}, "'range'"),
        ("evaluation.confidence", 1, "less than 1"),
        ("gold.word_penalty", "none", "valid number"),
    ],
)
def test_bad_value_is_named_with_its_key(key, value, reason):
    with pytest.raises(ValueError, match="cannot be used") as caught:
        load_params(EMBEDDED, {key: value})
    *_, last = key.split(".")
    shown = value[last] if isinstance(value, dict) and last in value else value
    shown = value.get("q", value["rule"]) if isinstance(value, dict) else shown
    shown = shown[0] if isinstance(shown, list) and len(shown) == 1 else shown
    named = [line for line in str(caught.value).splitlines() if f"'{key}" in line and repr(shown) in line]
    assert named, str(caught.value)
    assert reason in " ".join(named)


def test_missing_value_is_named(write):
    with pytest.raises(ValueError, match=r"'seed_dpo\.learning_rate' is missing"):
        load_params(write(seed_dpo={"num_train_epochs": 2}))


def test_missing_section_is_named(write):
    text = yaml.safe_dump({key: value for key, value in MINIMAL.items() if key != "data"})
    with pytest.raises(ValueError, match="'data' is missing"):
        load_params(write(text))


@pytest.mark.parametrize("text", ["", "- model\n- data\n", "beta\n"])
def test_file_without_sections_says_what_it_must_hold(write, text):
    with pytest.raises(ValueError, match=r"mine\.yaml must hold sections such as 'model:'"):
        load_params(write(text))


def test_invalid_yaml_is_named_with_its_line(write):
    with pytest.raises(ValueError, match=r"(?s)mine\.yaml cannot be read: it is not valid YAML.*line 2"):
        load_params(write("beta: 0.1\nmodel: {name_or_path: x\ndata: 3\n"))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("beta: 0.1\nbeta: 0.2\n", "'beta' is given on line 1 and again on line 2"),
        ("data: {n_seed: 1}\nbeta: 1\ndata: {}\n", "'data' is given on line 1 and again on line 3"),
        ("data:\n  n_seed: 010\n", "'n_seed' is 010 on line 2"),
        ("data:\n  n_prompts: [8, 010]\n", "'n_prompts' is 010 on line 2"),
        ("beta: 1:30\n", "'beta' is 1:30 on line 1"),
        ("beta: &a {x: *a}\n", "recursive"),
        ("beta: !!int x\n", "invalid literal"),
        ("beta: !!bool x\n", "does not fit its tag"),
        ("[" * 2000, "nested too deeply"),
    ],
    ids=["twice", "section twice", "octal", "octal in a list", "base 60", "recursive", "int", "bool", "deep"],
)
def test_yaml_that_would_be_read_otherwise_than_it_looks_is_refused(write, text, named):
    with pytest.raises(ValueError, match=re.escape(named)) as caught:
        load_params(write(text))
    assert "mine.yaml" in str(caught.value)


@pytest.mark.parametrize("written", ["yes", "on", "true", "2024-01-01"])
def test_a_word_for_a_number_is_refused_with_key_and_line(write, written):
    text = f"beta: {written}\n" + yaml.safe_dump(MINIMAL)
    with pytest.raises(ValueError, match=rf"(?i)'beta' is '?{written}'?: .*\(line 1 of mine\.yaml\)"):
        load_params(write(text))


@pytest.mark.parametrize("written", ["yes", "on", "true"])
def test_a_word_for_a_switch_is_understood(write, written):
    text = yaml.safe_dump(MINIMAL).replace("data:", f"data:\n  reshuffle: {written}")
    assert load_params(write(text)).data.reshuffle is True


def test_file_that_is_not_utf8_is_named(write):
    path = write()
    path.write_bytes(path.read_bytes() + "# Schlüssel\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"mine\.yaml is not UTF-8 text"):
        load_params(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("leader.lr_scheduler_type", "cosin"), ("seed_dpo.optim", "adamw_torsh"), ("leader.report_to", ["tensorbord"])],
)
def test_names_that_the_trainer_would_refuse_after_all_annotation_are_refused_at_once(key, value):
    with pytest.raises(ValueError, match=rf"'{key}.*input should be '"):
        load_params(EMBEDDED, {key: value})


def test_schedulers_optimizers_and_trackers_are_those_of_transformers():
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
    from transformers.trainer_utils import SchedulerType
    from transformers.training_args import OptimizerNames

    assert set(training.SCHEDULERS) <= {kind.value for kind in SchedulerType}
    assert {*training.OPTIMIZERS, *training.BITSANDBYTES_OPTIMIZERS} <= {name.value for name in OptimizerNames}
    assert set(get_args(training.Tracker)) - {"none", "all"} <= set(INTEGRATION_TO_CALLBACK)


def test_answers_that_could_be_too_long_to_train_on_are_refused_before_any_is_sampled():
    with pytest.raises(ValueError, match=r"leader\.max_length 100 is less than .* = 192"):
        load_params(EMBEDDED, {"leader.max_length": 100})


def test_section_given_as_a_single_value_is_named(write):
    with pytest.raises(ValueError, match="'model' is 'smollm2-135m'"):
        load_params(write(model="smollm2-135m"))


# --- values


def test_exponent_without_a_point_is_a_number_although_yaml_reads_text(write):
    text = yaml.safe_dump(MINIMAL).replace("learning_rate: 0.0001", "learning_rate: 5e-7")
    assert yaml.safe_load(text)["leader"]["learning_rate"] == "5e-7"
    assert load_params(write(text)).leader.learning_rate == 5e-7


@pytest.mark.parametrize(
    "support", [{"rule": "range", "tau": 0.3}, {"tau": 0.3}, {"rule": "quantile", "q": 0.05}, [-2.0, 3.0]]
)
def test_every_kind_of_support_is_understood(write, support):
    made = load_params(write(follower={"support": support})).model_dump(mode="json")["follower"]["support"]
    assert made == (support if isinstance(support, list) else {"rule": "range"} | support)


def test_overrides_reach_into_sections_and_leave_the_rest(write):
    path = write(follower={"radius": 0.5, "support": {"rule": "range", "tau": 1.0}})
    changes = {"follower.radius": 0.03, "model.lora.r": 4, "beta": 0.2, "data.n_prompts": [4, 4]}
    plain, changed = load_params(path), load_params(path, changes)
    assert plain.model.lora is None
    assert changed.model.lora == LoraParams(r=4)
    assert changed.n_rounds == 2
    differing = {key for key, value in changed.flat().items() if plain.flat().get(key) != value}
    assert {key for key in differing if not key.startswith("model.lora")} == set(changes) - {"model.lora.r"}


@pytest.mark.parametrize(
    "text", ['{"follower.radius": 0.03, "beta": 2e-1}', "{follower.radius: 0.03, beta: 0.2}"], ids=["JSON", "YAML"]
)
def test_overrides_may_be_text_as_papermill_hands_it_on(text):
    assert load_params(EMBEDDED, text) == load_params(EMBEDDED, {"follower.radius": 0.03, "beta": 0.2})
    assert load_params(EMBEDDED, "") == load_params(EMBEDDED)


@pytest.mark.parametrize("overrides", ["follower.radius", "[1]", "{1: 2}", "{", '{"beta": 1, "beta": 2}', ["beta"]])
def test_overrides_that_are_no_keys_with_values_are_refused(overrides):
    with pytest.raises(ValueError, match="overrides "):
        load_params(EMBEDDED, overrides)


def test_an_adapter_can_be_switched_off_by_an_override():
    assert load_params(EMBEDDED, {"model.lora": None}).model.lora is None


def test_flat_values_are_json_with_dotted_keys(write):
    flat = load_params(write(follower={"support": [-1.0, 1.0]})).flat()
    assert json.loads(json.dumps(flat)) == flat
    assert flat["follower.support"] == [-1.0, 1.0]
    assert not {"name", "root", "output_dir"} & set(flat)


def test_a_file_that_contradicts_the_method_is_refused_and_an_override_is_not(write):
    path = write(follower={"n_pieces": 5}, leader={"learning_rate": 1e-4, "reference": "initial"})
    with pytest.raises(ValueError, match=r"'follower\.n_pieces' is 5, but method ssapo-pieces sets it to 6"):
        load_params(path, method="ssapo-pieces")
    assert load_params(path, method="ssapo").leader.reference == "initial"
    assert load_params(path, {"follower.n_pieces": 7}, "ssapo-envelope").follower.n_pieces == 7


# --- params that need each other


@pytest.mark.parametrize(
    ("overrides", "needed"),
    [
        ({"follower.radius": {"rule": "calibrated"}}, "data.n_calibration"),
        ({"leader.mode": "flips"}, "data.n_calibration"),
        ({"data.n_calibration": 9, "data.label_noise": 0.5}, "data.label_noise"),
        ({"leader.mode": "pieces"}, "follower.n_pieces"),
        ({"leader.mode": "envelope", "follower.group_size": 10}, "follower.group_size"),
        ({"annotation.judge": "sentiment", "gold": None}, "set gold"),
    ],
)
def test_what_a_param_needs_is_named(overrides, needed):
    with pytest.raises(ValueError, match=f"cannot be used:\n  .*{needed}") as caught:
        load_params(EMBEDDED, overrides)
    assert "Value error" not in str(caught.value)


# --- files that extend others


def test_extending_file_holds_only_what_differs(write):
    path = write(follower={"radius": 0.03, "support": {"rule": "range", "tau": 0.2}})
    more = path.with_name("more.yaml")
    more.write_text("extends: mine.yaml\nfollower: {support: {rule: quantile, q: 0.1}}\ndata: {n_seed: 7}\n")
    below, above = load_params(path), load_params(more)
    assert (above.name, above.data.n_seed, above.follower.radius) == ("more", 7, 0.03)
    assert above.follower.support.rule == "quantile"
    assert above.data.model_copy(update={"n_seed": below.data.n_seed}) == below.data


def test_extending_what_is_not_there_is_named(write):
    path = write()
    path.write_text("extends: nothing.yaml\n")
    with pytest.raises(ValueError, match=r"extends 'nothing\.yaml'.*no such file"):
        load_params(path)


def test_files_that_extend_each_other_are_named(write):
    path = write("extends: other.yaml\n")
    path.with_name("other.yaml").write_text("extends: mine.yaml\n")
    with pytest.raises(ValueError, match=r"mine\.yaml extends itself: .*mine\.yaml extends .*other\.yaml extends "):
        load_params(path)


def test_every_method_is_valid_for_the_default_and_the_study_params():
    for name in ("smollm2-135m", "study", "study-flipped"):
        for method, overrides in METHODS.items():
            if method != "iter-dpo-external":
                assert load_params(ROOT / "params" / f"{name}.yaml", overrides | _NEEDED.get(method, {})), method


def test_the_judge_of_a_file_ranks_for_iter_dpo_external_and_for_no_method_that_annotates_itself(write):
    judge = {"kind": "pairwise", "name_or_path": "some/ranker"}
    path = write(judge=judge, gold=None)
    assert load_params(path, method="iter-dpo-external").annotation.judge == "external"
    assert load_params(path, method="ssapo").annotation.judge == "implicit"
    path = write(judge=judge, gold=None, annotation={"judge": "external"})
    with pytest.raises(ValueError, match=r"'annotation\.judge' is 'external', but method ssapo sets it to 'implicit'"):
        load_params(path, method="ssapo")


@pytest.mark.parametrize("url", ["https://me:s3cret@host/v1", "https://host/v1?key=s3cret", "https://host/v1#s3cret"])
def test_a_secret_in_the_judges_url_is_refused_and_not_repeated(write, url):
    with pytest.raises(ValueError, match=r"judge\.url must be a plain address") as refused:
        load_params(write(judge={"kind": "llm", "url": url, "model": "m"}))
    assert "s3cret" not in str(refused.value)


def test_a_judges_key_variable_must_look_like_one_and_is_not_repeated(write):
    judge = {"kind": "llm", "url": "https://host/v1", "model": "m"}
    load_params(write(judge=judge | {"api_key_variable": "HF_TOKEN"}))
    with pytest.raises(ValueError, match="ends in _API_KEY or _TOKEN") as refused:
        load_params(write(judge=judge | {"api_key_variable": "sk-s3cret"}))
    assert "s3cret" not in str(refused.value)


# --- where the file is


def test_relative_path_is_found_from_any_folder_below_the_root(write, monkeypatch):
    path = write()
    below = path.parents[1] / "notebooks" / "deeper"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    params = load_params("params/mine.yaml")
    assert (params.name, params.root) == ("mine", path.parents[1].resolve())


def test_root_of_a_file_outside_a_params_folder_is_its_own_folder(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    assert load_params(path).root == tmp_path.resolve()


@pytest.mark.parametrize("working_folder", [".", "notebooks"])
def test_missing_file_is_named_with_those_there_are(write, monkeypatch, working_folder):
    root = write().parents[1]
    (root / "notebooks").mkdir()
    monkeypatch.chdir(root / working_folder)
    with pytest.raises(FileNotFoundError, match=r"params/yours\.yaml.*There are: mine\.yaml"):
        load_params("params/yours.yaml")


# --- a thousand damaged files


def test_a_damaged_file_is_read_or_refused_by_name(write):
    path = write(beta=0.1, generation={"temperature": 0.7}, follower={"support": {"rule": "range", "tau": 0.1}})
    whole, rng, refusals = path.read_bytes(), np.random.default_rng(0), []
    snippets = [
        b"\xff",
        b"\xc3",
        b"\x00",
        b"\\ud800",
        b"\t",
        b": ",
        b"- ",
        b"&a ",
        b"*a",
        b"{",
        b"]",
        b"'",
        b"!!int ",
        b"0x",
    ]
    for _ in range(1000):
        content = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            start = int(rng.integers(len(content)))
            kind = rng.integers(3)
            if kind == 0:
                content[start : start + int(rng.integers(1, 30))] = b""
            elif kind == 1:
                content[start:start] = snippets[rng.integers(len(snippets))]
            else:
                stop = start + int(rng.integers(1, 80))
                content[start:start] = content[start:stop]
        path.write_bytes(content)
        try:
            load_params(path)
        except ValueError as error:
            refusals.append(str(error))
    assert len(refusals) > 500
    assert all("mine.yaml" in refusal.encode().decode() for refusal in refusals)
