"""The notebooks themselves, run through the graph on a tiny model: they finish, resume and repeat."""

import json
import math
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from graph_runs import REPOSITORY, artefacts, finish, kill, snakemake
from processes import on_processes
from small_params import write_tiny_params

from sgpo_lib import follower
from sgpo_lib.evaluation import comparison
from sgpo_lib.evaluation.judgements import judgements as judgements_of
from sgpo_lib.evaluation.judgements import with_quantities
from sgpo_lib.runs import STEPS, Run
from sgpo_lib.runs.study import study_of


@pytest.fixture(scope="module")
def tiny_root(tiny_model, tmp_path_factory):
    """A function that makes an empty root with a params file for the tiny model, and returns the file."""
    return lambda name: write_tiny_params(tmp_path_factory.mktemp(name), tiny_model)


@pytest.fixture(scope="module")
def finished(tiny_root) -> Path:
    """A params file whose run went through the whole graph undisturbed."""
    params_file = tiny_root("undisturbed")
    finish(snakemake(params_file))
    return params_file


def test_the_graph_runs_every_notebook_and_leaves_summary_and_figures(finished):
    root = finished.parent.parent
    run = Run.open(finished)
    run.step("evaluation").check()
    summary = run.step("evaluation").load("summary.json")
    assert list(summary) == ["sft", "dpo", "round-1", "round-2"]
    assert {"mean", "low", "high"} <= set(summary["dpo"]["gold_reward_vs_sft"])
    figures = {path.name for path in (root / "figures" / run.params.name).iterdir()}
    assert {"gains.png", "worst_case.png", "self_labels.png", "summary.md", "results.json", "timing.md"} <= figures
    executed = list(run.folder.rglob("notebooks/**/*.ipynb"))
    assert len(executed) == 9
    assert {"regret_constants.md", "regret_against_shift.png"} <= {path.name for path in (root / "figures").iterdir()}
    for notebook in executed:
        outputs = [o for cell in json.loads(notebook.read_text())["cells"] for o in cell.get("outputs", [])]
        assert not [o for o in outputs if o["output_type"] == "error"], notebook


