"""Stepping by hand: a finished step is shown, what differs goes beside it, and no order of doings loses anything."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import artefacts, compute, contents, make_graph, save, steps_of, write_params

from sgpo_lib.runs import STEPS, Run, drafts, open_step
from sgpo_lib.runs import step as step_module
from sgpo_lib.runs.checks import is_current


@pytest.fixture
def params_file(tmp_path):
    return write_params(tmp_path)


@pytest.fixture
def finished(params_file):
    """A params file whose run has gone through the graph."""
    make_graph(Run.open(params_file))
    return params_file


def files(root):
    """Content and time of every file of the runs."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in root.rglob("runs/**/*") if path.is_file()}


# --- looking


def test_a_finished_step_opened_run_and_finished_is_shown_and_stays_as_it_is(finished, tmp_path):
    before = files(tmp_path)
    for each in steps_of(Run.open(finished)):
        step = open_step(each.name, finished, method=each.run.method, round=each.round)
        assert step.finished
        assert "redo = True makes it again" in step.about
        for name in STEPS[step.name].artefacts:
            step.save(name, pd.DataFrame({"x": ["something else"]}))
        assert step.finish() == each.record()
    assert files(tmp_path) == before


def test_redo_makes_a_finished_step_again_and_the_graph_has_nothing_to_do(finished):
    run = Run.open(finished)
    step = open_step("annotation", finished, round=2, redo=True)
    assert not step.finished
    before = run.step("annotation", 2).record_file.stat()
    with step.timed("generate"):
        compute(step)
    after = run.step("annotation", 2).record_file.stat()
    assert after.st_mtime == pytest.approx(before.st_mtime, abs=1e-3)
    assert after.st_ino != before.st_ino
    assert make_graph(run) == []


def test_a_step_whose_inputs_changed_is_open_to_be_made_again(finished):
    run = Run.open(finished)
    other = run.step("annotation", 2).begin()
    for name in STEPS["annotation"].artefacts:
        other.save(name, pd.DataFrame({"x": ["another"]}))
    other.finish()
    assert not open_step("follower", finished, round=2).finished
    assert open_step("follower", finished, round=1).finished


def test_a_step_that_lost_an_artefact_is_open_to_be_made_again(finished):
    step = open_step("follower", finished, round=1)
    (step.folder / "worst_case.parquet").unlink()
    assert not open_step("follower", finished, round=1).finished


def test_without_the_parameters_cell_the_round_is_not_known(finished):
    with pytest.raises(ValueError, match="run the parameters cell first"):
        open_step("follower", finished, round=round)


# --- beside


def test_what_differs_goes_to_a_run_of_ones_own_that_reads_the_rest_from_the_finished_one(finished, tmp_path):
    before = files(tmp_path)
    wider = {"follower.radius": 0.03}
    with pytest.warns(UserWarning, match=r"follower\.radius: made with 0\.01, asked for 0\.03"):
        step = open_step("follower", finished, round=2, overrides=wider)
    assert step.folder.parent.name == "ssapo+mine"
    assert "a run of your own (ssapo+mine): follower.radius is 0.03, not 0.01" in step.about
    assert step.run.step("annotation", 2).source.folder == Run.open(finished).step("annotation", 2).folder
    compute(step)
    with pytest.warns(UserWarning, match="radius"):
        compute(open_step("leader", finished, round=2, overrides=wider))
    with pytest.warns(UserWarning, match="radius"):
        last = compute(open_step("evaluation", finished, overrides=wider))
    assert set(last.record()["inputs"]) == {
        "dpo+mine/evaluation/evaluation.json",
        "ssapo+mine/round-1/leader.json",
        "ssapo+mine/round-2/leader.json",
    }
    after = files(tmp_path)
    assert {path: after[path] for path in before} == before
    assert make_graph(Run.open(finished)) == []


def test_each_setting_has_a_run_of_its_own_and_is_found_again(finished):
    for radius, label in ((0.03, "mine"), (0.05, "mine-2"), (0.03, "mine"), (0.07, "mine-3")):
        step = open_step("follower", finished, round=1, overrides={"follower.radius": radius})
        assert step.run.method == f"ssapo+{label}"
        if not step.finished:
            compute(step)


def test_a_run_of_ones_own_is_whole_after_the_step_that_it_made_itself(finished):
    wider = {"follower.radius": 0.03}
    compute(open_step("follower", finished, round=1, overrides=wider))
    with pytest.raises(FileNotFoundError, match="run notebook 04_weighted_training with round=1 first"):
        open_step("annotation", finished, round=2, overrides=wider)


def test_a_seed_of_ones_own_is_not_the_one_that_all_methods_share(finished, tmp_path):
    before = files(tmp_path)
    step = compute(open_step("seed_dpo", finished, overrides={"seed_dpo.learning_rate": 2e-4}))
    assert step.folder.name == "dpo+mine"
    assert open_step("annotation", finished, round=1, overrides={"seed_dpo.learning_rate": 2e-4}).inputs[0] == step
    assert {path: files(tmp_path)[path] for path in before} == before


