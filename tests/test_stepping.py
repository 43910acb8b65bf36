"""Notebook 03 stepped through by hand in IPython: what a reader sees who changes, restarts and comes back."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell
from jupyter_client.manager import start_new_kernel
from made_up import compute, write_params

from sgpo_lib.runs import Run, kernel

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "03_dro_reweighting.ipynb"
CELLS = {
    cell["id"]: "".join(line for line in cell["source"] if not line.startswith("%"))
    for cell in json.loads(NOTEBOOK.read_text())["cells"]
    if cell["cell_type"] == "code"
}
AFTER_SETUP = ("solve", "ball", "influence", "flips", "finish")


@pytest.fixture
def run(tmp_path):
    """A run whose first round is annotated."""
    run = Run.open(write_params(tmp_path))
    compute(run.step("seed_dpo"))
    step = run.step("annotation", 1).begin()
    margins = np.random.default_rng(0).normal(0.3, 1, 20)
    step.save("pairs.parquet", pd.DataFrame({"prompt_id": [f"p{i}" for i in range(20)], "margin": margins}))
    step.save("responses.parquet", pd.DataFrame())
    step.finish()
    return run


@pytest.fixture
def start(monkeypatch):
    """A function that starts a kernel, with none of what the one before knew."""

    def fresh():
        InteractiveShell.clear_instance()
        for name in ("identity", "before", "cleared"):
            monkeypatch.setattr(kernel._Opened, name, getattr(_NEW, name))
        shell = InteractiveShell.instance()
        kernel.set_up()  # as `make lab` has every kernel do
        return shell

    yield fresh
    InteractiveShell.clear_instance()


_NEW = type("New", (), {"identity": "", "before": frozenset(), "cleared": frozenset()})


def step_through(shell, run, cells, **parameters):
    """Run the parameters cell with other values, then these cells, and stop where one fails."""
    shell.run_cell(CELLS["parameters"])
    params_file = str(run.params.root / "params" / "small.yaml")
    shell.user_ns.update({"params_file": params_file, "known": False} | parameters)
    for cell in cells:
        if not shell.run_cell(CELLS[cell]).success:
            return cell
    return None


def test_a_stale_result_cannot_be_saved_under_another_radius(run, start, capsys):
    shell = start()
    assert step_through(shell, run, ["setup", *AFTER_SETUP]) is None
    record = run.step("follower", 1).record_file.read_bytes()
    overrides = {"follower.radius": 0.1}
    capsys.readouterr()
    assert step_through(shell, run, ["setup", "finish"], overrides=overrides) == "finish"
    said = capsys.readouterr().out
    assert "a run of your own (ssapo+mine): follower.radius is 0.1, not 0.01" in said
    assert "was computed for what was open before" in said
    assert step_through(shell, run, ["setup", "ball"], overrides=overrides) == "ball"  # the radius is stale as well
    assert run.step("follower", 1).record_file.read_bytes() == record
    assert not list(run.folder.glob("ssapo+mine/**/*.json"))
    assert step_through(shell, run, ["setup", *AFTER_SETUP], overrides=overrides) is None
    mine = Run.open(shell.user_ns["params_file"], method="ssapo+mine", overrides=overrides).step("follower", 1)
    assert mine.record()["params"]["follower.radius"] == mine.record()["metrics"]["radius"] == 0.1
    assert run.step("follower", 1).record_file.read_bytes() == record


def test_opened_again_with_the_same_values_it_keeps_what_was_computed(run, start):
    shell = start()
    assert step_through(shell, run, ["setup", *AFTER_SETUP]) is None
    assert step_through(shell, run, ["setup", "finish"]) is None


def test_after_a_restart_in_the_middle_the_cell_says_what_to_run(run, start, capsys):
    assert step_through(start(), run, ["setup", "solve"]) is None
    capsys.readouterr()
    shell = start()
    assert not shell.run_cell(CELLS["ball"]).success
    said = capsys.readouterr().out
    assert "this kernel is new, and the cells above have not run in it" in said
    assert "Run All Above Selected Cell" in said
    assert "Traceback" not in said


def test_every_kernel_of_the_lab_starts_with_that_and_its_cell_fails_all_the_same():
    startup = str(Path(kernel.__file__).with_name("startup.py"))
    manager, client = start_new_kernel(env=os.environ | {"PYTHONSTARTUP": startup})
    try:
        messages = []
        reply = client.execute_interactive("step", output_hook=messages.append, timeout=60)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert reply["content"]["status"] == "error"
    (shown,) = (each["content"] for each in messages if each["msg_type"] == "error")
    assert len(shown["traceback"]) == 1
    assert "`step` is not there: this kernel is new" in shown["traceback"][0]
    (folded,) = (each["content"]["data"]["text/html"] for each in messages if each["msg_type"] == "display_data")
    assert folded.startswith("<details>")
    assert "Traceback" in folded


def test_errors_for_people_are_one_message_and_others_keep_their_frames(run, start, capsys):
    shell = start()
    assert step_through(shell, run, ["setup"], round=7) == "setup"
    said = capsys.readouterr().out
    assert said.count("round is 7, but these params have rounds 1 to 2") == 1
    assert "Traceback" not in said
    assert "by_hand.py" not in said
    assert not shell.run_cell("import json; json.loads('no')").success
    assert "decoder.py" in capsys.readouterr().out


def test_round_is_pythons_own_again_after_the_setup(run, start):
    shell = start()
    step_through(shell, run, ["setup"])
    assert shell.run_cell("round(2.5)").result == 2
