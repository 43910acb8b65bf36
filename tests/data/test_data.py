import itertools
import json
import re
import shutil
import socket
import time
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgpo_lib import data
from sgpo_lib.data import hub
from sgpo_lib.data.builtin_prompts import builtin_prompts
from sgpo_lib.data.prompts import with_ids
from sgpo_lib.params import DataParams

REAL_PAIRS = Path(__file__).parents[3] / "shared" / "data" / "gpt4_preferences_short.jsonl"
COMMIT = "0123456789abcdef" * 2 + "01234567"
NOBODY_LISTENS = "http://127.0.0.1:9"

BUILTIN = data.load("builtin")
PLAIN = {"prompt": "Hello?", "chosen": "Hi!", "rejected": "Go away."}


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def write_jsonl(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def load_rows(tmp_path, rows, **options):
    return data.load(write_jsonl(tmp_path / "data.jsonl", rows), **options)


def pairs_on_shared_prompts(n_prompts=40, pairs_per_prompt=3):
    rows = [
        {"prompt": [user(f"question {i}")], "chosen": f"good {i} {j}", "rejected": f"bad {i} {j}"}
        for j in range(pairs_per_prompt)
        for i in range(n_prompts)
    ]
    return pd.DataFrame(rows)


# --- the builtin pool


def test_builtin_prompts_are_many_and_distinct():
    prompts = builtin_prompts()
    assert len(prompts) == len(set(prompts)) >= 1200


def test_builtin_prompts_are_short_finished_sentences():
    for prompt in builtin_prompts():
        assert len(prompt.split()) < 30
        assert re.fullmatch(r'[A-Z][^{}|\n]*[.?]"?', prompt), prompt


def test_builtin_loads_as_single_user_turns():
    table = data.load("builtin")
    assert list(table.columns) == ["prompt_id", "prompt", "form"]
    assert [data.user_text(prompt) for prompt in table["prompt"]] == builtin_prompts()


def test_builtin_prompts_come_with_the_form_they_are_made_from():
    table = data.load("builtin")
    assert set(table["form"].value_counts()) == {80}
    for prompt, form in zip(table["prompt"], table["form"], strict=True):
        pattern = re.sub(r"\\{\w+\\}", "(.+)", re.escape(form))
        assert re.fullmatch(pattern, data.user_text(prompt))


def test_held_out_prompts_keep_their_form_and_rounds_do_without():
    splits = data.split(data.load("builtin"), 5, [5], 20, shuffle_seed=0)
    assert splits.evaluation["form"].notna().all()
    assert list(splits.rounds[0].columns) == ["prompt_id", "prompt"]


# --- formats


@pytest.mark.parametrize(
    "row",
    [
        PLAIN,
        {"prompt": [user("Hello?")], "chosen": [assistant("Hi!")], "rejected": [assistant("Go away.")]},
        {
            "chosen": [user("Hello?"), assistant("Hi!")],
            "rejected": [user("Hello?"), assistant("Go away.")],
        },
        {
            "prompt": "Hello? ",
            "chosen": [user("Hello?"), assistant("Hi!")],
            "rejected": [user("Hello?"), assistant("Go away.")],
        },
        {"instruction": "Hello?", "output_1": "Hi!", "output_2": "Go away.", "preference": 1},
        {"instruction": "Hello?", "output_1": "Go away.", "output_2": "Hi!", "preference": 1.9},
    ],
    ids=["plain", "conversational", "implicit prompt", "ultrafeedback", "alpaca-eval 1", "alpaca-eval 1.9"],
)
def test_every_preference_format_gives_the_same_pair(tmp_path, row):
    table = load_rows(tmp_path, [row])
    assert table.loc[0, ["prompt", "chosen", "rejected"]].to_list() == [[user("Hello?")], "Hi!", "Go away."]


@pytest.mark.parametrize("field", ["prompt", "instruction"])
def test_prompts_alone_load_unlabelled(tmp_path, field):
    assert list(load_rows(tmp_path, [{field: "Hello?"}]).columns) == ["prompt_id", "prompt"]


def test_conversations_keep_all_their_turns(tmp_path):
    turns = [
        {"role": "system", "content": "Be kind."},
        user("Hello?"),
        assistant("Hi!"),
        user("How are you?"),
    ]
    table = load_rows(tmp_path, [{"prompt": turns, "chosen": "Well.", "rejected": "Bad."}])
    assert table["prompt"][0] == turns
    assert data.user_text(table["prompt"][0]) == "How are you?"


def test_plain_extra_columns_are_kept_and_others_left_out(tmp_path):
    table = load_rows(tmp_path, [PLAIN | {"chosen_model": "a", "score": 1.5, "ratings": [1, 2]}])
    assert table.loc[0, ["chosen_model", "score"]].to_list() == ["a", 1.5]
    assert "ratings" not in table


def test_extra_columns_of_mixed_kinds_are_left_out_as_no_file_could_hold_them(tmp_path):
    extras = [{"id": 1, "score": 1, "note": None}, {"id": "two", "score": 0.5, "note": "x"}]
    table = load_rows(tmp_path, [PLAIN | extra for extra in extras])
    assert {"score", "note"} <= set(table)
    assert "id" not in table
    table.to_parquet(tmp_path / "kept.parquet")


def test_a_data_file_lies_beside_params_wherever_one_works_from(tmp_path, monkeypatch):
    rows = [PLAIN | {"prompt": text} for text in ("A?", "B?", "C?", "")]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    params = DataParams(source="mine.jsonl", n_seed=1, n_prompts=[1], n_evaluation=1, bad_rows="drop")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.warns(UserWarning, match="left out rows"):
        assert len(data.prepare(params, tmp_path, 0).seed) == 1
    with pytest.raises(FileNotFoundError, match=r"no such file: .*elsewhere/mine\.jsonl"):
        data.prepare(params, Path("."), 0)


def test_json_array_and_parquet_read_like_json_lines(tmp_path):
    rows = [PLAIN, PLAIN | {"prompt": [user("Why?")]}]
    expected = load_rows(tmp_path, rows)
    (tmp_path / "data.json").write_text(json.dumps(rows, indent=1))
    expected.to_parquet(tmp_path / "data.parquet")
    for name in ("data.json", "data.parquet"):
        pd.testing.assert_frame_equal(data.load(str(tmp_path / name)), expected)


def test_ties_are_left_out_and_counted(tmp_path):
    row = {"instruction": "Hello?", "output_1": "Hi!", "output_2": "Go away."}
    with pytest.warns(UserWarning, match="1 ties"):
        table = load_rows(tmp_path, [row | {"preference": 1.5}, row | {"preference": 2}])
    assert len(table) == 1
    assert table.attrs["n_ties"] == 1


@pytest.mark.parametrize(
    ("beside", "expected"),
    [
        ({"input": "Tea."}, [user("Translate:\nTea.")]),
        ({"input": " ", "system": None, "history": []}, [user("Translate:")]),
        ({"system": "Be kind."}, [{"role": "system", "content": "Be kind."}, user("Translate:")]),
        ({"history": [["Hello?", "Hi!"]]}, [user("Hello?"), assistant("Hi!"), user("Translate:")]),
    ],
    ids=["input", "nothing", "system", "history"],
)
@pytest.mark.parametrize(
    "labels", [{}, {"chosen": "A", "rejected": "B"}, {"output_1": "A", "output_2": "B", "preference": 1}]
)
def test_what_alpacas_rows_keep_beside_the_instruction_is_joined_to_the_prompt(tmp_path, beside, expected, labels):
    table = load_rows(tmp_path, [{"instruction": "Translate:"} | beside | labels])
    assert table["prompt"][0] == expected
    assert not {"input", "system", "history"} & set(table)


def test_a_system_message_joins_a_conversation_once(tmp_path):
    turns = [user("Hello?"), assistant("Hi!")]
    row = {"chosen": turns, "rejected": [turns[0], assistant("Go away.")], "system": "Be kind."}
    (prompt,) = load_rows(tmp_path, [row])["prompt"]
    assert [message["role"] for message in prompt] == ["system", "user"]
    with_system = {"prompt": prompt, "chosen": "Hi!", "rejected": "Go away.", "system": "Be kind."}
    assert load_rows(tmp_path, [with_system])["prompt"][0] == prompt


def test_transcripts_are_read_as_messages_and_the_prompt_is_not_trained_twice(tmp_path):
    transcript = "\n\nHuman: Hello?\n\nAssistant: Hi!\n\nHuman: How are you?\n\nAssistant:"
    answers = {"chosen": f"{transcript} Well.", "rejected": f"{transcript} Bad."}
    expected = [[user("Hello?"), assistant("Hi!"), user("How are you?")], "Well.", "Bad."]
    for row in (
        answers,
        answers | {"prompt": transcript},
        {"prompt": transcript, "chosen": "Well.", "rejected": "Bad."},
    ):
        assert load_rows(tmp_path, [row]).loc[0, ["prompt", "chosen", "rejected"]].to_list() == expected


def test_answers_that_may_repeat_the_prompt_are_given_as_messages(tmp_path):
    code = "def add(a, b):"
    row = {"prompt": code, "chosen": [assistant(f"{code} a + b")], "rejected": [assistant(f"{code} a")]}
    assert load_rows(tmp_path, [row])["chosen"][0] == f"{code} a + b"


def test_a_weight_is_kept_as_the_losss(tmp_path):
    table = load_rows(tmp_path, [PLAIN | {"weight": 0}, PLAIN | {"weight": 2.5}])
    assert data.loss_weights(table).to_list() == [0, 2.5]
    assert data.loss_weights(table.drop(columns="weight")).to_list() == [1, 1]
    for weights in ([0.0, 0.0], [1.0, np.nan], [1.0, -1.0], [1.0, np.inf]):
        with pytest.raises(ValueError, match="weight"):
            data.loss_weights(table.assign(weight=weights))


@pytest.mark.parametrize("name", ["loss_weight", "loss_slope", "margin", "flipped", "prompt_ids", "ref_chosen_logps"])
def test_a_column_that_a_later_step_makes_is_left_out_with_a_warning_and_others_stay(tmp_path, name):
    with pytest.warns(UserWarning, match=f"left out columns '{name}'"):
        table = load_rows(tmp_path, [PLAIN | {name: 7, "slope": 3}])
    assert table["slope"].to_list() == [3]
    assert name not in table


@pytest.mark.parametrize("value", [2**63, -(2**100), [1]])
def test_extra_values_that_parquet_cannot_hold_are_left_out_with_a_warning(tmp_path, value):
    with pytest.warns(UserWarning, match="left out columns 'note'"):
        assert "note" not in load_rows(tmp_path, [PLAIN | {"note": value}])


def test_half_a_surrogate_pair_in_an_extra_column_is_replaced(tmp_path):
    table = load_rows(tmp_path, [PLAIN | {"note": "a\ud83d"}])
    assert table["note"].to_list() == ["a\ufffd"]
    table.to_parquet(tmp_path / "kept.parquet")


# --- bad input


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{not json", "invalid JSON"),
        ([1, 2], "expected an object with named fields, got list"),
        ({"prompt": "Hello?", "chosen": "Hi!"}, "rejected: missing"),
        (PLAIN | {"prompt": None}, "prompt: missing or null"),
        (PLAIN | {"chosen": 7}, "chosen: expected text or a list of chat messages, got int"),
        (PLAIN | {"chosen": " \n"}, "chosen: empty text"),
        (PLAIN | {"chosen": "\ud83d"}, "chosen: not valid Unicode"),
        (PLAIN | {"chosen": "Go away."}, "rejected: must differ from chosen"),
        (PLAIN | {"weight": -1}, "weight: expected a finite number of at least 0"),
        (PLAIN | {"weight": float("nan")}, "weight: expected a finite number of at least 0"),
        (PLAIN | {"context": "x"}, "context: may belong to the prompt"),
        (PLAIN | {"input": 7}, "input: expected valid text, got 7"),
        (PLAIN | {"history": "x"}, "history: expected a list of [user's text, assistant's text]"),
        (PLAIN | {"prompt": [user("A"), assistant("B"), user("C")], "input": "x"}, "history, input: stand beside"),
        (PLAIN | {"prompt": [{"role": "system", "content": "A"}, user("B")], "system": "C"}, "system: differs"),
        (
            {"prompt": "How are you?", "chosen": "How are you? Well.", "rejected": "How are you? Bad."},
            "chosen, rejected: both repeat the prompt",
        ),
        (PLAIN | {"prompt": [{"role": "human", "content": "Hello?"}]}, "prompt: role must be one of"),
        (PLAIN | {"prompt": [user("Hello?"), assistant("Hi!")]}, "prompt: roles must be"),
        (PLAIN | {"prompt": [user("Hello?"), user("Hello?")]}, "prompt: roles must be"),
        (PLAIN | {"chosen": [user("Hi!")]}, "chosen: the last message must be the assistant's"),
        (
            PLAIN | {"chosen": [user("Why?"), assistant("Hi!")]},
            "rejected: must share all messages but the last",
        ),
    ],
)
def test_bad_row_is_named_by_file_line_and_field(tmp_path, row, message):
    with pytest.raises(ValueError, match=rf"data\.jsonl.*(?s:.)*line 2: {re.escape(message)}"):
        load_rows(tmp_path, [PLAIN, row, PLAIN])


