"""Notebooks forked from a warm process: imported already, each on its own, and gone with who asked for them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from sgpo_lib.runs import warm


@pytest.fixture(scope="module")
def variables():
    with warm.warm_process(threads=1) as variables:
        yield variables


def started(folder: Path, code: str, variables: dict[str, str]) -> subprocess.Popen:
    """Begin to run a notebook of one cell in `folder`, which leaves `out.ipynb`."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / "in.ipynb")
    environment = {name: value for name, value in os.environ.items() if name not in (warm.ADDRESS, "OMP_NUM_THREADS")}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    command = [sys.executable, warm.__file__, "papermill", "in.ipynb", "out.ipynb", "--no-progress-bar"]
    return subprocess.Popen(command, cwd=folder, env=environment | variables, stderr=subprocess.PIPE, text=True)


def said(folder: Path) -> dict:
    cell = json.loads((folder / "out.ipynb").read_text())["cells"][0]
    return json.loads("".join(cell["outputs"][0]["text"]))


ABOUT = """
import json, os, sys
before = sorted({"torch", "trl", "seaborn"} & set(sys.modules))
import torch
print(json.dumps([before, os.getcwd(), os.environ["ANSWER"], os.getpid(), os.getppid(), torch.get_num_threads()]))
"""


def test_a_notebook_finds_imported_what_it_imports_in_the_folder_and_environment_of_who_asked(variables, tmp_path):
    pids = set()
    for answer in ("42", "43"):
        process = started(tmp_path, ABOUT, variables | {"ANSWER": answer})
        assert process.wait(120) == 0, process.stderr.read()
        before, folder, told, pid, parent, threads = said(tmp_path)
        assert (before, folder, told, threads) == (["seaborn", "torch", "trl"], str(tmp_path), answer, 1)
        pids |= {pid, parent}
    assert len(pids) == 4  # a process and a kernel each


def test_without_a_warm_process_or_with_one_of_other_threads_the_notebook_runs_as_ever(variables, tmp_path):
    process = started(tmp_path, ABOUT, variables | {"ANSWER": "42", "OMP_NUM_THREADS": "2"})
    assert process.wait(120) == 0, process.stderr.read()
    assert said(tmp_path)[0] == []
    assert said(tmp_path)[-1] == 2


def test_an_error_in_a_notebook_is_an_exit_code_and_its_traceback(variables, tmp_path):
    process = started(tmp_path, "1 / 0", variables)
    assert process.wait(120) == 1
    assert "ZeroDivisionError" in process.stderr.read()


@pytest.mark.parametrize("who", ["who asked", "papermill"])
def test_a_kill_takes_papermill_and_kernel_along(variables, tmp_path, who):
    wait = "import os, time\nopen('pids', 'w').write(f'{os.getpid()} {os.getppid()}')\ntime.sleep(600)"
    process = started(tmp_path, wait, variables)
    pids = tmp_path / "pids"
    while not (pids.exists() and " " in pids.read_text()):
        time.sleep(0.05)
    kernel, papermill = map(int, pids.read_text().split())
    os.kill(process.pid if who == "who asked" else papermill, signal.SIGKILL)
    assert process.wait(10) in (1, -signal.SIGKILL)
    pids.unlink()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(Path(f"/proc/{pid}").exists() for pid in (kernel, papermill)):
        time.sleep(0.05)
    assert not Path(f"/proc/{papermill}").exists()
    assert not Path(f"/proc/{kernel}").exists()
    assert not pids.exists()  # nobody began it again


def test_the_warm_process_leaves_when_whoever_started_it_is_killed(tmp_path):
    keep = "import time; from sgpo_lib.runs import warm\nwith warm.warm_process(1): print(flush=True); time.sleep(99)"
    process = subprocess.Popen([sys.executable, "-c", keep], stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 1
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and b"serve" in _command(children[0]):
        time.sleep(0.05)
    assert b"serve" not in _command(children[0])


def _command(pid: str) -> bytes:
    file = Path(f"/proc/{pid}/cmdline")
    return file.read_bytes() if file.exists() else b""
