"""Profiles for clusters: they name what exists, ask for a GPU where a model is loaded, and plan the whole graph."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from small_params import write_tiny_params
from snakemake.cli import get_argument_parser

REPOSITORY = Path(__file__).parent.parent
PROFILES = {path.parent.name: path for path in sorted((REPOSITORY / "profiles").glob("*/config.yaml"))}
RULES = set(re.findall(r"^rule (\w+):", (REPOSITORY / "Snakefile").read_text(), re.MULTILINE)) - {"all"}
USE_A_MODEL = {"seed_dpo", "first_annotation", "annotation", "leader", "evaluation"}

# Options and resources that the plugins add to Snakemake's own, as their sources name them.
OPTIONS = {"slurm": set(), "kubernetes": {"kubernetes-persistent-volumes"}}
RESOURCES = {
    "slurm": {"mem_mb", "runtime", "gpu", "gpu_model", "slurm_partition", "slurm_account"},
    "kubernetes": {"mem_mb", "disk_mb", "gpu", "gpu_manufacturer", "machine_type", "scale"},
}


@pytest.mark.parametrize("name", PROFILES)
def test_profile_names_only_options_rules_and_resources_that_exist(name):
    profile = yaml.safe_load(PROFILES[name].read_text())
    known = {flag.removeprefix("--") for action in get_argument_parser()._actions for flag in action.option_strings}
    assert set(profile) <= known | OPTIONS[name]
    assert set(profile["set-resources"]) <= RULES
    for resources in (profile["default-resources"], *profile["set-resources"].values()):
        assert set(resources) <= RESOURCES[name]
        assert all(type(value) is int or resource == "gpu_manufacturer" for resource, value in resources.items())


@pytest.mark.parametrize("name", PROFILES)
def test_steps_that_load_a_model_and_only_they_ask_for_a_gpu(name):
    resources = yaml.safe_load(PROFILES[name].read_text())["set-resources"]
    assert {rule for rule, asked in resources.items() if asked.get("gpu")} == USE_A_MODEL


@pytest.mark.parametrize("name", PROFILES)
def test_snakemake_plans_the_whole_graph_with_the_profile(name, tmp_path):
    params_file = write_tiny_params(tmp_path, tmp_path / "not loaded")
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        str(REPOSITORY / "Snakefile"),
        "--directory",
        str(tmp_path),
    ]
    command += ["--workflow-profile", str(PROFILES[name].parent), "--dry-run"]
    done = subprocess.run(
        [*command, "--config", f"params={params_file}", f"figures={tmp_path / 'figures'}"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-4000:]
    assert set(re.findall(r"^(\w+) +\d+$", output, re.MULTILINE)) >= RULES - {"lab"}  # asked for by name only


def test_braces_in_a_path_are_refused_and_spaces_are_not(tmp_path):
    for folder in ("my {run}", "my run"):
        params_file = write_tiny_params(tmp_path / folder, tmp_path / "not loaded")
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile"), "--dry-run"]
        done = subprocess.run(
            [*command, "--directory", str(tmp_path), "--config", f"params={params_file}"],
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])},
            capture_output=True,
            text=True,
        )
        assert (done.returncode == 0) == ("{" not in folder), done.stdout + done.stderr
        assert ("reads braces in a path as a wildcard" in done.stdout + done.stderr) == ("{" in folder)