@pytest.mark.parametrize("preference", [None, 3, "1", True, float("nan")])
def test_bad_annotation_is_named(tmp_path, preference):
    row = {"instruction": "Hello?", "output_1": "Hi!", "output_2": "Go away.", "preference": preference}
    with pytest.raises(ValueError, match="line 1: preference: expected a number from 1"):
        load_rows(tmp_path, [row])


def test_all_problems_are_counted_and_the_first_twenty_shown(tmp_path):
    with pytest.raises(ValueError, match="31 problems in 30 of 31 rows") as caught:
        load_rows(tmp_path, [PLAIN, {"chosen": "x"}] + [PLAIN | {"chosen": ""}] * 29)
    assert len(re.findall(r"line \d+: ", str(caught.value))) == 20
    assert "and 11 more" in str(caught.value)


def test_bad_rows_are_dropped_only_on_request_and_with_a_warning(tmp_path):
    with pytest.warns(UserWarning, match=r"(?s)1 problems in 1 of 2 rows.*line 2: chosen: empty text"):
        table = load_rows(tmp_path, [PLAIN, PLAIN | {"chosen": ""}], bad_rows="drop")
    assert len(table) == 1
    assert table.attrs["n_bad_rows"] == 1


def test_lines_that_are_not_utf8_are_named(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(json.dumps(PLAIN).encode() + b'\n{"prompt": "\xff"}\n')
    with pytest.raises(ValueError, match="line 2: not UTF-8"):
        data.load(str(path))


@pytest.mark.parametrize("name", ["empty.jsonl", "empty.json", "empty.parquet"])
def test_empty_file_is_an_error(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=name):
        data.load(str(tmp_path / name))


def test_truncated_json_array_names_its_place(tmp_path):
    (tmp_path / "cut.json").write_text('[{"prompt": "Hello?"},\n {"prom')
    with pytest.raises(ValueError, match=r"cut\.json: invalid JSON .*line 2"):
        data.load(str(tmp_path / "cut.json"))


def test_missing_file_says_what_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "nothing.jsonl"))):
        data.load(str(tmp_path / "nothing.jsonl"))


