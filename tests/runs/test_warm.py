"""Forked kernels: they have everything imported, and are otherwise like any other kernel."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
CELLS = [
    "import os, sys\nprint('trl' in sys.modules, os.environ['ASKED'], os.getcwd())",
    "import torch\nprint(torch.get_num_threads(), (torch.ones(300, 300) @ torch.ones(300, 300)).sum().item())",
]


def notebook(folder: Path, *cells: str) -> Path:
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(made, folder / "in.ipynb")
    return folder / "in.ipynb"


def start(folder: Path, *command: str) -> subprocess.Popen:
    scripts = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"ASKED": "yes", "OMP_NUM_THREADS": "1", "PATH": scripts, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, ROOT / "sgpo_lib/runs/warm.py", *command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def said(folder: Path) -> list[str]:
    cells = json.loads((folder / "out.ipynb").read_text())["cells"]
    return ["".join("".join(output.get("text", "")) for output in cell["outputs"]) for cell in cells]


def wait_for(found, seconds=60):
    for _ in range(10 * seconds):
        if result := found():
            return result
        time.sleep(0.1)
    raise AssertionError("nothing came")


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_notebooks_find_all_imported_in_what_they_were_asked_with_and_their_command_s_end_is_the_program_s(tmp_path):
    fails = notebook(tmp_path, "1 / 0").rename(tmp_path / "fails.ipynb")
    first = f"papermill --log-level ERROR {notebook(tmp_path, *CELLS)} out.ipynb"
    process = start(tmp_path, "sh", "-c", f"{first} && papermill --log-level ERROR {fails} failed.ipynb")
    output, _ = process.communicate(timeout=300)
    assert said(tmp_path) == [f"True yes {tmp_path}\n", "1 27000000.0\n"]
    assert process.returncode == 1
    assert "ZeroDivisionError" in output


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks processes up in /proc")
def test_a_kernel_does_not_outlive_what_was_killed(tmp_path):
    cell = "import os, pathlib, time\npathlib.Path('pid').write_text(str(os.getpid()))\ntime.sleep(600)"
    process = start(tmp_path, "papermill", notebook(tmp_path, cell), "out.ipynb")
    kernel = int(wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text()))
    assert lives(kernel)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    wait_for(lambda: not lives(kernel))


def test_without_a_process_to_fork_from_the_kernel_is_an_ordinary_one(tmp_path):
    spec = tmp_path / "kernels/python3/kernel.json"
    spec.parent.mkdir(parents=True)
    argv = [sys.executable, str(ROOT / "sgpo_lib/runs/warm.py"), "--kernel", "{connection_file}"]
    spec.write_text(json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"}))
    environment = os.environ | {"JUPYTER_PATH": str(tmp_path), "ASKED": "yes"}
    command = [sys.executable, "-m", "papermill", "--log-level", "ERROR", notebook(tmp_path, CELLS[0]), "out.ipynb"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert said(tmp_path) == [f"False yes {tmp_path}\n"]
