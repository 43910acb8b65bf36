"""How long the default run takes at two commits, one after the other on this machine, from the same seed.

    python benchmarks/reproduces_in_half_the_time.py BEFORE AFTER

Each commit is checked out into a worktree of its own, with this environment's packages; its `make reproduce` runs from
nothing. Nothing else should run on the machine meanwhile: half an hour on two cores.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from limits import machine

ROOT = Path(__file__).parent.parent
ENVIRONMENT = Path(sys.prefix)
PARTS = ("load", "generate", "score", "follower", "train", "judge", "other", "total", "peak_gib")


def reproduce(commit: str, folder: Path, params: str) -> dict[str, float]:
    """Run one commit's default run; return the line "all" of its timing table, and `wall` seconds."""
    git = ["git", "-C", str(ROOT)]
    subprocess.run([*git, "worktree", "add", "--quiet", "--detach", str(folder), commit], check=True)
    try:
        (folder / ".venv").symlink_to(ENVIRONMENT)
        (ENVIRONMENT / ".complete").touch()  # newer than the worktree's pyproject.toml: nothing is installed
        start = time.perf_counter()
        environment = os.environ | {"PYTHONPATH": str(folder)}
        subprocess.run(["make", "reproduce", f"PARAMS={params}"], cwd=folder, env=environment, check=True)
        wall = time.perf_counter() - start
        rows = (folder / "figures" / Path(params).stem / "timing.md").read_text().splitlines()
    finally:
        subprocess.run([*git, "worktree", "remove", "--force", str(folder)], check=True)
    names, last = ([cell.strip() for cell in row.strip("|").split("|")] for row in (rows[0], rows[-1]))
    found = dict(zip(names, last, strict=True))
    return {part: float(found[part]) for part in PARTS if part in found} | {"wall": wall}


def main() -> None:
    """Run both, and write figures/reproduce_benchmark.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", help="commit")
    parser.add_argument("after", help="commit")
    parser.add_argument("--params", default="params/smollm2-135m.yaml")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = {
            name: reproduce(commit, Path(scratch, name), asked.params)
            for name, commit in (("before", asked.before), ("after", asked.after))
        }
    lines = [
        f"Made by `python benchmarks/reproduces_in_half_the_time.py {asked.before} {asked.after}`:",
        "",
        f"{machine()}; seconds of `make reproduce PARAMS={asked.params}`, and GiB.",
        "",
        "| part | before | after | before / after |",
        "|---|---:|---:|---:|",
    ]
    for part in (*PARTS, "wall"):
        before, after = (found[name].get(part, float("nan")) for name in ("before", "after"))
        ratio = f"{before / after:.2f}" if after else ""
        lines.append(f"| {part} | {before:.1f} | {after:.1f} | {ratio} |")
    (ROOT / "figures/reproduce_benchmark.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