def test_other_file_types_are_refused(tmp_path):
    (tmp_path / "data.csv").write_text("prompt\nHello?\n")
    with pytest.raises(ValueError, match=r"expected one of \.jsonl"):
        data.load(str(tmp_path / "data.csv"))


@pytest.mark.filterwarnings("ignore:.*left out:UserWarning", "ignore:.*white space:UserWarning")
@pytest.mark.parametrize("bad_rows", ["raise", "drop"])
@pytest.mark.parametrize("name", ["data.jsonl", "data.json"])
def test_a_damaged_file_is_read_and_can_be_kept_or_is_refused_by_name(tmp_path, name, bad_rows):
    values = ["\ud83d", "", None, True, 7, -0.5, 2**70, float("nan"), [], {}, ["a", "b"], [user("A?")], "\n\nHuman: A?"]
    values += [[user("A?"), assistant("B.")], "\n\nHuman: A?\n\nAssistant: B.", [["A?", "B."]], {"role": "user"}]
    fields = ["prompt", "instruction", "input", "system", "history", "chosen", "rejected", "output_1", "output_2"]
    fields += ["preference", "weight", "note", "loss_weight", "prompt_id", "", "\udc00", "self"]
    rng, path = np.random.default_rng(0), tmp_path / name
    for i in range(250):
        rows = [PLAIN | {"prompt": f"Question {j}?", "weight": 1, "note": "x"} for j in range(3)]
        for _ in range(rng.integers(1, 4)):
            row, field = rows[rng.integers(3)], fields[rng.integers(len(fields))]
            row.pop(field, None) if rng.random() < 0.2 else row.update({field: values[rng.integers(len(values))]})
        lines = [json.dumps(row) for row in rows]
        content = bytearray(("\n".join(lines) if name == "data.jsonl" else f"[{','.join(lines)}]").encode())
        if i % 2:
            start = int(rng.integers(len(content)))
            content[start : start + int(rng.integers(0, 9))] = [b"", b"\xff", b"\\ud800", b"[" * 9999, b"9" * 5000][
                i % 5
            ]
        path.write_bytes(content)
        try:
            table = data.load(str(path), bad_rows=bad_rows)
        except ValueError as error:
            refused = str(error)
        else:
            table.to_parquet(tmp_path / "kept.parquet")
            refused = name
        assert name in refused, content


