"""The notebooks as files: what counts as their code, and copies that keep what their user changed."""

import json
from pathlib import Path

import pytest

from sgpo_lib.runs.notebooks import code_of, make_copies

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "03_dro_reweighting.ipynb"


def change(notebook, edit):
    content = json.loads(notebook.read_text())
    edit(content["cells"])
    notebook.write_text(json.dumps(content))


def cell(source, kind="code"):
    return {"cell_type": kind, "id": "new", "metadata": {}, "source": [source], "outputs": [], "execution_count": None}


def with_parameter(cells):
    next(c for c in cells if c["id"] == "parameters")["source"] = ["round = 2\n", "overrides = {'beta': 1}"]


def with_outputs(cells):
    for each in cells:
        if each["cell_type"] == "code":
            each |= {"outputs": [{"output_type": "stream", "name": "stdout", "text": "x"}], "execution_count": 7}


@pytest.fixture
def originals(tmp_path):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    (folder / NOTEBOOK.name).write_text(NOTEBOOK.read_text())
    return folder


@pytest.mark.parametrize(
    ("edit", "is_other_code"),
    [
        (lambda cells: cells.append(cell("")), False),
        (lambda cells: cells.append(cell("  \n")), False),
        (with_parameter, False),
        (with_outputs, False),
        (lambda cells: cells.append(cell("More prose.", "markdown")), False),
        (lambda cells: cells.append(cell("radius = 1")), True),
        (lambda cells: cells.remove([each for each in cells if each["cell_type"] == "code"][-1]), True),
    ],
    ids=["empty cell", "blank cell", "parameters", "outputs", "prose", "another cell", "a cell less"],
)
def test_the_graph_runs_a_notebook_again_for_its_code_alone(originals, edit, is_other_code):
    notebook = originals / NOTEBOOK.name
    before = code_of(notebook)
    change(notebook, edit)
    assert (code_of(notebook) != before) == is_other_code


def test_a_copy_that_was_changed_is_kept_and_named_and_any_other_follows_its_original(originals, tmp_path):
    copies, name = tmp_path / "lab", NOTEBOOK.name
    assert make_copies(originals, copies) == []
    change(copies / name, with_outputs)
    executed = (copies / name).read_text()
    assert make_copies(originals, copies) == []
    assert (copies / name).read_text() == executed  # nothing new to follow
    change(originals / name, lambda cells: cells.append(cell("x = 1")))
    assert make_copies(originals, copies) == []
    assert (copies / name).read_text() == (originals / name).read_text()
    change(copies / name, with_parameter)
    mine = (copies / name).read_text()
    change(originals / name, lambda cells: cells.append(cell("y = 2")))
    assert make_copies(originals, copies) == [name]
    assert (copies / name).read_text() == mine
