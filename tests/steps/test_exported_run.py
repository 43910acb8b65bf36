"""A policy that leaves its run: its card says what the records say, and its code loads it elsewhere."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from peft import PeftModel
from small_model import changed_policy
from transformers import AutoModelForCausalLM

from sgpo_lib.params import ModelParams
from sgpo_lib.runs import Run
from sgpo_lib.runs.store import sha256_of
from sgpo_lib.steps import card, export

TABLE = pd.DataFrame({"x": [1]})


def interval(mean):
    return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}


def make(step, metrics, **artefacts):
    """Make a step with tables that nobody reads, and what is given."""
    step.begin()
    for name in ("prompts", "pairs", "responses", "worst_case", "training_log", "judgements"):
        step.save(f"{name}.parquet", TABLE)
    if "policy" in artefacts:
        with step.replacing("policy") as folder:
            artefacts["policy"].save(folder)
    if "summary" in artefacts:
        step.save("summary.json", artefacts["summary"])
    step.finish(metrics)


def finish(run):
    """A finished run of one round, whose policies are random changes of the tiny model."""
    policy = changed_policy(run.params.model.name_or_path, run.params.model.lora, 0.1)
    make(run.step("seed_dpo"), {"n_pairs": 7}, policy=policy)
    make(run.step("annotation", 1), {})
    make(run.step("follower", 1), {"radius": 0.0123})
    make(run.step("leader", 1), {"n_rows": 5}, policy=policy)
    summary = {name: {"gold_reward": interval(mean)} for name, mean in (("sft", 0.0), ("dpo", 0.25), ("round-1", 0.5))}
    make(run.seed_only.step("evaluation"), {"n_prompts": 5}, summary={k: summary[k] for k in ("sft", "dpo")})
    make(run.step("evaluation"), {"n_prompts": 5}, summary=summary)
    return run


@pytest.fixture
def run(tiny_params_file):
    return finish(Run.open(tiny_params_file, overrides={"data.n_prompts": [4]}))


def program(monkeypatch, run, *arguments):
    params_file = run.params.root / "params" / "tiny.yaml"
    overrides = json.dumps({"data.n_prompts": [4]})
    monkeypatch.setattr(sys, "argv", ["export", str(params_file), "--overrides", overrides, *map(str, arguments)])
    export.main()


def front_matter(folder):
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def logits_by_the_card(folder, elsewhere):
    """Run the card's code offline, from another folder and without this library; return the logits of its model."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert "sgpo_lib" not in code
    code = code.replace("path/of/this/folder", str(folder))
    code += (
        '\nimport numpy, torch\nnumpy.save("logits.npy", model(torch.tensor([[5, 6, 7]])).logits.detach().numpy())\n'
    )
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=elsewhere, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return np.load(elsewhere / "logits.npy")


@pytest.mark.parametrize("merged", [False, True], ids=["adapter", "merged"])
def test_the_code_of_the_card_loads_it_elsewhere_without_this_library(monkeypatch, run, tiny_model, tmp_path, merged):
    before = sha256_of(run.params.root / "runs")
    program(monkeypatch, run, "--into", tmp_path / "mine", *(["--merge"] if merged else []))
    assert sha256_of(run.params.root / "runs") == before
    (tmp_path / "elsewhere").mkdir()
    moved = (tmp_path / "mine").rename(tmp_path / "elsewhere" / "moved")
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    tuned = PeftModel.from_pretrained(base, run.step("leader", 1).folder / "policy")
    expected = tuned(torch.tensor([[5, 6, 7]])).logits.detach().numpy()
    np.testing.assert_allclose(logits_by_the_card(moved, tmp_path / "elsewhere"), expected, atol=1e-4)
    assert front_matter(moved)["library_name"] == ("transformers" if merged else "peft")
    assert (str(tiny_model) in (moved / "README.md").read_text()) != merged  # a whole model tells no path