def test_an_edited_params_file_does_not_overwrite_what_is_finished(finished):
    finished.write_text(finished.read_text().replace("leader: {learning_rate: 1.0e-4}", "leader: {learning_rate: 1}"))
    step = open_step("leader", finished, round=1)
    assert step.run.method == "ssapo+mine"
    assert "leader.learning_rate: made with 0.0001, asked for 1.0" in step.about


def test_a_round_added_to_the_params_file_belongs_to_the_run_but_leaves_its_evaluation(finished):
    finished.write_text(finished.read_text().replace("[4, 4]", "[4, 4, 8]"))
    for name in ("annotation", "follower", "leader"):
        assert compute(open_step(name, finished, round=3)).run.method == "ssapo"
    assert open_step("evaluation", finished).run.method == "ssapo+mine"


def test_overwrite_makes_the_step_where_it_is_asked_for(finished):
    step = open_step("follower", finished, round=1, overrides={"follower.radius": 0.03}, overwrite=True)
    assert (step.run.method, step.finished) == ("ssapo", False)


# --- no mixtures


def test_a_result_of_another_radius_is_refused(finished):
    step = open_step("follower", finished, round=1, redo=True)
    with pytest.raises(ValueError, match=r"made with follower\.radius 0\.1, but the step was opened with 0\.01"):
        step.save("worst_case.parquet", pd.DataFrame(), made_with={"follower.radius": 0.1})


def test_a_step_does_not_finish_on_inputs_that_changed_under_it(finished):
    run = Run.open(finished)
    step = open_step("follower", finished, round=1, redo=True)
    for name in artefacts(step):
        save(step, name)
    other = run.step("annotation", 1).begin()
    for name in STEPS["annotation"].artefacts:
        other.save(name, pd.DataFrame({"x": ["another"]}))
    other.finish()
    with pytest.raises(ValueError, match=r"annotation\.json has changed since this step was opened"):
        step.finish()


def test_what_was_saved_under_other_params_does_not_join_a_step(params_file):
    compute(open_step("seed_dpo", params_file))
    compute(open_step("annotation", params_file, round=1))
    old = open_step("follower", params_file, round=1, overwrite=True)
    save(old, "worst_case.parquet")
    new = open_step("follower", params_file, round=1, overrides={"follower.radius": 0.5}, overwrite=True)
    with pytest.raises(RuntimeError, match="not written"):
        new.finish()
    with pytest.raises(RuntimeError, match="not written"):
        old.finish()


# --- any sequence


class Killed(BaseException):
    """What stops the process; nothing catches it."""


def killed_at(monkeypatch, n):
    """Have the n-th move from the draft to its place be the last thing that happens."""
    moves, replace = [], os.replace

    def stop(source, target):
        moves.append(source)
        if len(moves) == n:
            raise Killed
        replace(source, target)

    monkeypatch.setattr(drafts.os, "replace", stop)


STEP = st.sampled_from(
    [
        ("seed_dpo", None),
        ("evaluation", None),
        *((name, t) for t in (1, 2) for name in ("annotation", "follower", "leader")),
    ]
)
DOING = st.tuples(
    STEP,
    st.sampled_from([{}, {}, {}, {"follower.radius": 0.03}, {"leader.learning_rate": 0.5}, {"beta": 0.2}]),
    st.booleans(),
    st.integers(0, 4),
    st.integers(1, 6),
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The root of a run that went through the graph and nothing else."""
    root = tmp_path_factory.mktemp("undisturbed")
    make_graph(Run.open(write_params(root)))
    return root


@settings(max_examples=40)
@given(from_scratch=st.booleans(), doings=st.lists(DOING, min_size=1, max_size=8))
@pytest.mark.filterwarnings("ignore:.*was made with other params")
def test_after_any_sequence_of_doings_by_hand_the_graph_ends_as_if_there_had_been_none(
    undisturbed, from_scratch, doings
):
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as always:
        always.setattr(step_module, "environment", lambda root: {})  # asks git each time
        root = Path(name) / "root"
        if not from_scratch:
            shutil.copytree(undisturbed, root)
        params_file = write_params(root)
        for (step_name, t), overrides, redo, n_saved, kill in doings:
            try:
                step = open_step(step_name, params_file, round=t, overrides=overrides, redo=redo)
            except (FileNotFoundError, ValueError):  # an earlier step is missing, and it says so
                continue
            for artefact in STEPS[step_name].artefacts[:n_saved]:
                save(step, artefact)
            with pytest.MonkeyPatch.context() as patch, contextlib.suppress(RuntimeError, Killed):
                killed_at(patch, kill)
                step.finish()
        run = Run.open(params_file)
        make_graph(run)
        assert contents(run) == contents(Run.open(undisturbed / "params" / "small.yaml"))
        for step in steps_of(run):
            assert is_current(step)
