"""The run folder: whole artefacts, records that hold what they must, and steps that refuse what does not fit."""

import json
import os
import platform
import re
import time
from importlib import metadata

import numpy as np
import pandas as pd
import pytest

from sgpo_lib.runs import STEPS, Run


@pytest.fixture
def open_run(tmp_path):
    """Open a run whose params need no model: nothing here loads one."""
    path = tmp_path / "params" / "small.yaml"
    path.parent.mkdir()
    path.write_text(
        "model: {name_or_path: none}\n"
        "data: {source: builtin, n_seed: 6, n_prompts: [4, 4], n_evaluation: 5}\n"
        "seed_dpo: {learning_rate: 1.0e-4}\n"
        "leader: {learning_rate: 1.0e-4}\n"
    )
    return lambda seed=0, method="ssapo", **overrides: Run.open(
        path, seed, method, {key.replace("__", "."): value for key, value in overrides.items()}
    )


def make(step, content=0, metrics=None):
    """Do a step as its notebook would, with artefacts that hold nothing but a number."""
    step.begin()
    for artefact in STEPS[step.name].artefacts:
        if artefact.endswith(".parquet"):
            step.save(artefact, pd.DataFrame({"x": [content, 1]}))
        elif artefact.endswith(".json"):
            step.save(artefact, {"x": content})
        else:
            with step.replacing(artefact) as folder:
                folder.mkdir()
                (folder / "weights").write_text(str(content))
    return step.finish(metrics)


def make_round(run, t, content=0):
    for name in ("annotation", "follower", "leader"):
        make(run.step(name, t), content)


def make_all(run):
    make(run.step("seed_dpo"))
    make(run.seed_only.step("evaluation"))
    for t in run.rounds:
        make_round(run, t)
    make(run.step("evaluation"))


# --- order


@pytest.mark.parametrize(
    ("done", "step", "notebook"),
    [
        ([], ("annotation", 1), "01_seed_dpo"),
        (["seed_dpo"], ("follower", 1), "02_self_annotation with round=1"),
        (["seed_dpo", "annotation"], ("leader", 1), "03_dro_reweighting with round=1"),
        (["seed_dpo", "annotation", "follower"], ("annotation", 2), "04_weighted_training with round=1"),
        (["seed_dpo", "annotation", "follower", "leader"], ("evaluation", None), '05_evaluation with method="dpo"'),
    ],
)
def test_step_begun_before_its_inputs_names_the_notebook_to_run(open_run, done, step, notebook):
    run = open_run()
    for name in done:
        make(run.step(name, 1))
    with pytest.raises(FileNotFoundError, match=f"run notebook {notebook} first"):
        run.step(*step).begin()
    assert not run.step(*step).record_file.exists()


def test_all_steps_in_order_complete_a_run(open_run):
    run = open_run()
    make_all(run)
    run.step("evaluation").check()


def test_opening_a_run_and_naming_its_steps_creates_nothing(open_run):
    run = open_run()
    assert run.step("leader", 2).inputs
    assert not run.folder.exists()


@pytest.mark.parametrize("name", ["dpo", "seed-dpo", ""])
def test_unknown_step_is_refused_with_those_there_are(open_run, name):
    with pytest.raises(ValueError, match="the steps are seed_dpo, annotation, follower, leader, evaluation"):
        open_run().step(name, 1)


@pytest.mark.parametrize("t", [None, 0, 3, "1"])
def test_round_that_the_params_do_not_have_is_refused(open_run, t):
    with pytest.raises(ValueError, match=re.escape(f"round is {t!r}, but these params have rounds 1 to 2")):
        open_run().step("annotation", t)


# --- other params