# --- the hub, as far as it can be tested without one


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def test_unreachable_hub_fails_in_seconds_and_names_the_ways_out(monkeypatch, empty_cache):
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", NOBODY_LISTENS)
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=r"(?s)owner/pairs.*data\.source: builtin.*\.jsonl"):
        data.load("owner/pairs")
    assert time.monotonic() - start < 15


def test_silent_hub_fails_at_the_deadline(monkeypatch, empty_cache):
    monkeypatch.setattr(hub, "DEADLINE", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(ConnectionError, match=r"no answer within 0\.5 s|timed out"):
            data.load("owner/pairs")


def test_cached_dataset_loads_offline(tmp_path, monkeypatch, empty_cache):
    # What `datasets` leaves in its cache after a download, made from a file instead.
    made = tmp_path / "made"
    datasets.load_dataset("json", data_files=write_jsonl(tmp_path / "d.jsonl", [PLAIN]), cache_dir=str(made))
    (origin,) = (path.parent for path in made.glob("json/*/*/*/dataset_info.json"))
    cached = empty_cache / "owner___pairs" / "default" / "0.0.0" / COMMIT
    shutil.copytree(origin, cached)
    (cached / "json-train.arrow").rename(cached / "pairs-train.arrow")
    info = json.loads((cached / "dataset_info.json").read_text())
    info |= {"config_name": "default", "dataset_name": "pairs"}
    (cached / "dataset_info.json").write_text(json.dumps(info))
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", NOBODY_LISTENS)
    table = data.load("owner/pairs")
    assert (table["chosen"].to_list(), table.attrs["revision"]) == (["Hi!"], COMMIT)
    assert data.load("owner/pairs", revision=COMMIT).equals(table)
    with pytest.raises(ConnectionError, match=f"asked for at revision v1.*the local cache has {COMMIT}"):
        data.load("owner/pairs", revision="v1")


def test_offline_mode_is_restored_after_a_failure(monkeypatch, empty_cache):
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", NOBODY_LISTENS)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    with pytest.raises(ConnectionError):
        data.load("owner/pairs")
    assert datasets.config.HF_HUB_OFFLINE is False


# --- splitting


def parts_of(splits):
    return [splits.seed, *splits.rounds, splits.evaluation]


def test_no_prompt_is_in_two_parts():
    splits = data.split(pairs_on_shared_prompts(), 5, [10, 12], 8, shuffle_seed=0, seed=1)
    ids = [prompt_id for part in parts_of(splits) for prompt_id in part["prompt_id"].unique()]
    assert len(ids) == len(set(ids)) == 5 + 10 + 12 + 8


def test_labelled_parts_hold_all_pairs_of_their_prompts_and_rounds_no_labels():
    splits = data.split(pairs_on_shared_prompts(pairs_per_prompt=3), 5, [10], 8, shuffle_seed=0)
    assert [len(part) for part in parts_of(splits)] == [15, 10, 24]
    assert list(splits.rounds[0].columns) == ["prompt_id", "prompt"]


def test_evaluation_prompts_depend_on_shuffle_seed_only():
    table = data.load("builtin")
    one = data.split(table, 10, [20], 30, shuffle_seed=0, seed=1)
    two = data.split(table, 50, [20, 20], 30, shuffle_seed=0, seed=2)
    three = data.split(table, 10, [20], 30, shuffle_seed=1, seed=1)
    pd.testing.assert_frame_equal(one.evaluation, two.evaluation)
    assert set(one.evaluation["prompt_id"]) != set(three.evaluation["prompt_id"])


def test_run_seed_changes_the_labelled_seed():
    table = data.load("builtin")
    one, two = (data.split(table, 64, [20], 30, 0, seed=s).seed["prompt_id"] for s in (1, 2))
    assert set(one) != set(two)


def test_order_is_that_of_a_shuffled_dataset():
    table = data.load("builtin")
    shuffled = datasets.Dataset.from_dict({"id": table["prompt_id"].to_list()}).shuffle(seed=42)["id"]
    splits = data.split(table, 20, [80, 200], 0, shuffle_seed=42)
    assert splits.seed["prompt_id"].to_list() == list(shuffled)[:20]
    first, second = (part["prompt_id"].to_list() for part in splits.rounds)
    assert second + first == list(shuffled)[-280:]


def test_selected_prompts_become_the_seed_and_leave_the_rounds():
    table = data.load("builtin")
    seen = []
    splits = data.split(table, 3, [40], 10, 0, select=lambda c: seen.append(c) or [7, 0, 5])
    assert splits.seed["prompt_id"].to_list() == seen[0]["prompt_id"][[7, 0, 5]].to_list()
    assert not set(splits.seed["prompt_id"]) & set(splits.rounds[0]["prompt_id"])


def test_too_few_prompts_says_how_many_are_needed_and_there():
    with pytest.raises(ValueError, match=r"needs 50 distinct prompts.*has 40 in 120 rows"):
        data.split(pairs_on_shared_prompts(40, 3), 10, [20, 10], 10, shuffle_seed=0)


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[:7] + rows[8:],
        lambda rows: rows[::-1],
        lambda rows: [row | {"chosen": "Another."} if row is rows[7] else row for row in rows],
        lambda rows: [row | {"weight": 2.0} for row in rows],
    ],
    ids=["a row less", "order", "a label", "weights"],
)
def test_data_that_has_changed_since_the_seed_was_drawn_is_refused(tmp_path, change):
    params = DataParams(source="data.jsonl", n_seed=3, n_prompts=[3], n_evaluation=4)
    rows = [PLAIN | {"prompt": f"Question {i}?"} for i in range(12)]
    write_jsonl(tmp_path / "data.jsonl", rows)
    first = data.prepare(params, tmp_path, 0)
    first.labelled.to_parquet(tmp_path / "prompts.parquet")
    labelled = pd.read_parquet(tmp_path / "prompts.parquet")
    pd.testing.assert_frame_equal(data.prepare(params, tmp_path, 0, labelled=labelled).seed, first.seed)
    write_jsonl(tmp_path / "data.jsonl", change(rows))
    with pytest.raises(ValueError, match=r"data\.jsonl is not what it was .* run notebook 01_seed_dpo again"):
        data.prepare(params, tmp_path, 0, labelled=labelled)


