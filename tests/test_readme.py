"""README and the pages beside it say what was measured, and what they point to exists."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sgpo_lib.params import load_params

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_pages_quote_tables_and_code_as_they_are():
    script = ROOT / "benchmarks" / "quote_tables.py"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_readme_is_a_page_and_a_half_that_leads_to_every_other():
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 75
    assert [page.name for page in PAGES[1:] if f"({page.relative_to(ROOT)})" not in readme] == []


def test_every_notebook_has_its_line():
    page = (ROOT / "docs/notebooks.md").read_text()
    notebooks = (ROOT / "notebooks").glob("*.ipynb")
    assert [path.name for path in notebooks if f"(../notebooks/{path.name})" not in page] == []


def test_every_room_has_its_line():
    layout = (ROOT / "docs/layout.md").read_text()
    rooms = [path.parent.name + "/" for path in (ROOT / "sgpo_lib").glob("*/__init__.py")]
    assert [room for room in rooms if not re.search(rf"\b{room}", layout)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_local_links_and_make_targets_exist(page):
    text = page.read_text()
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)\b(?!`)", text)) <= targets
    named = re.findall(r"(?<![\w/])(?:params|profiles|benchmarks|notebooks|examples|sgpo_lib)/[\w./-]+\w", text)
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_params_that_a_page_shows_can_be_used(page, tmp_path):
    shutil.copy(ROOT / "params" / "smollm2-135m.yaml", tmp_path)
    for i, block in enumerate(re.findall(r"```yaml\n(.*?)```", page.read_text(), flags=re.DOTALL)):
        file = tmp_path / f"mine{i}.yaml"
        file.write_text(block if "extends:" in block else f"extends: smollm2-135m.yaml\n{block}")
        load_params(file)