def _run_cells(name: str, **parameters) -> None:
    """Run a notebook's code in this process, as the graph would: what it leaves behind, without its outputs."""
    variables: dict = {}
    parameters = {"overwrite": True} | parameters
    for cell in json.loads((REPOSITORY / "notebooks" / f"{name}.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(line for line in cell["source"] if not line.startswith("%")), variables)
        if cell["id"] == "parameters":
            variables |= parameters


def test_two_of_several_answers_become_a_pair_and_lengths_can_be_balanced(tiny_root):
    file = tiny_root("several")
    _run_cells("01_seed_dpo", params_file=file)
    ways = {
        "self-dpo": {"choose": "aepo", "length_penalty": "balanced"},
        "iter-dpo-gold": {},
        "iter-dpo-gold+two": {"choose": "min-margin"},
    }
    metrics = {}
    for method, way in ways.items():
        overrides = {f"annotation.{key}": value for key, value in ({"n_samples": 3} | way).items()}
        asked = {"params_file": file, "method": method, "overrides": overrides}
        _run_cells("02_self_annotation", **asked)
        step = Run.open(**asked).step("annotation", 1)
        metrics[method] = step.record()["metrics"]
        assert len(step.load("responses.parquet")) == 4 * 3
        assert len(step.load("pairs.parquet")) == 4
    assert [found["n_comparisons"] for found in metrics.values()] == [0, 4 * 3, 4]
    assert "length_penalty" in metrics["self-dpo"]


def test_flips_are_calibrated_on_labelled_pairs_solved_and_trained_on(tiny_root):
    overrides = {"data.n_calibration": 8, "follower.flip_radius": {"rule": "calibrated"}}
    asked = {"params_file": tiny_root("flips"), "overrides": overrides}
    _run_cells("01_seed_dpo", **asked)
    asked |= {"method": "ssapo-flips"}
    for name in ("02_self_annotation", "03_dro_reweighting", "04_weighted_training"):
        _run_cells(name, **asked)
    run = Run.open(**asked)
    pairs, labelled = (run.step("annotation", 1).load(f"{name}.parquet") for name in ("pairs", "labelled_margins"))
    fit = follower.calibrated_radius(pairs["margin"], labelled["margin"])
    radius = follower.flip_radius(len(labelled))
    expected = follower.worst_flips(pairs["margin"], fit.flip_probability(pairs["margin"]), radius)
    worst = run.step("follower", 1).load("worst_case.parquet")
    assert worst["flip_probability"].tolist() == expected.flip_probability.tolist()
    metrics = run.step("follower", 1).record()["metrics"]
    assert metrics["influence"] == pytest.approx(2 * worst["flip_probability"].mean())
    assert metrics["influence"] <= metrics["influence_bound"]
    assert run.step("leader", 1).record()["metrics"]["n_rows"] == len(pairs)
    asked["method"] = "ssapo"
    _run_cells("03_dro_reweighting", **asked)
    metrics = Run.open(**asked).step("follower", 1).record()["metrics"]
    assert 0 < metrics["influence"] <= metrics["influence_bound"] == metrics["radius"] / 2


def test_policies_are_evaluated_with_several_answers_and_at_the_kls_they_can_be_scaled_to(tiny_root):
    raised = {"seed_dpo.learning_rate": 0.03}
    overrides = {"evaluation.n_samples": 2, "evaluation.match_kl": [0.5, 900], "data.n_prompts": [4]} | raised
    asked = {"params_file": tiny_root("matched"), "overrides": overrides}
    _run_cells("01_seed_dpo", **asked)
    _run_cells("05_evaluation", **asked, method="dpo")
    asked["method"] = "self-dpo"
    for name in ("02_self_annotation", "04_weighted_training", "05_evaluation"):
        _run_cells(name, **asked)
    step = Run.open(**asked).step("evaluation")
    summary, judgements = step.load("summary.json"), step.load("judgements.parquet")
    assert list(summary) == ["sft", "dpo", "dpo @ 0.5 nats", "round-1", "round-1 @ 0.5 nats"]
    assert (
        judgements.groupby(["policy", "prompt_id", "matched_kl"], dropna=False)["sample"].agg(list).map(len).eq(2).all()
    )
    assert {"gold_reward", "sentiment", "win", "words", "characters", "kl", "form"} <= set(judgements)
    reached, beyond = step.record()["metrics"]["matches"]
    assert reached["kl"] == pytest.approx(0.5, rel=0.05)
    assert beyond["alpha"] is None
    assert "as far as was tried" in beyond["why_not"]
    study = study_of(str(asked["params_file"]), [0], ["self-dpo"], overrides)
    judged = with_quantities(judgements_of(study))
    for matched_kl, suffix in ((None, ""), (0.5, " @ 0.5 nats")):
        results = comparison.per_run(judged, matched_kl)
        assert results["policy"].tolist() == ["sft", "dpo", "round-1"]
        assert results.loc[results["is_final"], "kl"].item() == pytest.approx(summary[f"round-1{suffix}"]["kl"]["mean"])
    assert comparison.per_run(judged, 900)["policy"].tolist() == ["sft"]


def test_a_second_run_of_the_graph_does_nothing(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.parent.parent.rglob("*.json")}
    finish(snakemake(finished))
    assert before == {path: path.stat().st_mtime_ns for path in finished.parent.parent.rglob("*.json")}


def test_notebooks_run_by_hand_over_a_finished_run_show_it_and_change_nothing(finished):
    runs = finished.parent.parent / "runs"
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    by_hand = {"params_file": finished, "overwrite": False}
    _run_cells("01_seed_dpo", **by_hand)
    for name in ("02_self_annotation", "03_dro_reweighting", "04_weighted_training"):
        _run_cells(name, **by_hand, round=2)
    for method in ("dpo", "ssapo"):
        _run_cells("05_evaluation", **by_hand, method=method)
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*")} == before


@pytest.mark.filterwarnings("ignore:.*was made with other params")
def test_another_radius_by_hand_goes_beside_the_finished_run_and_leaves_the_graph_nothing_to_do(finished):
    before = artefacts(finished.parent.parent / "runs")
    by_hand = {"params_file": finished, "overrides": {"follower.radius": 0.03}, "overwrite": False}
    for name in ("03_dro_reweighting", "04_weighted_training"):
        _run_cells(name, **by_hand, round=2)
    _run_cells("05_evaluation", **by_hand)
    after = artefacts(finished.parent.parent / "runs")
    assert {path: after[path] for path in before} == before
    own = {path.split("/")[2] for path in after.keys() - before.keys()}
    assert own == {"ssapo+mine"}
    assert "Nothing to be done" in finish(snakemake(finished, "--dry-run"))


@pytest.fixture(scope="module")
def studied(finished) -> Path:
    """The root of a finished run, after a study on the same params."""
    root = finished.parent.parent
    study = root / "params" / "studies" / "zero.yaml"
    study.parent.mkdir()
    one_round = {"data.n_prompts": [4]}
    variants = [
        {"method": "dpo"},
        {"method": "self-dpo", "name": "plain", "overrides": one_round},
        {"method": "ssapo+radius-0", "name": "zero", "overrides": one_round | {"follower.radius": 0}},
    ]
    study.write_text(json.dumps({"params": str(finished), "seeds": [0], "baselines": ["dpo"], "variants": variants}))
    before = (root / "runs" / "tiny" / "seed-0" / "dpo" / "seed_dpo.json").stat().st_mtime_ns
    finish(snakemake(finished, study=study))
    assert before == (root / "runs" / "tiny" / "seed-0" / "dpo" / "seed_dpo.json").stat().st_mtime_ns
    return root


def test_radius_0_trains_exactly_the_policy_of_plain_self_annotated_dpo(studied):
    folder = studied / "runs" / "tiny" / "seed-0"
    plain, zero, initial = (
        (folder / path / "policy" / "adapter_model.safetensors").read_bytes()
        for path in ("self-dpo/round-1", "ssapo+radius-0/round-1", "dpo")
    )
    assert plain == zero != initial


def test_a_study_leaves_its_tables_figures_and_raw_numbers(studied):
    folder = studied / "figures" / "studies" / "zero"
    names = {path.name for path in folder.iterdir()}
    tables = {"summary.md", "results.csv", "means.csv", "differences.csv", "followers.csv"}
    assert tables | {"judgements.parquet", "compared.png", "rounds.png"} <= names
    assert "nothing can be said" in (folder / "summary.md").read_text()
    trainings = pd.read_csv(folder / "trainings.csv").set_index("variant")[["n_rows", "n_steps", "lr_sum"]]
    assert (trainings.loc["plain"] == trainings.loc["zero"]).all()
    assert (trainings > 0).all(axis=None)


@pytest.fixture(scope="module")
def labelled(tiny_root) -> Path:
    """A params file with a file of labelled pairs, after a study of seed DPO and a round of self-annotation."""
    params_file = tiny_root("labelled")
    root = params_file.parent.parent
    texts = [("I love it.", "No."), ("Yes, gladly.", "I hate rain."), ("It rains.", "Never.")]
    pairs = [(f"Question {i}?", *answers) for i in range(9) for answers in texts[: 1 + i % 3]]
    rows = [{"prompt": prompt, "chosen": a, "rejected": b, "weight": 2} for prompt, a, b in pairs]
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"source": "pairs.jsonl", "n_seed": 3, "n_prompts": [3], "n_evaluation": 3, "n_calibration": 0}
    values = yaml.safe_load(params_file.read_text()) | {"data": data, "gold": None}
    params_file.write_text(yaml.safe_dump(values))
    study = root / "labels.yaml"
    variants = [{"method": "dpo"}, {"method": "self-dpo"}]
    study.write_text(json.dumps({"params": str(params_file), "seeds": [0], "baselines": ["dpo"], "variants": variants}))
    finish(snakemake(params_file, study=study))
    return params_file


def test_methods_are_compared_by_accuracy_where_people_labelled_the_pairs(labelled):
    root = labelled.parent.parent
    summary = Run.open(labelled, method="self-dpo").step("evaluation").load("summary.json")
    for policy in ("dpo", "round-1"):
        accuracy = summary[policy]["preference_accuracy"]
        assert 0 <= accuracy["low"] <= accuracy["mean"] <= accuracy["high"] <= 100
    assert "gold_reward" not in summary["dpo"]
    gain = summary["round-1"]["preference_accuracy"]["mean"] - summary["dpo"]["preference_accuracy"]["mean"]
    differences = pd.read_csv(root / "figures" / "studies" / "labels" / "differences.csv")
    told = differences[differences["quantity"] == "preference_accuracy"]
    assert told["mean"].tolist() == pytest.approx([gain])


def test_the_weights_of_a_data_file_count_in_seed_dpo(labelled):
    loss = Run.open(labelled).step("seed_dpo").record()["metrics"]["loss_first"]
    assert loss == pytest.approx(2 * math.log(2), rel=1e-3)


def test_other_labels_in_the_data_file_make_the_graph_run_again(labelled):
    data_file = labelled.parent.parent / "pairs.jsonl"
    before, study = data_file.read_text(), labelled.parent.parent / "labels.yaml"
    assert "Nothing to be done" in finish(snakemake(labelled, "--dry-run", study=study))
    data_file.write_text(before.replace("I love it.", "I like it."))
    assert re.search(r"(?m)^seed_dpo +1", finish(snakemake(labelled, "--dry-run", study=study)))
    data_file.write_text(before)


def test_a_study_that_compares_otherwise_is_drawn_again_and_nothing_else_is_made(labelled):
    study = labelled.parent.parent / "labels.yaml"
    before = study.read_text()
    study.write_text(before.replace('"baselines": ["dpo"]', '"baselines": ["self-dpo"]'))
    plan = finish(snakemake(labelled, "--dry-run", study=study))
    assert re.search(r"(?m)^figures +1", plan)
    assert "rule evaluation" not in plan
    study.write_text(before)


def test_launched_steps_are_those_of_the_notebooks(finished, tiny_root):
    params_file = tiny_root("launched")
    root, by_notebooks = params_file.parent.parent, Run.open(finished)
    shutil.copytree(finished.parent.parent / "runs", root / "runs")
    run = Run.open(params_file)
    run.step("seed_dpo").record_file.unlink()
    on_processes(1, "-m", "sgpo_lib.steps.launch", str(params_file), cwd=root)
    assert run.step("seed_dpo").record()["outputs"] == by_notebooks.step("seed_dpo").record()["outputs"]
    on_processes(2, "-m", "sgpo_lib.steps.launch", str(params_file), "--round", "1", cwd=root)
    there, here = (each.step("leader", 1).record()["metrics"] for each in (by_notebooks, run))
    assert (here["n_rows"], here["n_processes"]) == (there["n_rows"], 2)
    assert here["loss_first"] == pytest.approx(there["loss_first"], abs=0.01)


def test_figures_that_come_with_the_repository_do_not_stand_in_for_a_run(tiny_root):
    params_file = tiny_root("cloned")
    figures = params_file.parent.parent / "figures"
    (figures / "tiny").mkdir(parents=True)
    (figures / "tiny" / "summary.md").write_text("from another machine")
    (figures / "regret_constants.md").write_text("from another machine")
    plan = finish(snakemake(params_file, "--dry-run"))
    for rule in ("seed_dpo", "annotation", "follower", "leader", "evaluation", "figures", "regret"):
        assert re.search(rf"(?m)^(local)?rule {rule}:|^{rule} +\d", plan), plan


def test_the_lab_is_simulated_on_request_only(tiny_root):
    params_file = tiny_root("without_lab")
    assert not re.search(r"(?m)^lab +\d", finish(snakemake(params_file, "--dry-run")))
    plan = finish(snakemake(params_file, "lab", "--dry-run"))
    assert re.findall(r"(?m)^(\w+) +\d+$", plan) == ["lab", "total"] * 2, plan
    assert f"{params_file.parent.parent / 'figures'}/lab/predictions.md" in plan


def test_killed_at_any_moment_the_graph_resumes_to_the_same_artefacts(finished, tiny_root):
    """Also the test of reproducibility: a second run of the same seed, interrupted thrice, ends byte for byte alike."""
    params_file = tiny_root("killed")
    root = params_file.parent.parent
    seed_0 = Run.open(params_file)
    training, annotating = seed_0.step("seed_dpo"), seed_0.step("annotation", 1)
    wanted = str(annotating.record_file)
    for folder, begun in (
        (training.folder, ".seed_dpo.*/pairs.parquet"),
        (annotating.folder, "annotation-shards/*"),
        (annotating.folder, ".annotation.*/responses.parquet"),
    ):
        process = snakemake(params_file, wanted)
        while process.poll() is None and not any(folder.glob(begun)):
            time.sleep(0.05)
        assert not annotating.record_file.exists()
        kill(process, root)
        for record in root.rglob("*.json"):
            if record.stem in STEPS:
                for artefact in json.loads(record.read_text())["outputs"]:
                    _load(params_file, record, artefact)
    finish(snakemake(params_file, wanted))
    resumed, undisturbed = artefacts(root / "runs"), artefacts(finished.parent.parent / "runs")
    assert len(resumed) == 6
    assert resumed == {path: undisturbed.get(path) for path in resumed}


def _load(params_file: Path, record: Path, artefact: str) -> None:
    values = json.loads(record.read_text())
    Run.open(params_file, method=values["method"]).step(values["step"], values["round"]).load(artefact)


def test_a_notebook_run_before_its_inputs_says_which_one_makes_them(tiny_root):
    params_file = tiny_root("early")
    notebook = REPOSITORY / "notebooks" / "03_dro_reweighting.ipynb"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "papermill",
            notebook,
            params_file.parent / "out.ipynb",
            "-p",
            "params_file",
            params_file,
            "-p",
            "overrides",
            '{"follower.radius": 0.03}',
        ],
        capture_output=True,
        text=True,
        cwd=params_file.parent,
    )
    assert done.returncode != 0
    assert "run notebook 01_seed_dpo first" in done.stderr
    assert "sgpo_lib/runs" not in done.stderr  # the message for people comes without our frames
