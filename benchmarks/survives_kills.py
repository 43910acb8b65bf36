"""SIGKILL at random moments, to the graph and to notebooks run by hand over a finished run: what is lost?

Half of the kills hit the graph on its way to a finished run, half a finished step that is made again (`redo`). After
each, every record there is must be that of whole artefacts; at the end of each way, all artefacts must be those of an
undisturbed run, byte for byte. On a tiny model, so that there are many moments between which something is written.

python benchmarks/survives_kills.py              # 100 kills, prints Markdown; over an hour on two cores
python benchmarks/survives_kills.py --kills 20
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from graph_runs import REPOSITORY, artefacts, finish, kill, snakemake
from small_model import write_tiny_model
from small_params import write_tiny_params

from sgpo_lib.runs import STEPS, Run, Step


def by_hand(params_file: Path, step: Step) -> subprocess.Popen:
    """Make a finished step again, as somebody would in its notebook."""
    values = {"params_file": str(params_file), "redo": True, "method": step.run.method}
    values |= {} if step.round is None else {"round": step.round}
    notebook = REPOSITORY / "notebooks" / f"{step.notebook}.ipynb"
    command = [sys.executable, "-m", "papermill", "--no-request-save-on-cell-execute", str(notebook)]
    return subprocess.Popen(
        [*command, "out.ipynb", "-y", json.dumps(values)],
        cwd=params_file.parent.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def killed_after(process: subprocess.Popen, seconds: float, root: Path) -> bool:
    """Kill the process after so long; False if it had ended by then."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        kill(process, root)
        return True
    return False


def steps_of(run: Run) -> list[Step]:
    rounds = [run.step(name, t) for t in run.rounds for name in ("annotation", "follower", "leader")]
    return [run.step("seed_dpo"), run.seed_only.step("evaluation"), *rounds, run.step("evaluation")]


def broken(run: Run) -> list[str]:
    """Load every artefact of every record there is; return those that cannot be."""
    found = []
    for step in steps_of(run):
        for name in step.record()["outputs"] if step.is_complete() else []:
            try:
                step.load(name)
            except (OSError, ValueError) as error:
                found.append(str(error))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    draw, started = random.Random(asked.seed), time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        model = write_tiny_model(Path(folder) / "model")
        undisturbed = write_tiny_params(Path(folder) / "undisturbed", model)
        wanted = str(Run.open(undisturbed).step("evaluation").record_file)
        begun = time.perf_counter()
        finish(snakemake(undisturbed, wanted))
        whole = time.perf_counter() - begun
        expected = artefacts(undisturbed.parent.parent / "runs")

        kills, lost, ways, differing, last_step = Counter(), [], 0, 0, Counter()
        while kills["graph"] < asked.kills // 2:
            params_file = write_tiny_params(Path(folder) / f"way-{ways}", model)
            root, run = params_file.parent.parent, Run.open(params_file)
            record = str(run.step("evaluation").record_file)
            while kills["graph"] < asked.kills // 2:
                if not killed_after(snakemake(params_file, record), draw.uniform(3, max(6, whole / 3)), root):
                    break
                kills["graph"] += 1
                lost += broken(run)
                last_step[next((s.name for s in steps_of(run) if not s.is_complete()), "none")] += 1
            finish(snakemake(params_file, record))
            ways, differing = ways + 1, differing + (artefacts(root / "runs") != expected)
            shutil.rmtree(root)

        root, run = undisturbed.parent.parent, Run.open(undisturbed)
        while kills["by hand"] < asked.kills - asked.kills // 2:
            step = draw.choice([each for each in steps_of(run) if each.name in STEPS])
            if killed_after(by_hand(undisturbed, step), draw.uniform(2, 15), root):
                kills["by hand"] += 1
                lost += broken(run)
                lost += [f"{each.key} lost its record" for each in steps_of(run) if not each.is_complete()]
        again = finish(snakemake(undisturbed, wanted, "--dry-run"))
        finish(snakemake(undisturbed, wanted))
        differing += artefacts(root / "runs") != expected

    print("| kills of | kills | records of broken artefacts | runs that ended otherwise than undisturbed |")
    print("|:--|--:|--:|--:|")
    print(
        f"| graph, notebooks by hand | {kills['graph']}, {kills['by hand']} | {len(lost)} | {differing} of {ways + 1} |"
    )
    print(f"\nThe graph was killed before the end of {dict(last_step)}; {time.perf_counter() - started:.0f} s in all.")
    print(
        "After the kills by hand the graph had", "nothing" if "Nothing to be done" in again else "something", "to do."
    )
    print(*lost, sep="\n")


if __name__ == "__main__":
    main()
