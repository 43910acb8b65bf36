"""What a notebook waits for before its first line of work: only what it needs is imported."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
LANGUAGE_MODELS = {"torch", "transformers", "trl", "peft", "accelerate", "datasets"}


def imports_of(notebook: str) -> str:
    """All import statements of a notebook, wherever they stand."""
    cells = json.loads((NOTEBOOKS / f"{notebook}.ipynb").read_text())["cells"]
    code = "".join("".join(cell["source"]) + "\n" for cell in cells if cell["cell_type"] == "code")
    tree = ast.parse("\n".join(line for line in code.splitlines() if not line.startswith("%")))
    return "\n".join(ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom))


@pytest.mark.parametrize(
    ("notebook", "unneeded"),
    [
        ("02_self_annotation", {"trl", "datasets"}),
        ("03_dro_reweighting", LANGUAGE_MODELS),
        ("05_evaluation", {"trl", "datasets"}),
        ("06_regret_bounds", LANGUAGE_MODELS),
        ("07_paper_figures", LANGUAGE_MODELS),
        ("09_lab", LANGUAGE_MODELS),
    ],
)
def test_a_notebook_imports_nothing_that_it_does_not_need(notebook, unneeded):
    code = f"{imports_of(notebook)}\nimport sys; print(*sys.modules)"
    imported = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert "sgpo_lib" in imported
    assert imported & unneeded == set()