def test_a_later_step_asks_the_hub_for_the_commit_that_the_seed_was_drawn_from(monkeypatch):
    asked = []

    def read(source, split, revision):
        asked.append(revision)
        return [(f"row {i}", PLAIN | {"prompt": f"{i}?"}) for i in range(9)], COMMIT

    monkeypatch.setattr(data.sources, "_read_hub", read)
    params = DataParams(source="owner/pairs", revision="v1", n_seed=3, n_prompts=[3], n_evaluation=3)
    first = data.prepare(params, Path(), 0)
    data.prepare(params, Path(), 0, labelled=first.labelled)
    assert asked == ["v1", COMMIT]


def test_prompts_that_differ_in_white_space_at_their_ends_are_one_prompt_in_every_split(tmp_path):
    rows = [
        PLAIN | {"prompt": f"Question {i}?{end}", "rejected": repr(end)} for i in range(8) for end in ("", " ", "\n")
    ]
    with pytest.warns(UserWarning, match="16 prompts differ from another in nothing but white space"):
        splits = data.split(load_rows(tmp_path, rows), 3, [2], 3, shuffle_seed=0)
    assert [len(part) for part in parts_of(splits)] == [9, 2, 9]


def test_prompt_id_depends_on_roles_and_contents_only():
    prompt = [user("Hello?")]
    assert data.prompt_id(prompt) == data.prompt_id([{"content": "Hello?", "role": "user"}])
    assert data.prompt_id(prompt) != data.prompt_id([assistant("Hello?")])
    assert re.fullmatch("[0-9a-f]{12}", data.prompt_id(prompt))


