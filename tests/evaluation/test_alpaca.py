import json
import warnings

import numpy as np
import pandas as pd
import pytest
import yaml
from huggingface_hub import constants

from sgpo_lib import evaluation
from sgpo_lib.data import hub
from sgpo_lib.evaluation import alpaca

N = 60


@pytest.fixture(autouse=True)
def hub_cache(tmp_path, monkeypatch):
    """The hub is silent, and its cache empty unless a test fills it."""
    monkeypatch.setattr(hub, "why_silent", lambda endpoint: "no answer in this test")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def responses() -> pd.DataFrame:
    """Two policies' answers to N prompts; the policy's are longer, the more so the later the prompt."""
    rows = [
        {
            "policy": policy,
            "prompt": [{"role": "user", "content": f"Say “{i}”, twice.\n"}],
            "response": f"Ω {i} " + "so " * (1 + i % 7 * (policy != "sft")),
        }
        for policy in ("sft", "round-1")
        for i in range(N)
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def annotations(responses) -> list[dict]:
    """Synthetic ones of those answers, in the format that alpaca-eval writes."""
    draws = np.random.default_rng(0)
    sft, mine = (responses[responses["policy"] == policy].to_dict("records") for policy in ("sft", "round-1"))
    return [
        {
            "instruction": a["prompt"][0]["content"],
            "output_1": a["response"],
            "generator_1": "sft",
            "output_2": b["response"],
            "generator_2": "round-1",
            "annotator": "a person",
            "preference": 1 + float(draws.random() ** (2 if i % 3 else 0.3)),
        }
        for i, (a, b) in enumerate(zip(sft, mine, strict=True))
    ]


def _write(path, rows):
    path.write_text(json.dumps(rows))
    return path


def _by_alpaca_eval(annotations, **extra):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from alpaca_eval.metrics import get_length_controlled_winrate, get_winrate

        if extra:
            return get_length_controlled_winrate(pd.DataFrame(annotations).assign(**extra), save_weights_dir=None)
        return get_winrate(annotations)


@pytest.mark.filterwarnings("ignore")
def test_alpaca_eval_takes_the_outputs_and_the_win_rate_of_what_it_returns_is_its_own(tmp_path, responses):
    files = {
        policy: alpaca.write_outputs(tmp_path / policy / "outputs.json", answers, generator=policy)
        for policy, answers in responses.groupby("policy")
    }
    # A judge that always names the first answer: alpaca-eval swaps the order at random, so its verdicts vary.
    judge = {
        "prompt_template": "judge/prompt.txt",
        "fn_completions": "test_completions",
        "completions_kwargs": {"model_name": "first", "value": "Output (a)"},
        "completion_parser_kwargs": {"outputs_to_match": {1: r"Output \(a\)", 2: r"Output \(b\)"}},
    }
    config = tmp_path / "judge" / "configs.yaml"
    config.parent.mkdir()
    (config.parent / "prompt.txt").write_text("{instruction}\n(a) {output_1}\n(b) {output_2}")
    config.write_text(yaml.safe_dump({"first": judge}))
    from alpaca_eval import evaluate

    leaderboard, _ = evaluate(
        model_outputs=str(files["round-1"]),
        reference_outputs=str(files["sft"]),
        annotators_config=str(config),
        fn_metric="get_winrate",
        sort_by="win_rate",
        precomputed_leaderboard=None,
        is_return_instead_of_print=True,
        caching_path=None,
    )
    annotations = alpaca.read_annotations(tmp_path / "round-1" / "annotations.json")
    rates = alpaca.win_rates(annotations)
    theirs = leaderboard.loc["round-1"]
    assert 0 < rates["n_wins"] < N
    assert rates["generator"] == "round-1"
    assert rates["baseline"] == "sft"
    names = ("win_rate", "standard_error", "n_wins", "n_wins_base", "n_draws", "n_total", "discrete_win_rate")
    assert {name: rates[name] for name in names} == pytest.approx({name: theirs[name] for name in names})
    mine = responses[responses["policy"] == "round-1"]
    assert annotations["output_2"].tolist() == mine["response"].tolist()
    assert annotations["instruction"].tolist() == [prompt[0]["content"] for prompt in mine["prompt"]]


def test_missing_preferences_are_counted_and_former_draws_are_draws(tmp_path, annotations):
    annotations[0]["preference"], annotations[1]["preference"] = None, 0
    annotations[2]["preference"] = float("nan")
    rates = alpaca.win_rates(alpaca.read_annotations(_write(tmp_path / "a.json", annotations)))
    assert rates["n_missing"] == 2
    assert rates["n_total"] == N - 2
    assert rates["n_draws"] == 1
    judged = [a for a in annotations if a["preference"] is not None and a["preference"] == a["preference"]]
    assert rates["win_rate"] == pytest.approx(_by_alpaca_eval(judged)["win_rate"])
    json.dumps(rates)


def test_half_a_surrogate_pair_in_annotations_is_made_encodable(tmp_path, annotations):
    rows = [row | {"generator_2": "mine \ud83d", "output_2": "so \udc22"} for row in annotations]
    read = alpaca.read_annotations(_write(tmp_path / "a.json", rows))
    assert set(read["generator_2"] + read["output_2"]) == {"mine \ufffdso \ufffd"}


def test_json_lines_are_read_as_a_list_is(tmp_path, annotations):
    annotations[0]["output_1"] += "\u2028 and more"
    lines = tmp_path / "a.jsonl"
    lines.write_text("\n".join(json.dumps(a, ensure_ascii=False) for a in annotations), encoding="utf-8")
    pd.testing.assert_frame_equal(
        alpaca.read_annotations(lines), alpaca.read_annotations(_write(tmp_path / "a.json", annotations))
    )


def test_without_difficulties_nothing_is_called_length_controlled(tmp_path, annotations):
    read = alpaca.read_annotations(_write(tmp_path / "a.json", annotations))
    rates = alpaca.win_rates(read)
    assert [rates[name] for name in rates if name.startswith("length_controlled")] == [None, None]
    assert "no answer in this test" in rates["why_not_length_controlled"]
    shorter_by = read["output_1"].str.len() - read["output_2"].str.len()
    expected = evaluation.length_controlled_win_rate(read["preference"].to_numpy() - 1, shorter_by.to_numpy(float))
    assert rates["win_rate_at_equal_length"] == expected
    assert constants.HF_HUB_OFFLINE is False


@pytest.fixture
def cached_difficulties(hub_cache, annotations):
    """A hub cache that holds what alpaca-eval fetches, made up: N instructions, two gamed models, difficulties."""
    snapshot = hub_cache / "datasets--tatsu-lab--alpaca_eval" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    refs = snapshot.parent.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    own = [{"instruction": a["instruction"], "output": a["output_1"], "generator": "baseline"} for a in annotations]
    _write(snapshot / alpaca.BASELINE_FILE, own)
    draws = np.random.default_rng(1)
    gamed = pd.DataFrame(
        {
            "model": np.repeat(["concise", "verbose"], N),
            "index": np.tile(np.arange(N), 2),
            "preference": draws.random(2 * N),
            "std_delta_len": draws.normal(size=2 * N),
            "instruction_difficulty": np.tile([2.0 if i % 3 else -2.0 for i in range(N)], 2),
            "not_gamed_baseline": False,
        }
    )
    gamed.to_csv(snapshot / alpaca.DIFFICULTIES_FILE, index=False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("cached_difficulties")
def test_a_file_out_of_order_has_the_rate_by_instruction_and_the_leaderboards_by_row(tmp_path, annotations):
    shuffled = [annotations[i] for i in np.random.default_rng(2).permutation(N)[:50]]
    shuffled[7] = shuffled[7] | {"preference": None}
    rates = alpaca.win_rates(alpaca.read_annotations(_write(tmp_path / "a.json", shuffled)))
    assert rates["why_not_length_controlled"] is None
    judged = [a for a in shuffled if a["preference"] is not None]
    instructions = [a["instruction"] for a in annotations]
    constants.HF_HUB_OFFLINE = True
    try:
        theirs = _by_alpaca_eval(judged, index=[instructions.index(a["instruction"]) for a in judged])
        by_row_number = _by_alpaca_eval(shuffled, annotator="a person")
    finally:
        constants.HF_HUB_OFFLINE = False
    assert rates["length_controlled_win_rate"] == theirs["length_controlled_winrate"]
    assert rates["length_controlled_win_rate_by_row"] == by_row_number["length_controlled_winrate"]
    assert rates["length_controlled_win_rate"] != pytest.approx(rates["length_controlled_win_rate_by_row"])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("cached_difficulties")
def test_a_file_in_the_data_sets_order_has_one_length_controlled_win_rate(tmp_path, annotations):
    rates = alpaca.win_rates(alpaca.read_annotations(_write(tmp_path / "a.json", annotations)))
    assert rates["length_controlled_win_rate"] == rates["length_controlled_win_rate_by_row"]
    json.dumps(rates)


@pytest.mark.usefixtures("cached_difficulties")
def test_an_instruction_judged_twice_has_no_length_controlled_win_rate(tmp_path, annotations):
    rates = alpaca.win_rates(alpaca.read_annotations(_write(tmp_path / "a.json", [*annotations, annotations[0]])))
    assert rates["length_controlled_win_rate_by_row"] is None
    assert rates["why_not_length_controlled"] == "1 instructions are judged more than once."


@pytest.mark.usefixtures("cached_difficulties")
def test_other_instructions_have_no_difficulty_even_if_alpaca_eval_would_give_them_one(tmp_path, annotations):
    annotations[3]["instruction"] = "something else"
    rates = alpaca.win_rates(alpaca.read_annotations(_write(tmp_path / "a.json", annotations)))
    assert rates["length_controlled_win_rate"] is None
    assert f"1 of {N} instructions are not AlpacaEval's" in rates["why_not_length_controlled"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no annotations"),
        ("[]", "no annotations"),
        ('[{"instruction": "a", ', "not valid JSON.*cut short"),
        ("{}", "row 1: instruction: expected text, got None"),
        ("[3]", "row 1: expected an object with named fields, got int"),
        ("instruction,preference", "line 1: neither a JSON list nor JSON lines"),
    ],
)
def test_files_that_hold_no_annotations_are_explained(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        alpaca.read_annotations(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("preference", 3, "row 5: preference: expected a number from 1 .* got 3"),
        ("preference", "2", "row 5: preference: .* got '2'"),
        ("preference", True, "row 5: preference: .* got True"),
        ("output_2", None, "row 5: output_2: expected text, got None"),
        ("generator_2", "another", "generator_2 must be one model, but is round-1, another"),
    ],
)
def test_bad_annotations_are_named_by_row_and_field(tmp_path, annotations, field, value, message):
    annotations[4][field] = value
    with pytest.raises(ValueError, match=message):
        alpaca.read_annotations(_write(tmp_path / "a.json", annotations))


def test_a_missing_annotations_file_says_what_writes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"annotations\.json"):
        alpaca.read_annotations(tmp_path / "nothing.json")


