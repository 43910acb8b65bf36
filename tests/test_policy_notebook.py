"""Notebook 10 on a run of seed DPO alone: it ends, tells the ways apart, and leaves the run as it was."""

import json
import os
import subprocess
import sys
from pathlib import Path

from small_params import write_tiny_params

from sgpo_lib import steps
from sgpo_lib.runs import Run

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "10_using_the_policy.ipynb"


def test_it_ends_and_changes_nothing(tiny_model, tmp_path):
    params_file = write_tiny_params(tmp_path, tiny_model)
    run = Run.open(params_file, method="dpo")
    step = run.step("seed_dpo").begin()
    policy = steps.load_policy(step)
    update = steps.seed_update(steps.label_seed(step, policy, steps.choose_prompts(step, policy)))
    steps.finish(step, update, steps.train(step, policy, update))
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}

    values = {"params_file": str(params_file), "method": "dpo", "n_prompts": 3, "n_samples": 2, "passes": [1, 8]}
    command = [sys.executable, "-m", "papermill", "--log-level", "ERROR", NOTEBOOK, tmp_path / "out.ipynb"]
    environment = os.environ | {"PYTHONPATH": str(NOTEBOOK.parent.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--no-progress-bar", "-y", json.dumps(values)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")} == before

    cells = {cell["id"]: cell for cell in json.loads((tmp_path / "out.ipynb").read_text())["cells"]}
    shown = [
        output["data"]["text/html"] for output in cells["table"]["outputs"] if "text/html" in output.get("data", {})
    ]
    assert "".join(shown[-1]).count("<tr") == 2 + 6  # two lines of headings, and a row for each way
    said = [output["text"] for output in cells["refine"]["outputs"] if output.get("name") == "stdout"]
    assert "{1: 3, 8: 3}" in "".join(line for lines in said for line in lines)