# --- forms kept from training


@given(
    n_forms=st.integers(1, 26),
    shares=st.tuples(*[st.floats(0, 0.25)] * 4),
    n_evaluation=st.integers(1, 80),
    shuffle_seed=st.integers(0, 99),
    seed=st.none() | st.integers(0, 99),
)
def test_no_form_of_an_evaluation_prompt_is_trained_on(n_forms, shares, n_evaluation, shuffle_seed, seed):
    table = BUILTIN
    n_seed, n_calibration, *rounds = (int(share * 80 * (27 - n_forms)) for share in shares)
    sizes = {"n_calibration": n_calibration, "held_out_forms": n_forms}
    splits = data.split(table, n_seed, rounds, n_evaluation, shuffle_seed, seed, **sizes)
    form = table.set_index("prompt_id")["form"]
    trained = pd.concat([splits.seed, splits.calibration, *splits.rounds, splits.training_pool])["prompt_id"]
    assert not set(form[trained]) & set(form[splits.evaluation["prompt_id"]])
    assert len(splits.training_pool) == 80 * (27 - n_forms)
    assert len(splits.evaluation) == n_evaluation
    other = data.split(table, 0, [], n_evaluation, shuffle_seed, 7, held_out_forms=n_forms)
    pd.testing.assert_frame_equal(splits.evaluation, other.evaluation)
    pd.testing.assert_frame_equal(splits.training_pool, other.training_pool)


def test_six_forms_held_out_are_480_prompts_and_leave_1680():
    splits = data.split(BUILTIN, 1440, [192], 480, shuffle_seed=42, seed=0, n_calibration=48, held_out_forms=6)
    assert splits.evaluation["form"].value_counts().tolist() == [80] * 6


