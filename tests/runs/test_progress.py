"""The line that lives: it counts, foresees, and ends with the one message that matters."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sgpo_lib.runs.progress import Progress, in_words, message_of, seconds_of_rules

KNOWN = {"seed_dpo": 100.0, "annotation": 40.0, "follower": 5.0}


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_step_is_counted_told_and_foreseen_by_what_earlier_runs_took(clock):
    progress = Progress({"seed_dpo": 1, "annotation": 2}, KNOWN, clock)
    assert (progress.total, progress.seconds_left()) == (3, 180)
    progress.begin(7, "seed_dpo", "01 seed DPO (tiny, seed 0)")
    clock.now = 60
    assert progress.line() == "step 1 of 3 · 01 seed DPO · 33% · about 2 min left"
    clock.now = 100
    assert progress.end(7) == "step 1 of 3 · 01 seed DPO · 100 s"
    assert progress.seconds_left() == 80


def test_a_slower_machine_is_noticed_with_its_first_step(clock):
    progress = Progress({"seed_dpo": 1, "annotation": 2}, KNOWN, clock)
    progress.begin(1, "seed_dpo", "01 seed DPO")
    clock.now = 300
    progress.end(1)
    assert progress.seconds_left() == pytest.approx(3 * 80)


def test_time_left_never_runs_out_while_a_step_runs(clock):
    progress = Progress({"annotation": 1}, KNOWN, clock)
    progress.begin(1, "annotation", "02 annotation")
    clock.now = 4000
    assert progress.seconds_left() > 0
    assert "100%" not in progress.line()


def test_steps_side_by_side_share_the_time(clock):
    progress = Progress({"annotation": 4}, KNOWN, clock)
    for job in (1, 2):
        progress.begin(job, "annotation", f"02 annotation, round {job} (tiny)")
    assert progress.line().startswith("step 1 of 4 · 02 annotation, round 1 and 02 annotation, round 2 · 0%")
    assert progress.seconds_left() == 80


def test_nothing_is_foreseen_where_nothing_is_known_until_a_step_is_done(clock):
    progress = Progress({"annotation": 3}, {}, clock)
    progress.begin(1, "annotation", "02 annotation")
    assert progress.line() == "step 1 of 3 · 02 annotation"
    clock.now = 10
    progress.end(1)
    assert progress.seconds_left() == 20


def test_seconds_of_rules_are_means_over_the_notebooks_of_the_timing_table(tmp_path):
    timing = Path(__file__).parents[2] / "figures" / "smollm2-135m" / "timing.md"
    seconds = seconds_of_rules(timing)
    assert set(seconds) == {"seed_dpo", "first_annotation", "annotation", "follower", "leader", "evaluation"}
    rows = [line.split("|") for line in timing.read_text().splitlines()]
    totals = [float(row[-3]) for row in rows if "03_dro" in row[1]]
    assert seconds["follower"] == pytest.approx(sum(totals) / len(totals))
    assert seconds_of_rules(tmp_path / "none.md") == {}


@pytest.mark.parametrize(
    ("seconds", "words"), [(3, "5 s"), (41, "40 s"), (70, "1 min"), (800, "13 min"), (4 * 3600, "4 h")]
)
def test_durations_are_told_as_people_do(seconds, words):
    assert in_words(seconds) == words


def test_the_message_of_a_failed_notebook_is_its_errors_without_frames(tmp_path):
    executed = tmp_path / "out.ipynb"
    assert message_of(executed) is None
    error = {"output_type": "error", "ename": "ValueError", "evalue": "no such thing", "traceback": ["frame"] * 40}
    executed.write_text(json.dumps({"cells": [{"outputs": []}, {"outputs": [error]}]}))
    assert message_of(executed) == "ValueError: no such thing"


# A graph of two steps, run as the notebooks' is; each waits for a file, or fails.
SNAKEFILE = """
rule all:
    input: "b"
rule first:
    output: "a"
    message: "01 first (x)"
    shell: "echo chatter; {first}; touch a # in.ipynb out.ipynb"
rule second:
    input: "a"
    output: "b"
    message: "02 second (x)"
    shell: "echo chatter >&2; touch b"
"""


def make(folder: Path, first: str, terminal: bool = False) -> tuple[subprocess.Popen, int]:
    (folder / "Snakefile").write_text(SNAKEFILE.replace("{first}", first))
    command = [sys.executable, "-m", "sgpo_lib.runs.make", "--cores", "1", "--quiet", "host"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    ours, theirs = pty.openpty() if terminal else os.pipe()
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL, process_group=0
    )
    os.close(theirs)
    return process, ours


def told(process: subprocess.Popen, stream: int) -> str:
    text = b""
    try:
        while part := os.read(stream, 4096):
            text += part
    except OSError:  # how a terminal ends
        pass
    process.wait(60)
    return text.decode()


def test_in_a_pipe_there_is_a_line_for_each_step_and_the_chatter_is_in_the_log(tmp_path):
    process, stream = make(tmp_path, "true")
    text = told(process, stream)
    first, *steps = text.splitlines()
    assert process.returncode == 0
    log = first.removeprefix("2 steps; details go to ")
    assert Path(log).read_text().count("chatter\n") == 2
    assert [step.rpartition(" · ")[0] for step in steps] == ["step 1 of 2 · 01 first", "step 2 of 2 · 02 second"]
    assert "nothing to do" in told(*make(tmp_path, "true"))


def test_a_failed_step_ends_with_the_notebooks_message_alone(tmp_path):
    error = {"output_type": "error", "ename": "ValueError", "evalue": "no such thing", "traceback": []}
    (tmp_path / "out.ipynb").write_text(json.dumps({"cells": [{"outputs": [error]}]}))
    process, stream = make(tmp_path, "false")
    assert told(process, stream).splitlines()[1:] == ["ValueError: no such thing", "executed notebook: out.ipynb"]
    assert process.returncode == 1


def test_on_a_terminal_one_line_lives_and_an_interrupt_says_how_to_go_on(tmp_path):
    process, stream = make(tmp_path, "touch begun; sleep 60", terminal=True)
    while not (tmp_path / "begun").exists():
        time.sleep(0.05)
    time.sleep(1.2)
    os.killpg(process.pid, signal.SIGINT)
    first, *rest = told(process, stream).replace("\r\n", "\n").split("\r\x1b[2K")[1:]
    assert first.startswith("2 steps; details go to ")
    assert set(rest[:-1]) == {"step 1 of 2 · 01 first"}
    assert rest[-1].endswith("stopped; the same command goes on from here\n")
    assert process.returncode == 130