def test_input_made_with_other_params_lists_key_old_and_new(open_run):
    make(open_run().step("seed_dpo"))
    with pytest.raises(ValueError, match="was made with other params") as caught:
        open_run(beta=0.2, data__n_seed=7).step("annotation", 1).begin()
    assert "beta: made with 0.1, asked for 0.2" in str(caught.value)
    assert "data.n_seed: made with 6, asked for 7" in str(caught.value)
    assert "notebook 01_seed_dpo" in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "step"),
    [
        ({"follower__radius": 0.5, "leader__learning_rate": 1.0, "evaluation__n_bootstrap": 7}, ("annotation", 1)),
        ({"leader__learning_rate": 1.0, "evaluation__confidence": 0.5}, ("leader", 1)),
        ({"leader__mode": "transport", "follower__radius": 0.01}, ("evaluation", None)),
    ],
)
def test_params_that_no_input_reads_may_change(open_run, changed, step):
    run = open_run()
    make(run.step("seed_dpo"))
    if step[0] != "annotation":
        make(run.step("annotation", 1))
        make(run.step("follower", 1))
    if step[0] == "evaluation":
        make(run.seed_only.step("evaluation"))
        make(run.step("leader", 1))
        make_round(run, 2)
    open_run(**changed).step(*step).begin()


def test_a_param_that_came_after_the_record_counts_as_made_with_its_default(open_run):
    step = open_run().step("seed_dpo")
    make(step)
    record = json.loads(step.record_file.read_text())
    for key in ("data.bad_rows", "seed_dpo.report_to", "generation.engine"):
        del record["params"][key]
    step.record_file.write_text(json.dumps(record))
    open_run().step("annotation", 1).begin()
    with pytest.raises(ValueError, match=r"data\.bad_rows: made with 'raise', asked for 'drop'"):
        open_run(data__bad_rows="drop").step("annotation", 1).begin()


def test_further_rounds_may_be_added_to_a_finished_run(open_run):
    make_all(open_run())
    longer = open_run(data__n_prompts=[4, 4, 8])
    longer.step("annotation", 3).begin()
    with pytest.raises(ValueError, match=r"data\.n_prompts: made with \[4, 4\], asked for \[4, 5\]"):
        open_run(data__n_prompts=[4, 5, 8]).step("annotation", 3).begin()


def test_params_with_windows_and_sections_left_out_equal_their_record(open_run):
    changes = {"follower__support": [-2.0, 3.0], "gold": None, "model__lora": {"r": 4}}
    make_all(open_run(**changes))
    open_run(**changes).step("evaluation").check()


# --- stale inputs


def test_annotation_made_anew_makes_the_leader_ask_for_the_follower(open_run):
    run = open_run()
    make(run.step("seed_dpo"))
    make_round(run, 1)
    make(run.step("annotation", 1), content=1)
    with pytest.raises(ValueError, match="run notebook 03_dro_reweighting with round=1 again"):
        run.step("leader", 1).begin()


def test_seed_made_anew_makes_every_later_step_ask_for_the_first_one_it_spoils(open_run):
    run = open_run()
    make_all(run)
    make(run.step("seed_dpo"), content=1)
    for step in (run.step("follower", 1), run.step("leader", 2)):
        with pytest.raises(ValueError, match="run notebook 02_self_annotation with round=1 again"):
            step.begin()
    with pytest.raises(ValueError, match='run notebook 05_evaluation with method="dpo" again'):
        run.step("evaluation").begin()


def test_step_made_anew_with_the_same_result_spoils_nothing(open_run):
    run = open_run()
    make_all(run)
    make(run.step("seed_dpo"))
    run.step("evaluation").check()


def test_accumulated_rounds_depend_on_all_earlier_pairs(open_run):
    run = open_run(leader__accumulate=True)
    make(run.step("seed_dpo"))
    make_round(run, 1)
    make(run.step("annotation", 2))
    record = run.step("annotation", 2).record()
    inputs = {"dpo/seed_dpo.json", "dpo/round-1-implicit/annotation.json", "ssapo/round-1/leader.json"}
    assert set(record["inputs"]) == inputs


