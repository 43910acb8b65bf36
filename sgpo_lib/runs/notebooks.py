"""The notebooks as files: what of them is code, and working copies that one may change.

    python -m sgpo_lib.runs.notebooks notebooks lab

makes the copies; one that was changed is kept.
"""

import argparse
import json
import shutil
from pathlib import Path

from sgpo_lib.runs.store import sha256_of

_ORIGINALS = ".originals"


def code_of(notebook: Path) -> str:
    """Return a hash of a notebook's code: not of its prose, outputs and parameters, which a run is given."""
    code = [source for kind, source, is_parameters in _cells(notebook) if kind == "code" and not is_parameters]
    return sha256_of("\n".join(code).encode())[:12]


def make_copies(originals: Path, copies: Path) -> list[str]:
    """Copy all notebooks to a folder to work in, and return the names of those that were kept as they are.

    A copy whose cells were changed is kept, and so is any where the original has not changed since. Outputs and empty
    cells are no change.
    """
    changed = []
    (copies / _ORIGINALS).mkdir(parents=True, exist_ok=True)
    for original in sorted(originals.glob("*.ipynb")):
        copy, copied_from = copies / original.name, copies / _ORIGINALS / original.name
        if copy.exists() and copied_from.exists():
            if _cells(copy) != _cells(copied_from):
                changed.append(original.name)
                continue
            if _cells(original) == _cells(copied_from):
                continue
        elif copy.exists():  # somebody's own
            changed.append(original.name)
            continue
        shutil.copyfile(original, copy)
        shutil.copyfile(original, copied_from)
    return changed


def _cells(notebook: Path) -> list[tuple[str, str, bool]]:
    """Kind and text of every cell that is not empty, and whether it holds the parameters."""
    return [
        (cell["cell_type"], source, "parameters" in cell["metadata"].get("tags", []))
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        if (source := "".join(cell["source"]).strip())
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("originals", type=Path)
    parser.add_argument("copies", type=Path)
    asked = parser.parse_args()
    for name in make_copies(asked.originals, asked.copies):
        print(f"{asked.copies / name} was changed and is kept; delete it to have {asked.originals / name} again")
