"""Notebook 08 on a tiny run: it ends with nothing given, and uses what it is given."""

import http.server
import importlib.util
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pandas as pd
import pytest
from small_mt_bench import write_package
from small_params import write_tiny_params

from sgpo_lib import annotation, data
from sgpo_lib.policy import Policy
from sgpo_lib.runs import STEPS, Run, Step

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "08_public_benchmarks.ipynb"


@pytest.fixture(scope="module")
def run(tiny_model, tmp_path_factory) -> Run:
    """A run whose steps are complete; its policies are untrained, and what notebook 08 does not read is empty."""
    params_file = write_tiny_params(tmp_path_factory.mktemp("benchmarks"), tiny_model)
    run = Run.open(params_file)
    policy = Policy.load(run.params.model)
    _complete(run.step("seed_dpo"), policy)
    _complete(run.seed_only.step("evaluation"), policy)
    for t in (1, 2):
        for name in ("annotation", "follower", "leader"):
            _complete(run.step(name, t), policy)
    weights = {"sft": None, "dpo": run.step("seed_dpo").load("policy")}
    weights |= {f"round-{t}": run.step("leader", t).load("policy") for t in (1, 2)}
    prompts = data.prepare(run.params.data, run.params.root, run.seed).evaluation
    answers = []
    for name in weights:
        policy.use(weights[name])
        for matched_kl in (float("nan"), 6.0):
            asked = annotation.respond(policy, prompts, run.params.generation, seed=0, n_samples=2)
            answers.append(asked.assign(policy=name, matched_kl=matched_kl))
    step = run.step("evaluation").begin()
    step.save("responses.parquet", pd.concat(answers))
    step.save("judgements.parquet", pd.DataFrame({"policy": []}))
    step.save("summary.json", {})
    step.finish()
    return run


def _complete(step: Step, policy: Policy) -> None:
    step.begin()
    for artefact in STEPS[step.name].artefacts:
        if artefact == "policy":
            policy.use(None)
            policy.make_trainable(seed=step.seed)
            with step.replacing("policy") as folder:
                policy.save(folder)
        else:
            step.save(artefact, pd.DataFrame({"prompt_id": []}))
    step.finish()


def _execute(run: Run, executed: Path, python_path: Path | None = None, **parameters) -> str:
    """Run the notebook; return all that it printed."""
    params_file = run.params.root / "params" / f"{run.params.name}.yaml"
    values = {"params_file": str(params_file), "generation": {"max_new_tokens": 6}, **parameters}
    paths = [str(python_path)] if python_path else []
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([*paths, str(NOTEBOOK.parent.parent), os.environ.get("PYTHONPATH", "")])
    }
    command = [sys.executable, "-m", "papermill", str(NOTEBOOK), str(executed), "-y", json.dumps(values)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=run.params.root, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    outputs = [o for cell in json.loads(executed.read_text())["cells"] for o in cell.get("outputs", [])]
    return "".join("".join(o.get("text", [])) for o in outputs)


def test_with_nothing_given_it_exports_and_says_what_it_skipped(run, tmp_path):
    printed = _execute(run, tmp_path / "out.ipynb")
    folder = run.folder / "ssapo" / "benchmarks"
    for policy in ("sft", "dpo", "round-1", "round-2"):
        rows = json.loads((folder / "alpaca-held-out" / f"tiny-ssapo-{policy}" / "outputs.json").read_text())
        assert len(rows) == run.params.data.n_evaluation
        assert {row["generator"] for row in rows} == {f"tiny-ssapo-{policy}"}
    assert printed.count("alpaca_eval evaluate --model_outputs") == 3  # the SFT model is the baseline
    assert "Skipped, for want of annotations" in printed
    assert "Skipped, for want of a judge" in printed
    assert json.loads((folder / "results.json").read_text())["mt_bench"] == {}


@pytest.mark.skipif(importlib.util.find_spec("sgpo_lib.judges.endpoint") is None, reason="no client of endpoints")
def test_with_instructions_annotations_and_a_judge_it_leaves_both_benchmarks_results(run, tmp_path, endpoint):
    instructions = tmp_path / "instructions.jsonl"
    instructions.write_text("".join(json.dumps({"instruction": f"Say {i}."}) + "\n" for i in range(6)))
    annotated = {"output_1": "a", "output_2": "b", "generator_1": "sft", "generator_2": "tiny-ssapo-round-2"}
    annotations = tmp_path / "annotations.json"
    annotations.write_text(json.dumps([annotated | {"instruction": f"{i}", "preference": 1 + i / 5} for i in range(6)]))
    write_package(tmp_path)
    given = {
        "policies": ["round-2"],
        "alpaca_instructions": str(instructions),
        "alpaca_annotations": [str(annotations)],
        "judge_url": endpoint,
        "judge_model": "tiny-judge",
    }
    _execute(run, tmp_path / "out.ipynb", python_path=tmp_path, **given)
    folder = run.folder / "ssapo" / "benchmarks"
    results = json.loads((folder / "results.json").read_text())
    assert results["alpaca"][0]["win_rate"] == pytest.approx(50)
    assert results["alpaca"][0]["length_controlled_win_rate"] is None
    assert results["alpaca"][0]["n_outdated"] == 6
    assert list(results["mt_bench"]) == ["round-2"]
    assert results["mt_bench"]["round-2"]["score"] == {"mean": 7, "low": 7, "high": 7}
    written = json.loads((folder / "alpaca" / "tiny-ssapo-round-2" / "outputs.json").read_text())
    assert [row["instruction"] for row in written] == [f"Say {i}." for i in range(6)]


@pytest.fixture
def endpoint():
    """Address of a server whose model rates everything 7."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            message = {"role": "assistant", "content": "Fair. Rating: [[7]]"}
            usage = {"prompt_tokens": 1, "completion_tokens": 1}
            body = json.dumps({"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()