def test_a_round_may_have_a_radius_of_its_own_but_not_another_within_it(open_run):
    run, wider = open_run(), open_run(follower__radius=0.03)
    make(run.step("seed_dpo"))
    make_round(run, 1)
    make(run.step("annotation", 2))
    with pytest.warns(UserWarning, match=r"(?s)round-1.*follower\.radius: made with 0\.01, asked for 0\.03"):
        make(wider.step("follower", 2))
    with pytest.raises(ValueError, match=r"(?s)round-2.*follower\.radius: made with 0\.03, asked for 0\.01"):
        run.step("leader", 2).begin()


def test_step_begun_again_stays_finished_as_it_was_until_it_finishes_anew(open_run):
    run = open_run()
    make(run.step("seed_dpo"))
    again = run.step("seed_dpo").begin()
    again.save("pairs.parquet", pd.DataFrame({"x": [7]}))
    run.step("annotation", 1).begin()
    assert run.step("seed_dpo").load("pairs.parquet")["x"].tolist() == [0, 1]
    make(run.step("seed_dpo"), content=7)
    assert run.step("seed_dpo").load("pairs.parquet")["x"].tolist() == [7, 1]


def test_checking_ten_rounds_takes_less_than_a_second(open_run):
    run = open_run(data__n_prompts=[4] * 10)
    make(run.step("seed_dpo"))
    make(run.seed_only.step("evaluation"))
    for t in run.rounds:
        make_round(run, t)
    start = time.perf_counter()
    run.step("evaluation").begin()
    assert time.perf_counter() - start < 1


# --- damaged artefacts


@pytest.mark.parametrize(
    "artefact", ["pairs.parquet", "training_log.parquet", "policy/weights"], ids=["table", "log", "file in a folder"]
)
def test_truncated_artefact_is_named(open_run, artefact):
    step = open_run().step("seed_dpo")
    make(step, content=123)
    path = step.folder / artefact
    path.write_bytes(path.read_bytes()[:-1])
    whole = artefact.split("/")[0]
    with pytest.raises(ValueError, match=f"{re.escape(str(step.folder / whole))} is damaged.*01_seed_dpo again"):
        step.load(whole)