def test_the_card_says_what_the_records_say(monkeypatch, run, tmp_path):
    program(monkeypatch, run, "--into", tmp_path / "mine", "--round", 1)
    said, record = (tmp_path / "mine" / "README.md").read_text(), run.step("leader", 1).record()
    assert "trained by ssapo, round 1 of 1" in said
    assert "7 pairs labelled by a simulated user" in said
    assert "implicit reward: 5." in said
    assert "margin units: 0.0123." in said
    assert f"Seed of the run: 0; of the last training: {run.step('leader', 1).seed}" in said
    assert "make reproduce PARAMS=params/tiny.yaml SEEDS=0 METHODS=ssapo`, with the overrides `{" in said
    assert f"torch {record['environment']['packages']['torch']}" in said
    assert record["finished"] in said
    assert "| `leader.learning_rate` | 0.001 |" in said
    assert "| round-1 | 0.500 [0.400, 0.600] |" in said
    assert "| sft | 0.000 [-0.100, 0.100] |" in said
    assert "On 5 prompts" in said
    assert front_matter(tmp_path / "mine")["tags"] == ["preference-optimization", "dpo", "sgpo"]


def test_the_seed_s_policy_has_a_card_without_rounds(monkeypatch, run, tmp_path):
    program(monkeypatch, run, "--method", "dpo", "--into", tmp_path / "mine")
    said = (tmp_path / "mine" / "README.md").read_text()
    assert "trained by dpo\n" in said
    assert "leader." not in said
    assert "| dpo | 0.250 [0.150, 0.350] |" in said
    assert "round-1" not in said


def test_a_policy_that_was_not_evaluated_says_so(run, tmp_path):
    run.step("evaluation").record_file.unlink()
    export.export(run.step("leader", 1), tmp_path / "mine")
    assert "## Evaluation\n\nNot evaluated." in (tmp_path / "mine" / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("smollm2-135m", {"base_model": "HuggingFaceTB/SmolLM2-135M-Instruct", "license": "apache-2.0"}),
        ("gemma3-270m", {"base_model": "google/gemma-3-270m", "license": "gemma"}),
        ("someone/base", {"base_model": "someone/base", "license": None}),
    ],
)
def test_the_base_is_named_as_the_public_knows_it(run, name, expected):
    model = ModelParams(name_or_path=name, lora=run.params.model.lora)
    data = run.params.data.model_copy(update={"source": "someone/pairs"})
    params = run.params.model_copy(update={"model": model, "data": data})
    step = Run(params, run.seed, run.method).step("leader", 1)
    text = card.model_card(step, False, "owner/mine", {})
    front = yaml.safe_load(text.split("---\n")[1])
    assert {key: front.get(key) for key in expected} == expected
    assert front["datasets"] == ["someone/pairs"]
    assert 'from_pretrained(base, "owner/mine")' in text


def test_a_folder_that_holds_something_and_a_damaged_policy_are_refused_in_a_line(monkeypatch, run, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit, match="not empty"):
        program(monkeypatch, run, "--into", tmp_path / "full")
    with pytest.raises(SystemExit, match="rounds 1 to 1"):
        program(monkeypatch, run, "--round", 2, "--into", tmp_path / "mine")
    (run.step("leader", 1).folder / "policy" / "README.md").write_text("other")
    with pytest.raises(SystemExit, match="damaged"):
        program(monkeypatch, run, "--into", tmp_path / "mine")
    assert not (tmp_path / "mine").exists()
    assert not list(tmp_path.glob(".mine*"))


def test_an_adapter_on_a_local_folder_is_written_but_not_pushed(monkeypatch, run, tmp_path):
    with pytest.raises(SystemExit, match="nobody else could load it"):
        program(monkeypatch, run, "--into", tmp_path / "mine", "--push", "someone/mine")
    assert Path(tmp_path, "mine", "adapter_config.json").is_file()
