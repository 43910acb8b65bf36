"""Drafts: complete ones of killed processes take their place, incomplete ones are nothing."""

import os
import signal
import subprocess
import sys

import pytest

from sgpo_lib.runs import drafts
from sgpo_lib.runs.store import replacing

DEAD = f"{drafts.this_process().split('.')[0]}.999999999"


def write(draft, content, *names):
    for name in names:
        with replacing(draft / name) as path:
            if name == "policy":
                path.mkdir()
                path /= "weights"
            path.write_text(content)


def read(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_published_draft_replaces_what_was_there_and_nothing_else(tmp_path):
    write(tmp_path, "old", "table", "policy", "other")
    draft = drafts.draft_folder(tmp_path, "leader", "abc", drafts.this_process())
    write(draft, "new", "table", "policy")
    drafts.publish(draft, tmp_path, "leader.json", "record")
    assert read(tmp_path) == {"table": "new", "policy/weights": "new", "other": "old", "leader.json": "record"}


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_a_publication_that_was_killed_is_completed_by_the_next_reader(tmp_path, moved):
    write(tmp_path, "old", "table", "policy", "leader.json")
    draft = drafts.draft_folder(tmp_path, "leader", "abc", DEAD)
    write(draft, "new", "table", "policy", "leader.json")
    for name in ("policy", "table", "leader.json")[:moved]:
        drafts.remove(tmp_path / name)
        (draft / name).rename(tmp_path / name)
    drafts.settle(tmp_path, "leader")
    assert read(tmp_path) == {"table": "new", "policy/weights": "new", "leader.json": "new"}


def test_drafts_without_a_record_of_dead_processes_are_cleared_and_of_living_ones_kept(tmp_path):
    living = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    host = DEAD.split(".")[0]
    writers = {"dead": DEAD, "mine": drafts.this_process(), "living": f"{host}.{living.pid}", "far": "elsewhere.1"}
    folders = {name: drafts.draft_folder(tmp_path, "leader", "abc", writer) for name, writer in writers.items()}
    for folder in folders.values():
        write(folder, "half", "table")
    drafts.clear(tmp_path, "leader")
    living.communicate(b"\n")
    assert {name for name, folder in folders.items() if folder.exists()} == {"living", "far"}


PUBLISHING = """
import sys, time
from pathlib import Path
from sgpo_lib.runs import drafts
from test_drafts import write

move = drafts.os.replace
def slowly(source, target):
    print(Path(target).name, flush=True)
    time.sleep(0.2)
    move(source, target)
folder = Path(sys.argv[1])
draft = drafts.draft_folder(folder, "leader", "abc", drafts.this_process())
write(draft, "new", "table", "policy")
drafts.os.replace = slowly  # says what it is about to move: the record into the draft, then all into their place
drafts.publish(draft, folder, "leader.json", "new")
"""


@pytest.mark.parametrize("n_moves", [1, 2, 3])
def test_killed_while_it_moves_it_is_the_new_step_whole(tmp_path, n_moves):
    write(tmp_path, "old", "table", "policy", "leader.json")
    path = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-c", PUBLISHING, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )
    order = ["leader.json", "policy", "table", "leader.json"]
    for expected in order[: n_moves + 1]:
        assert process.stdout.readline().strip() == expected
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    drafts.settle(tmp_path, "leader")
    assert read(tmp_path) == {"table": "new", "policy/weights": "new", "leader.json": "new"}