@pytest.mark.parametrize("sizes", [{"n_seed": 1681, "n_evaluation": 1}, {"n_seed": 1, "n_evaluation": 481}])
def test_held_out_forms_that_leave_too_few_prompts_say_how_many_there_are(sizes):
    with pytest.raises(ValueError, match="held_out_forms: 6 there are 480 prompts to evaluate on and 1680 for all"):
        data.split(BUILTIN, n_rounds=[], shuffle_seed=0, held_out_forms=6, **sizes)


def test_forms_cannot_be_held_out_of_data_without_them():
    with pytest.raises(ValueError, match="2 of 2160 prompts have no form, so that none can be kept from training"):
        data.split(BUILTIN.assign(form=BUILTIN["form"].mask(BUILTIN.index < 2)), 1, [], 1, 0, held_out_forms=1)
    with pytest.raises(ValueError, match="40 of 40 prompts have no form"):
        data.split(pairs_on_shared_prompts(40), 1, [], 1, 0, held_out_forms=1)


# --- seed selection


def test_farthest_point_takes_the_farthest_each_time():
    embeddings = np.random.default_rng(0).normal(size=(50, 4))
    chosen = data.farthest_point(embeddings, 10, seed=0)
    directions = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    distances = 1 - directions @ directions.T
    for i in range(1, 10):
        assert chosen[i] == distances[chosen[:i]].min(axis=0).argmax()


def test_farthest_point_covers_clusters_that_differ_in_size():
    rng = np.random.default_rng(0)
    cluster = np.repeat([0, 1, 2, 3], [500, 3, 2, 1])
    embeddings = np.eye(4)[cluster] * 5 + rng.normal(scale=0.1, size=(506, 4))
    assert set(cluster[data.farthest_point(embeddings, 4, seed=0)]) == {0, 1, 2, 3}


def test_farthest_point_ignores_length_and_never_repeats():
    embeddings = np.repeat(np.eye(3), 4, axis=0) * np.arange(1, 13)[:, None]
    chosen = data.farthest_point(embeddings, 12, seed=0)
    assert sorted(chosen) == list(range(12))


def test_farthest_point_refuses_embeddings_without_direction():
    with pytest.raises(ValueError, match="2 embeddings are zero or not finite, the first at position 1"):
        data.farthest_point([[1.0, 2.0], [0.0, 0.0], [np.nan, 1.0]], 2, seed=0)


def test_smaller_selection_is_part_of_the_larger():
    embeddings = np.random.default_rng(0).normal(size=(30, 4))
    small, large = (data.farthest_point(embeddings, n, seed=3) for n in (5, 12))
    assert large[:5].tolist() == small.tolist()


def test_seed_selected_by_farthest_point_is_found_again_by_its_ids_without_a_model():
    params = DataParams(source="builtin", n_seed=6, n_prompts=[5], n_evaluation=4, seed_selection="farthest-point")

    def embed(prompts):
        return np.array([[len(p[-1]["content"]), p[-1]["content"].count("e") + 1] for p in prompts], float)

    first = data.prepare(params, Path(), 0, embed)
    again = data.prepare(params, Path(), 0, labelled=first.labelled)
    pd.testing.assert_frame_equal(again.seed, first.seed)
    pd.testing.assert_frame_equal(again.rounds[0], first.rounds[0])
    assert not set(first.seed["prompt_id"]) & set(first.rounds[0]["prompt_id"])
    with pytest.raises(ValueError, match="notebook 01"):
        data.prepare(params, Path(), 0)


def test_calibration_prompts_are_apart_and_stay_when_a_round_is_added():
    table = data.load("builtin")
    short, long = (data.split(table, 5, rounds, 5, 0, n_calibration=7) for rounds in ([4], [4, 4]))
    pd.testing.assert_frame_equal(short.calibration, long.calibration)
    ids = [key for part in (*parts_of(long), long.calibration) for key in part["prompt_id"]]
    assert len(ids) == len(set(ids)) == 5 + 4 + 4 + 5 + 7
    pd.testing.assert_frame_equal(long.seed, data.split(table, 5, [4], 5, 0).seed)


# --- label noise


@pytest.mark.parametrize("share", [0, 0.1, 0.25, 1])
def test_flips_exactly_the_share_by_swapping_replies(share):
    pairs = pairs_on_shared_prompts()
    pairs["chosen_model"], pairs["rejected_model"] = "a", "b"
    noisy = data.flip_labels(pairs, share, seed=0)
    flipped, kept = noisy[noisy["flipped"]], noisy[~noisy["flipped"]]
    assert len(flipped) == round(share * len(pairs))
    assert (flipped["chosen"] == pairs.loc[flipped.index, "rejected"]).all()
    assert (flipped["rejected_model"] == "a").all()
    pd.testing.assert_frame_equal(kept[pairs.columns], pairs.loc[kept.index])


