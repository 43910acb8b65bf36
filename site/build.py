"""Make the site: pages of docs/ and the executed notebooks of a run, readable without a kernel and without a network.

make site                                   # the default run, if it is there
python site/build.py --params params/smollm2-135m.yaml --seed 0 --method ssapo --out build/site
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import panels
from reference import api_reference, params_reference

from sgpo_lib.evaluation.report import executed_notebook
from sgpo_lib.runs import Run

ROOT = Path(__file__).resolve().parent.parent
# What pages link to beside the pages themselves.
LINKED = ("figures", "params", "benchmarks", "examples", "profiles", "CITATION.cff", "LICENSE", "sgpo_lib")
# Cells that are panels with sliders in JupyterLab, by id, and what stands on a page for them.
FLIPBOOKS = {"regret-sliders": panels.one_game, "explore-widget": panels.explore_the_lab}
EXPLAINED = {  # where each page hangs in the contents
    "Read": ["docs/findings", "docs/studies", "docs/regret", "docs/faults", "docs/glossary"],
    "Step": ["docs/notebooks", "docs/my-laptop", "docs/algorithm", "docs/using-the-policy", "docs/troubleshooting"],
    "My own": ["docs/my-own-data", "docs/my-own-principle", "docs/my-own-judge", "docs/one-gpu", "docs/cluster"],
    "How it works": ["docs/follower", "docs/methods", "docs/speed", "docs/layout"],
    "Reference": ["docs/params", "docs/api"],
}


def gather_notebooks(run: Run, folder: Path, flipbooks: dict[str, Callable[[], str]]) -> dict[str, str]:
    """Copy each notebook as the run executed it, or as it is stored where it did not; return pages by their titles."""
    folder.mkdir(parents=True)
    executed = {"06_regret_bounds": run.folder.parents[1] / "notebooks/06_regret_bounds.ipynb"}
    executed["09_lab"] = executed["06_regret_bounds"].with_name("09_lab.ipynb")
    executed["07_paper_figures"] = run.folder.parents[1] / f"notebooks/07_paper_figures-{run.params.name}.ipynb"
    executed["01_seed_dpo"] = executed_notebook(run.step("seed_dpo"))
    executed["05_evaluation"] = executed_notebook(run.step("evaluation"))
    for t in run.rounds:
        later = "" if t == 1 else f"-round-{t}"
        for name in ("annotation", "follower", "leader"):
            step = run.step(name, t)
            executed[f"{step.notebook}{later}"] = executed_notebook(step)
    pages = {}
    for page in sorted({*executed, *(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))}):
        stored = ROOT / "notebooks" / f"{page.partition('-round-')[0]}.ipynb"
        made = executed.get(page)
        if made is None or not made.exists():
            if "-round-" in page:
                continue
            made = stored
        notebook = json.loads(made.read_text())
        prepare(notebook, page, made is not stored, flipbooks if "-round-" not in page else {})
        (folder / f"{page}.ipynb").write_text(json.dumps(notebook))
        pages[page] = "".join(notebook["cells"][0]["source"]).splitlines()[0].lstrip("# ")
    return pages


def prepare(notebook: dict, page: str, executed: bool, flipbooks: dict[str, Callable[[], str]]) -> None:
    """Put flipbooks in the place of panels that need a kernel, say what the page is, drop what only papermill reads."""
    notebook["metadata"].pop("widgets", None)
    t = page.partition("-round-")[2]
    if t:
        title = notebook["cells"][0]["source"]
        notebook["cells"][0]["source"] = "".join(title).replace("\n", f", round {t}\n", 1)
    if not executed:
        note = ":::{note}\nThis notebook was not executed for these pages: run it with `make lab`.\n:::"
        notebook["cells"].insert(1, {"cell_type": "markdown", "id": "not-executed", "metadata": {}, "source": note})
        flipbooks = {**flipbooks, "panel": panels.play_the_adversary}
    injected = any("injected-parameters" in cell["metadata"].get("tags", []) for cell in notebook["cells"])
    if injected:  # which repeats what the parameters cell says, with this run's values
        notebook["cells"] = [cell for cell in notebook["cells"] if "parameters" not in cell["metadata"].get("tags", [])]
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        cell["outputs"] = [output for output in cell["outputs"] if not _without_use(output)]
        if cell.get("id") in flipbooks:
            data = {"text/html": flipbooks[cell["id"]](), "text/plain": ""}
            cell["outputs"] = [{"output_type": "display_data", "metadata": {}, "data": data}]


def _without_use(output: dict) -> bool:
    """Return whether an output is a widget, which needs a kernel, or a progress bar that has ended."""
    return "application/vnd.jupyter.widget-view+json" in output.get("data", {}) or output.get("name") == "stderr"


def write_index(source: Path, pages: dict[str, str]) -> None:
    """Make README the first page, with the contents below it."""
    text = (ROOT / "README.md").read_text()
    contents = {"The notebooks": [f"notebooks/{page}" for page in pages], **EXPLAINED}
    trees = [
        "\n".join([f"```{{toctree}}\n:hidden:\n:caption: {caption}\n", *listed, "```"])
        for caption, listed in contents.items()
    ]
    (source / "index.md").write_text("\n\n".join([text, *trees]) + "\n")


def main() -> None:
    """Gather the sources in `<out>/source` and have Sphinx make `<out>/html` of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--params", default="params/smollm2-135m.yaml")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--method", default="ssapo")
    parser.add_argument("--out", type=Path, default=ROOT / "build/site")
    parser.add_argument("--without", action="append", default=[], help="id of a cell that gets no flipbook")
    asked = parser.parse_args()
    source = asked.out / "source"
    shutil.rmtree(source, ignore_errors=True)
    for name in LINKED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, source / name)
    shutil.copytree(ROOT / "docs", source / "docs")
    run = Run.open(ROOT / asked.params, asked.seed, asked.method)
    pages = gather_notebooks(
        run, source / "notebooks", {cell: draw for cell, draw in FLIPBOOKS.items() if cell not in asked.without}
    )
    (source / "docs/params.md").write_text(params_reference())
    (source / "docs/api.md").write_text(api_reference())
    write_index(source, pages)
    shutil.copytree(ROOT / "site/_static", source / "_static")
    command = [sys.executable, "-m", "sphinx", "--conf-dir", ROOT / "site", "--builder", "html", "--quiet"]
    subprocess.run([*command, "--fail-on-warning", "--keep-going", source, asked.out / "html"], check=True)
    print("pages", asked.out / "html/index.html")


if __name__ == "__main__":
    main()
