"""`make reproduce` at two commits, one after the other on this machine from the same seed: minutes and memory.

python benchmarks/run_at_two_commits.py BEFORE [AFTER]                    # AFTER is HEAD; prints Markdown
python benchmarks/run_at_two_commits.py BEFORE --venv .venv               # both use one environment
python benchmarks/run_at_two_commits.py BEFORE --params tiny.yaml         # another params file, for both

Each commit gets a fresh worktree, and `make setup` in it unless there is a `--venv`. What is timed is
`make reproduce` from its first line to its last; notebooks' seconds are those of the run's own `timing.md`.
Keep the machine idle meanwhile.
"""

import argparse
import os
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pandas as pd
from limits import as_table, rates

ROOT = Path(__file__).resolve().parents[1]
PARAMS = Path("params/smollm2-135m.yaml")


def git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", ROOT, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def checked_out(commit: str, folder: Path, venv: Path | None, params: Path | None) -> float:
    """Make a fresh worktree with an environment, and return the seconds that setting it up took."""
    git("worktree", "add", "--detach", str(folder), commit)
    if params:
        shutil.copy(params, folder / "params" / params.name)
    start = time.perf_counter()
    if venv:
        (folder / ".venv").symlink_to(venv.resolve())
        for file in ("pyproject.toml", "constraints.txt"):
            os.utime(folder / file, (0, 0))  # older than the environment, so that make leaves it alone
    else:
        subprocess.run(["make", "setup"], cwd=folder, check=True)
    return time.perf_counter() - start


def memory_of(pid: int) -> float:
    """GiB in use by a process and all that it started, wherever their sessions are, shared pages counted once."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has ended meanwhile
    family, new = {pid}, {pid}
    while new := {child for child, parent in parents.items() if parent in new} - family:
        family |= new
    total = 0
    for member in family:
        try:
            lines = Path(f"/proc/{member}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 2**20


def reproduce(folder: Path, params: Path, seed: int) -> tuple[float, float]:
    """Run `make reproduce`, and return its wall seconds and the largest memory of all its processes together."""
    environment = os.environ | {"PYTHONPATH": str(folder)}  # the commit's own library, also in a shared environment
    start = time.perf_counter()
    process = subprocess.Popen(["make", "reproduce", f"PARAMS={params}", f"SEEDS={seed}"], cwd=folder, env=environment)
    peak, over = 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(2):
            peak = max(peak, memory_of(process.pid))

    watching = threading.Thread(target=watch)
    watching.start()
    code = process.wait()
    seconds = time.perf_counter() - start
    over.set()
    watching.join()
    if code:
        raise SystemExit(f"make reproduce failed in {folder}, which is kept.")
    return seconds, peak


def timing_of(folder: Path, params: Path) -> pd.DataFrame:
    """Read the `timing.md` of a run."""
    lines = (folder / "figures" / params.stem / "timing.md").read_text().splitlines()
    heading, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return pd.DataFrame(rows, columns=heading).set_index("notebook").astype(float)


def compare(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """Seconds of each notebook and of each kind of work, and the ratio of the two; the notebooks' peak memory."""
    rows = {name: (before["total"].get(name), after["total"].get(name)) for name in after.index if name != "all"}
    parts = [part for part in after.columns if part not in ("total", "peak_gib")]
    rows |= {f"all: {part}": (before.loc["all"].get(part), after.loc["all", part]) for part in parts}
    rows["all notebooks"] = before.loc["all", "total"], after.loc["all", "total"]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["before, s", "after, s"]).rename_axis("work")
    table["ratio"] = table["before, s"] / table["after, s"].where(table["after, s"] > 0)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before")
    parser.add_argument("after", nargs="?", default="HEAD")
    parser.add_argument("--venv", type=Path, help="environment that both use; default: each makes its own")
    parser.add_argument("--params", type=Path, help=f"a params file to be copied to both; default: {PARAMS}")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    params = Path("params", asked.params.name) if asked.params else PARAMS
    limits = as_table(rates())
    base, tables, totals = Path(tempfile.mkdtemp()), [], {}
    for name in ("before", "after"):
        folder = base / name
        setting_up = checked_out(getattr(asked, name), folder, asked.venv, asked.params)
        seconds, peak = reproduce(folder, params, asked.seed)
        tables.append(timing_of(folder, params))
        commit = git("rev-parse", "--short=9", getattr(asked, name))
        totals[f"{name} ({commit})"] = {
            "set-up, s": float("nan") if asked.venv else setting_up,
            "make reproduce, s": seconds,
            "largest notebook, GiB": tables[-1].loc["all", "peak_gib"],
            "all processes, GiB": peak,
        }
    print(limits)
    print(pd.DataFrame(totals).to_markdown(floatfmt=".1f"), "\n")
    print(compare(*tables).to_markdown(floatfmt=("", ".1f", ".1f", ".2f")))
    for name in ("before", "after"):
        git("worktree", "remove", "--force", str(base / name))


if __name__ == "__main__":
    main()