def test_missing_artefact_is_named(open_run):
    step = open_run().step("seed_dpo")
    make(step)
    (step.folder / "pairs.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"pairs\.parquet does not exist: run notebook 01_seed_dpo first"):
        step.load("pairs.parquet")


def test_file_added_to_an_artefact_folder_is_noticed(open_run):
    step = open_run().step("seed_dpo")
    make(step)
    (step.folder / "policy" / "more").write_text("")
    with pytest.raises(ValueError, match="policy is damaged"):
        step.load("policy")


@pytest.mark.parametrize("content", [b'{"step": "seed_dpo", "par', b"", b"\xff\xfe", b"{}", b"null"])
def test_unreadable_record_is_named(open_run, content):
    run = open_run()
    make(run.step("seed_dpo"))
    run.step("seed_dpo").record_file.write_bytes(content)
    with pytest.raises(ValueError, match=r"seed_dpo\.json cannot be read.*run notebook 01_seed_dpo again"):
        run.step("annotation", 1).begin()


# --- whole or not at all


@pytest.mark.parametrize("missing", ["prompts.parquet", "pairs.parquet", "training_log.parquet", "policy"])
def test_step_cannot_finish_before_all_its_artefacts_are_written(open_run, missing):
    step = open_run().step("seed_dpo").begin()
    for artefact in {"prompts.parquet", "pairs.parquet", "training_log.parquet", "policy"} - {missing}:
        with step.replacing(artefact) as path:
            path.write_text("x")
    with pytest.raises(RuntimeError, match=f"seed_dpo cannot finish: {re.escape(missing)} not written"):
        step.finish()
    assert not step.record_file.exists()


def test_step_begun_again_cannot_finish_on_what_was_written_before(open_run):
    step = open_run().step("seed_dpo")
    make(step)
    step.begin()
    with pytest.raises(RuntimeError, match="not written"):
        step.finish()


@pytest.mark.parametrize("interruption", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("artefact", ["table.parquet", "policy"])
def test_failed_write_leaves_the_previous_artefact_whole_and_no_temporary(open_run, artefact, interruption):
    step = open_run().step("seed_dpo").begin()

    def write(content):
        with step.replacing(artefact) as path:
            if artefact == "policy":
                path.mkdir()
                path /= "weights"
            path.write_text(content)
            if content == "half":
                raise interruption

    write("whole")
    with pytest.raises(interruption):
        write("half")
    (written,) = (path for path in step.folder.rglob("*") if path.is_file())
    assert written.read_text() == "whole"
    assert [path.name for path in step.draft.iterdir()] == [artefact]


def test_unwritable_table_leaves_the_previous_one(open_run):
    step = open_run().step("seed_dpo").begin()
    step.save("pairs.parquet", pd.DataFrame({"x": [1]}))
    before = (step.draft / "pairs.parquet").read_bytes()
    for cell in (1, 2**100):
        with pytest.raises(ValueError, match=r"cannot hold column 'y'.*(?i:convert|mixed|type|encode)"):
            step.save("pairs.parquet", pd.DataFrame({"x": [1, 2], "y": [cell, {"a": 1} if cell == 1 else cell]}))
    assert (step.draft / "pairs.parquet").read_bytes() == before
    assert len(list(step.draft.iterdir())) == 1


def test_new_artefact_folder_replaces_the_old_one_entirely(open_run):
    step = open_run().step("seed_dpo").begin()
    for name in ("old", "new"):
        with step.replacing("policy") as folder:
            folder.mkdir()
            (folder / name).write_text(name)
    assert [path.name for path in (step.draft / "policy").iterdir()] == ["new"]


def test_what_a_killed_process_left_half_written_is_cleared_when_the_step_begins_again(open_run):
    step = open_run().step("seed_dpo").begin()
    leftover = step.draft.rename(step.draft.with_name(step.draft.name.replace(str(os.getpid()), "999999999")))
    (leftover / "pairs.parquet").write_text("half")
    step.begin()
    assert not leftover.exists()


# --- what a record holds


def test_record_holds_params_seed_inputs_outputs_metrics_and_seconds(open_run):
    run = open_run(seed=3)
    make(run.step("seed_dpo"))
    step = run.step("annotation", 1)
    with step.timed("generate"):
        pass
    with step.timed("generate"):
        time.sleep(0.01)
    record = make(step, metrics={"n_pairs": 4})
    assert record == json.loads(step.record_file.read_text()) == step.record()
    assert (record["step"], record["round"], record["method"], record["seed"]) == ("annotation", 1, "ssapo", 3)
    assert record["params"]["data.n_prompts"] == [4]
    assert record["params"]["generation.max_new_tokens"] == 300
    assert record["metrics"] == {"n_pairs": 4}
    assert 0.01 <= record["seconds"]["generate"] < 1
    assert 0 < record["peak_gib"] < 64
    hashes = [*record["inputs"].values(), *record["outputs"].values()]
    assert set(record["inputs"]) == {"dpo/seed_dpo.json"}
    assert set(record["outputs"]) == {"responses.parquet", "pairs.parquet"}
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in hashes)


def test_record_holds_versions_platform_and_processor(open_run):
    environment = make(open_run().step("seed_dpo"))["environment"]
    for package in ("torch", "transformers", "trl", "peft", "numpy", "pandas"):
        assert environment["packages"][package] == metadata.version(package)
    assert environment["python"] == platform.python_version()
    assert environment["platform"] == platform.platform()
    assert environment["processor"]
    assert environment["cores"] == os.cpu_count()


def test_record_holds_the_commit_and_whether_tracked_files_differ_from_it(open_run, tmp_path):
    git = f"git -C {tmp_path} -c user.name=a -c user.email=a@b -c commit.gpgsign=false"
    assert make(open_run().step("seed_dpo"))["environment"]["git_commit"] is None
    os.system(f"{git} init -q && {git} add params && {git} commit -qm first")
    clean = make(open_run().step("seed_dpo"))["environment"]
    assert re.fullmatch("[0-9a-f]{40}", clean["git_commit"])
    assert clean["git_dirty"] is False
    with (tmp_path / "params" / "small.yaml").open("a") as stream:
        stream.write("# changed\n")
    assert make(open_run().step("seed_dpo"))["environment"]["git_dirty"] is True


def test_record_of_a_step_that_reads_files_of_ones_own_holds_their_hashes(open_run, tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"prompt": "Hello?"}\n')
    run = open_run(data__source="mine.jsonl")
    make(run.step("seed_dpo"))
    (tmp_path / "mine.jsonl").write_text('{"prompt": "Goodbye?"}\n')
    with pytest.raises(ValueError, match=r"(?s)mine\.jsonl.*01_seed_dpo"):
        run.step("annotation", 1).begin()


def test_equal_contents_have_equal_hashes_and_others_do_not(open_run):
    table = pd.DataFrame({"text": ["a", "b"], "ids": [[1, 2], [3]], "x": [0.1, np.pi]})

    def hashes(seed, x):
        step = open_run(seed=seed).step("seed_dpo").begin()
        step.save("pairs.parquet", table.assign(x=x))
        step.save("prompts.parquet", table)
        step.save("training_log.parquet", table)
        with step.replacing("policy") as folder:
            folder.mkdir()
            (folder / "weights").write_text("w")
        return step.finish()["outputs"]

    assert hashes(0, 1.5) == hashes(1, 1.5)
    differing = {name for name, value in hashes(2, 2.5).items() if value != hashes(0, 1.5)[name]}
    assert differing == {"pairs.parquet"}


# --- reading back


def test_tables_return_plain_lists_of_messages_and_tokens(open_run):
    prompt = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello? \u00e9\U0001f600"}]
    table = pd.DataFrame(
        {"prompt": [prompt, prompt[1:]], "ids": [[1, 2, 3], [4]], "text": ["a", ""], "x": [0.1, -1e-300]}
    )
    step = open_run().step("seed_dpo").begin()
    for artefact in ("prompts.parquet", "pairs.parquet", "training_log.parquet"):
        step.save(artefact, table)
    step.save("policy", {})
    step.finish()
    back = step.load("pairs.parquet")
    pd.testing.assert_frame_equal(back, table)
    for column, kind in (("prompt", dict), ("ids", int)):
        assert all(type(cell) is list and {type(part) for part in cell} == {kind} for cell in back[column])
    assert json.loads(json.dumps(back["prompt"].tolist())) == table["prompt"].tolist()


def test_json_artefacts_return_as_they_were(open_run):
    run = open_run()
    make_all(run)
    assert run.step("evaluation").load("summary.json") == {"x": 0}


# --- refused before anything is made


@pytest.mark.parametrize("label", ["", "../../../x", "a/b", "a b", "{a}", "a\n"])
def test_a_label_that_is_no_part_of_a_folders_name_is_refused(open_run, label):
    with pytest.raises(ValueError, match="a label names a folder"):
        open_run(method=f"ssapo+{label}")


@pytest.mark.parametrize(
    ("key", "value"),
    [("seed_dpo__report_to", "wandb"), ("leader__optim", "adamw_8bit"), ("leader__report_to", ["mlflow"])],
)
def test_a_training_that_needs_a_package_that_is_missing_is_refused_before_the_first_step(
    open_run, monkeypatch, key, value
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=re.escape(key.replace("__", "."))):
        open_run(**{key: value}).step("seed_dpo").begin()


def test_overrides_may_be_text(open_run, tmp_path):
    path = tmp_path / "params" / "small.yaml"
    assert Run.open(path, overrides='{"follower.radius": 0.5}').params.follower.radius == 0.5


# --- seeds and folders


def test_seed_differs_by_run_step_and_round_and_is_the_same_for_all_methods(open_run):
    keys = [
        (seed, name, t)
        for seed in (0, 1, 2)
        for name in STEPS
        for t in ((1, 2) if name in ("annotation", "follower", "leader") else (None,))
    ]
    seeds = {key: open_run(seed=key[0]).step(*key[1:]).seed for key in keys}
    assert len(set(seeds.values())) == len(keys)
    assert all(0 <= seed < 2**32 for seed in seeds.values())
    for key, seed in seeds.items():
        assert open_run(seed=key[0], method="ssapo+other").step(*key[1:]).seed == seed


def test_methods_share_the_seed_policy_and_what_it_does_alone_and_nothing_else(open_run):
    one, two = open_run(), open_run(method="ssapo+other")
    for shared in (("seed_dpo", None), ("annotation", 1)):
        assert one.step(*shared).folder == two.step(*shared).folder
    assert one.step("evaluation").inputs[0].folder == two.step("evaluation").inputs[0].folder
    for step in (("annotation", 2), ("leader", 2), ("evaluation", None)):
        assert one.step(*step).folder != two.step(*step).folder


def test_first_rounds_ranked_by_different_judges_lie_apart(open_run):
    one, two = open_run(), open_run(method="iter-dpo")
    assert one.step("annotation", 1).folder != two.step("annotation", 1).folder
    assert one.step("annotation", 1).seed == two.step("annotation", 1).seed


def test_first_rounds_of_other_answers_lie_apart_too(open_run):
    ways = [{}, {"n_samples": 8}, {"n_samples": 8, "choose": "aepo"}, {"length_penalty": "balanced"}]
    names = [open_run(annotation=way).step("annotation", 1).folder.name for way in ways]
    expected = ["round-1-implicit", "round-1-implicit-8", "round-1-implicit-8-aepo", "round-1-implicit-2-balanced"]
    assert names == expected


def test_seed_dpo_alone_has_no_rounds_and_its_evaluation_serves_every_method(open_run):
    alone = open_run(method="dpo", data__n_prompts=[4, 4, 4])
    assert list(alone.rounds) == []
    make(alone.step("seed_dpo"))
    make(alone.step("evaluation"))
    assert open_run().step("evaluation").inputs[0].folder == alone.step("evaluation").folder
    with pytest.raises(ValueError, match="label"):
        open_run(method="dpo+other")


def test_a_leader_without_follower_does_not_wait_for_one(open_run):
    run = open_run(method="spa")
    make(run.step("seed_dpo"))
    make(run.step("annotation", 1))
    make(run.step("leader", 1))


def test_a_judge_that_ranks_nothing_or_moves_spoils_no_step(open_run):
    judge = {"kind": "llm", "url": "http://localhost:1/v1", "model": "m"}
    make_all(open_run())
    open_run(judge=judge).step("leader", 1).begin()
    moved = open_run(judge=judge | {"url": "http://elsewhere:2/v1", "max_concurrency": 2}, gold=None)
    assert moved.step("evaluation").params == open_run(judge=judge, gold=None).step("evaluation").params
    other = open_run(judge=judge | {"model": "n"}, gold=None)
    assert moved.step("evaluation").params != other.step("evaluation").params


def test_the_shift_rule_reads_the_margins_of_the_round_before(open_run):
    run = open_run(follower__radius={"rule": "shift"})
    folders = [step.folder.name for step in run.step("follower", 2).inputs]
    assert folders == ["round-2", "round-1-implicit"]


def test_output_dir_moves_the_run_and_is_not_part_of_its_params(open_run, tmp_path):
    run = open_run(output_dir="elsewhere")
    assert run.folder == tmp_path / "elsewhere" / "small" / "seed-0"
    assert "output_dir" not in run.params.flat()