def test_rows_flipped_at_a_smaller_share_are_among_those_at_a_larger():
    pairs = pairs_on_shared_prompts()
    small, large = (data.flip_labels(pairs, share, seed=5)["flipped"] for share in (0.1, 0.25))
    assert (small <= large).all()


def test_flipping_twice_is_refused():
    with pytest.raises(ValueError, match="flipped"):
        data.flip_labels(data.flip_labels(pairs_on_shared_prompts(), 0.1, 0), 0.1, 0)


# --- real data


@pytest.mark.skipif(not REAL_PAIRS.exists(), reason="the GPT-4 preference file is not beside this repository")
def test_real_preferences_load_and_split_by_prompt():
    table = data.load(str(REAL_PAIRS))
    assert (len(table), table["prompt_id"].nunique()) == (4075, 316)
    splits = data.split(table, 100, [50, 50], 100, shuffle_seed=42, seed=0)
    ids = [prompt_id for part in parts_of(splits) for prompt_id in part["prompt_id"].unique()]
    assert len(ids) == len(set(ids)) == 300


@given(st.integers(1, 20), st.integers(0, 20), st.integers(0, 5))
def test_more_labels_or_rounds_change_no_round_and_no_label_that_was_there(n_seed, more, seed):
    table = with_ids(pd.DataFrame({"prompt": [[user(f"prompt {i}")] for i in range(80)]}))
    few, many = (data.split(table, n, [6, 4], 10, 0, seed, n_calibration=5) for n in (n_seed, n_seed + more))
    longer = data.split(table, n_seed, [6, 4, 3], 10, 0, seed, n_calibration=5)
    for other in (many, longer):
        pd.testing.assert_frame_equal(other.seed.head(n_seed), few.seed)
        pd.testing.assert_frame_equal(other.calibration, few.calibration)
        for mine, same in zip(few.rounds, other.rounds, strict=False):
            pd.testing.assert_frame_equal(mine, same)


# --- which two answers


def similarities(n, seed):
    states = np.random.default_rng(seed).normal(size=(n, 4))
    states /= np.linalg.norm(states, axis=1, keepdims=True)
    return states @ states.T


def aepo_objective(similarity, chosen, diversity):
    """The paper's, for any number of answers to label: f_rep + diversity * f_div."""
    n, k = len(similarity), len(chosen)
    rep = sum(similarity[y, other] for y in chosen for other in range(n) if other != y) / (k * (n - 1))
    div = -sum(similarity[y, other] for y in chosen for other in chosen if other != y) / (k * (k - 1))
    return rep + diversity * div


diversities = st.floats(0, 5)


@given(st.integers(2, 9), st.integers(0, 99), diversities)
def test_no_pair_of_answers_has_a_higher_aepo_objective_than_the_chosen_one(n, seed, diversity):
    similarity = similarities(n, seed)
    i, j = data.choose_two(similarity, diversity)
    assert 0 <= i < j < n
    best = max(aepo_objective(similarity, pair, diversity) for pair in itertools.combinations(range(n), 2))
    assert aepo_objective(similarity, (i, j), diversity) == pytest.approx(best, abs=1e-12)


@given(st.integers(2, 9), st.integers(0, 99), diversities, st.randoms(use_true_random=False))
def test_the_two_answers_depend_on_neither_order_nor_zero_nor_scale_nor_diagonal(n, seed, diversity, random):
    similarity = similarities(n, seed)
    chosen = set(data.choose_two(similarity, diversity))
    order = random.sample(range(n), n)
    assert {order[i] for i in data.choose_two(similarity[np.ix_(order, order)], diversity)} == chosen
    other = 3 * similarity + 0.5
    np.fill_diagonal(other, 7)
    assert set(data.choose_two(other, diversity)) == chosen


@given(st.integers(2, 9), st.integers(0, 99))
def test_without_diversity_the_most_central_answers_are_chosen_and_with_much_the_least_alike(n, seed):
    similarity = similarities(n, seed)
    central = np.argsort(similarity.sum(axis=1))[-2:]
    assert set(data.choose_two(similarity, 0)) == set(central.tolist())
    i, j = data.choose_two(similarity, 1e6)
    assert similarity[i, j] == similarity.min()


def test_of_equally_good_pairs_the_first_is_chosen_and_two_are_needed():
    assert data.choose_two(np.ones((4, 4))) == (0, 1)
    with pytest.raises(ValueError, match="two answers cannot be chosen from 1"):
        data.choose_two(np.ones((1, 1)))
