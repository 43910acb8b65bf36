"""What holds for the repository as a whole: one set of versions, clean notebooks, light imports."""

import ast
import importlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def _name(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement).group()).lower()


def test_conda_and_make_install_the_same():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    listed = next(entry["pip"] for entry in conda["dependencies"] if isinstance(entry, dict))
    recipe = (ROOT / "Makefile").read_text()
    assert all(option.replace(".[test]", "'.[test]'") in recipe for option in listed)


def test_constraints_pin_every_dependency_and_pyproject_pins_none():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {_name(line) for line in lines if "==" in line}
    needed = {
        requirement
        for extra, listed in {"": PROJECT["dependencies"], **EXTRAS}.items()
        for requirement in listed
        if extra != "qlora" and not requirement.startswith("sgpo-lib")  # bitsandbytes is for CUDA only
    }
    assert {_name(requirement) for requirement in needed} - pinned == set()
    assert not any("==" in requirement for requirement in needed)


def test_the_wheel_needs_no_extra_to_give_the_follower_and_the_trainer(tmp_path):
    """Built, unpacked and imported where what the extras bring cannot be imported."""
    source = tmp_path / "source"  # building leaves files behind, and takes in those that an earlier build left
    shutil.copytree(ROOT / "sgpo_lib", source / "sgpo_lib", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(tmp_path), str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    metadata = next(site.glob("*.dist-info/METADATA")).read_text()
    assert {f"Provides-Extra: {extra}" for extra in EXTRAS} <= set(metadata.splitlines())
    core = {_name(requirement) for requirement in PROJECT["dependencies"]}
    extra_only = {_name(r) for listed in EXTRAS.values() for r in listed} - core - {"sgpo-lib", "setuptools"}
    extra_only -= {"sphinx"}  # SciPy asks whether it is loaded, and takes None for a module
    code = f"""
import sys
for name in {sorted(extra_only)}:
    sys.modules[name.replace("-", "_")] = None  # importing it is an ImportError
sys.path.insert(0, {str(site)!r})
import sgpo_lib, sgpo_lib.follower, sgpo_lib.leader, sgpo_lib.annotation, sgpo_lib.evaluation, sgpo_lib.runs
from sgpo_lib.leader import WeightedDPOTrainer, train
assert sgpo_lib.__file__.startswith({str(site)!r})
print(sgpo_lib.follower.worst_case([0.0, 1.0], 0.1).gap)
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert abs(float(done.stdout)) < 1e-12


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_notebooks_are_clean_and_can_be_parameterised(path):
    cells = json.loads(path.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in code) == 1
    assert len({cell["id"] for cell in cells}) == len(cells)
    assert all(re.fullmatch(r"[a-z][a-z0-9-]*", cell["id"]) for cell in cells)
    assert max(len("".join(cell["source"]).splitlines()) for cell in code) <= 30


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_notebook_takes_from_the_library_is_there(path):
    cells = ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    tree = ast.parse("\n".join(line for cell in cells for line in cell.splitlines() if not line.startswith("%")))
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("sgpo_lib"):
            for name in node.names:
                taken = _taken(node.module, name.name)
                if isinstance(taken, ModuleType):
                    modules[name.asname or name.name] = taken
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id)
            assert module is None or hasattr(module, node.attr), f"{module.__name__} has no {node.attr}"


def _taken(module: str, name: str):
    """What `from module import name` gives."""
    room = importlib.import_module(module)
    return getattr(room, name) if hasattr(room, name) else importlib.import_module(f"{module}.{name}")


def test_the_light_half_of_the_library_imports_neither_torch_nor_transformers():
    light = (
        "sgpo_lib.runs, sgpo_lib.follower, sgpo_lib.plots, sgpo_lib.data, sgpo_lib.regret, sgpo_lib.evaluation.report"
    )
    code = f"import sys, {light}; print([m for m in ('torch', 'transformers', 'cvxpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_module_imports_and_says_what_it_is_for():
    for path in (ROOT / "sgpo_lib").rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        assert importlib.import_module(name).__doc__, name


def test_no_tracked_text_names_a_folder_of_one_persons_machine():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    personal = re.compile(r"(?<![\w.:/}*-])/(?:home|Users|root|work)/[\w.-]+")
    assert personal.search("saved in /" + "home/ada/runs")
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        content = (ROOT / name).read_bytes() if (ROOT / name).is_file() else b""
        if b"\0" not in content:
            found += [f"{name}: {match}" for match in personal.findall(content.decode())]
    assert found == []


@pytest.mark.parametrize(
    ("goal", "variables", "handed_on"),
    [
        (
            "reproduce",
            ["PARAMS=params/my run's.yaml", "SEEDS=0,1"],
            "params=params/my run's.yaml|seeds=0,1|methods=ssapo",
        ),
        ("figures", ["PARAMS=params/my run's.yaml"], "params=params/my run's.yaml|seeds=0|methods=ssapo"),
        ("study", ["NAME=my study"], "study=params/studies/my study.yaml|threads=1"),
        ("plan", ["PARAMS=params/my run's.yaml"], "sgpo_lib.plan|params/my run's.yaml"),
    ],
)
def test_make_hands_on_names_with_spaces_and_quotes_whole(tmp_path, goal, variables, handed_on):
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("pyproject.toml", "constraints.txt", ".venv/.complete"):
        (tmp_path / name).touch()
    for name in ("snakemake", "python"):
        (programs / name).write_text('#!/bin/sh\nprintf "%s|" "$@" > handed_on\n')
        (programs / name).chmod(0o755)
    for folder in ("my run's", "studies/my study"):
        (tmp_path / "figures" / folder).mkdir(parents=True)
        (tmp_path / "figures" / folder / "summary.md").write_text("summary")
    done = subprocess.run(["make", goal, *variables], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "handed_on").read_text().endswith(f"{handed_on}|")


@pytest.mark.parametrize("uv", [True, False])
def test_setup_installs_with_uv_where_there_is_one_and_else_with_pip(tmp_path, uv):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("make", "sh", "getconf"):
        (programs / name).symlink_to(shutil.which(name))
    if uv:
        (programs / "uv").write_text("#!/bin/sh\n")
        (programs / "uv").chmod(0o755)
    planned = subprocess.run(
        ["make", "-n", "setup"], cwd=tmp_path, capture_output=True, text=True, check=True, env={"PATH": str(programs)}
    ).stdout
    installs = [line for line in planned.splitlines() if " install " in line]
    assert len(installs) == 2
    assert all("--constraint constraints.txt" in line for line in installs)
    assert all(line.startswith(f"{programs}/uv pip" if uv else ".venv/bin/pip") for line in installs)
    assert ("uv venv" in planned) == uv
    assert ("-m venv" in planned) != uv