def test_annotations_without_any_preference_have_no_win_rate(annotations):
    with pytest.raises(ValueError, match=f"none of the {N} annotations"):
        alpaca.win_rates(pd.DataFrame(annotations).assign(preference=np.nan))


def test_what_the_format_cannot_hold_is_refused_and_leaves_the_file_as_it_was(tmp_path, responses):
    one = responses[responses["policy"] == "sft"]
    file = alpaca.write_outputs(tmp_path / "outputs.json", one, "sft")
    before = file.read_bytes()
    several_turns = one.assign(prompt=[[{"role": "system", "content": "Be brief."}, *p] for p in one["prompt"]])
    for bad, message in (
        (several_turns, f"{N} of {N} prompts are not one user message"),
        (responses, f"{N} prompts have several responses"),
        (one[:0], "no responses"),
    ):
        with pytest.raises(ValueError, match=message):
            alpaca.write_outputs(file, bad, "sft")
    assert file.read_bytes() == before


def test_annotations_of_other_answers_than_the_outputs_are_counted(tmp_path, responses, annotations):
    mine = responses[responses["policy"] == "round-1"]
    outputs = alpaca.write_outputs(tmp_path / "outputs.json", mine, "round-1")
    assert alpaca.n_outdated(pd.DataFrame(annotations), outputs) == 0
    annotations[0]["output_2"] += "!"
    annotations[1]["instruction"] += "!"
    assert alpaca.n_outdated(pd.DataFrame(annotations), outputs) == 2


def test_instructions_come_from_a_local_file_of_any_models_outputs(tmp_path, responses):
    one = responses[responses["policy"] == "sft"]
    prompts = alpaca.load_instructions(str(alpaca.write_outputs(tmp_path / "outputs.json", one, "sft")))
    assert prompts["prompt"].tolist() == one["prompt"].tolist()


def test_instructions_of_a_silent_hub_say_what_to_do():
    with pytest.raises(ConnectionError, match=r"no answer in this test.*give its path"):
        alpaca.load_instructions()


@pytest.mark.usefixtures("cached_difficulties")
def test_instructions_that_the_hubs_cache_holds_need_no_hub(annotations):
    prompts = alpaca.load_instructions()
    assert [prompt[0]["content"] for prompt in prompts["prompt"]] == [a["instruction"] for a in annotations]
