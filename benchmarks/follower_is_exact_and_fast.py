"""The exact follower against a sort, two convex solvers and the published solve, on the same margins.

    python benchmarks/follower_is_exact_and_fast.py

prints three Markdown tables: the time of each solver while N grows, until the solver needs longer than
`--limit` seconds; what each returns for one group of pairs; and the time of the differentiable loss. Every
solver runs on one core. Margins are |N(0, 2)|, the sign that self-annotation gives, from a fixed seed.
"""

import argparse
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

# Before numpy and torch start their threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from sgpo_lib.follower import (
    ConvexProgram,
    Grouped,
    Published,
    logistic_loss,
    sgpo_loss,
    side_by_side,
    tangents,
    worst_case,
)


def main():
    options = parse_options()
    print(machine() + "\n")
    times = time_against_size(options)
    print(table_of_times(times, options))
    values = compare_values(options)
    print(table_of_values(values, options))
    print(loss_times(options))
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "times": times, "values": values}, indent=1))


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--radius", type=float, default=0.01)
    parser.add_argument("--pieces", type=int, default=6, help="K, for the solvers that need tangents")
    parser.add_argument("--limit", type=float, default=20.0, help="seconds after which a solver gives up")
    parser.add_argument("--max-pairs", type=int, default=10_000_000)
    parser.add_argument("--published-group", type=int, default=20, help="G; the paper's 100 takes minutes a group")
    parser.add_argument("--published-groups", type=int, default=1, help="how many such groups to solve")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    return parser.parse_args()


def machine() -> str:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    packages = ("numpy", "scipy", "cvxpy", "highspy", "clarabel", "torch")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return f"{model}, {os.cpu_count()} cores, one used; Python {platform.python_version()}, {versions}."


def draw(n, seed):
    return np.abs(np.random.default_rng(seed).normal(0, 2, n))


def window(margins):
    return margins.min() - 0.1, margins.max() + 0.1


def exact(*problem):
    """The exact follower, with the dense arrays that the leader reads, which are part of the job."""
    result = worst_case(*problem)
    _ = result.moved, result.displacement
    return result


def followers(options):
    """Every follower with how its problem is made from margins, slow ones last."""
    pieces = options.pieces

    def smooth(margins):
        return margins, options.radius, window(margins), logistic_loss

    def lines(margins):
        return margins, options.radius, window(margins), tangents(pieces, window(margins))

    def chances(margins):
        return 1 / (1 + np.exp(-margins)), options.radius, (0, 1), tangents(pieces, space="probability")

    return {
        "exact": (exact, smooth),
        f"exact, K = {pieces}": (exact, lines),
        "grouped, G = 100": (Grouped(100), smooth),
        f"Clarabel, K = {pieces}": (ConvexProgram("CLARABEL"), lines),
        f"HiGHS, K = {pieces}": (ConvexProgram("HIGHS"), lines),
        f"published, G = {options.published_group}": (Published(options.published_group), chances),
    }


def solvers(options):
    """Sorting, and every follower, as a function of the margins."""
    solve = {name: lambda m, f=f, pose=pose: f(*pose(m)) for name, (f, pose) in followers(options).items()}
    return {"numpy.sort": np.sort} | solve


def best_of(function, budget=1.0):
    """Return the least seconds over repeats, three at least unless they are slow: noise only ever adds."""
    best, spent, repeats = float("inf"), 0.0, 0
    while spent < budget or (repeats < 3 and spent < 3 * budget):
        start = time.perf_counter()
        function()
        seconds = time.perf_counter() - start
        best, spent, repeats = min(best, seconds), spent + seconds, repeats + 1
    return best


def time_against_size(options):
    """Time all solvers at one size before the next, so that those compared share the machine's mood."""
    running = solvers(options)
    for solve in running.values():
        # The first call loads the solver's library.
        solve(draw(2, options.seed))
    group = options.published_group * options.published_groups
    sizes = sorted({group, *(10**power for power in range(2, 9))})
    rows = []
    for size in (s for s in sizes if s <= options.max_pairs):
        margins = draw(size, options.seed)
        for name, solve in list(running.items()):
            if name.startswith("published") and size != group:
                continue
            seconds = best_of(lambda: solve(margins))  # noqa: B023
            rows.append({"solver": name, "n_pairs": size, "seconds": seconds})
            # No solver here is sublinear, so ten times as many pairs take ten times as long or longer.
            if size >= 100 and seconds * 10 > options.limit:
                del running[name]
    return rows


def compare_values(options):
    """Values and violations on the margins of one published group, small enough for all solvers."""
    margins = draw(options.published_group * options.published_groups, options.seed)
    return [side_by_side({name: f}, *pose(margins))[0] for name, (f, pose) in followers(options).items()]


def table_of_times(rows, options):
    sizes = sorted({row["n_pairs"] for row in rows})
    names = list(dict.fromkeys(row["solver"] for row in rows))
    cells = {(row["solver"], row["n_pairs"]): row["seconds"] for row in rows}
    lines = [
        f"Seconds to solve N pairs at radius {options.radius}; best of repeats, – where not run.\n",
        "| solver | " + " | ".join(f"{size:,}" for size in sizes) + " |",
        "|---|" + "---:|" * len(sizes),
    ]
    for name in names:
        shown = [f"{cells[name, size]:.2g}" if (name, size) in cells else "–" for size in sizes]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    lines.append("")
    for name in (n for n in names if not n.startswith(("exact", "numpy"))):
        largest = max(size for solver, size in cells if solver == name)
        ratio = cells[name, largest] / cells["exact", largest]
        lines.append(f"- {name} takes {ratio:,.0f} times as long as exact at N = {largest:,}.")
    for size in (s for s in sizes if s >= 1_000_000):
        ratio = cells["exact", size] / cells["numpy.sort", size]
        lines.append(f"- exact takes {ratio:.1f} times as long as sorting at N = {size:,}.")
    return "\n".join(lines) + "\n"


def table_of_values(rows, options):
    lines = [
        f"What each returns for the same {rows[0]['n_pairs']} pairs at radius {options.radius}. "
        "`published` works on probabilities, so its losses compare with each other only.\n",
        "| solver | no adversary | value | bound | lost | transport over budget | seconds |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        losses = " | ".join(f"{row[name]:.6f}" for name in ("nominal", "value", "bound"))
        excess = row["excess"] / row["radius"]
        lines.append(f"| {row['solver']} | {losses} | {row['lost']:.1e} | {excess:.1%} | {row['seconds']:.2g} |")
    return "\n".join(lines) + "\n"


def loss_times(options):
    import torch

    torch.set_num_threads(1)
    lines = [
        "Milliseconds of `sgpo_loss`, forward and backward, on the CPU.\n",
        "| batch | float32 | DPO loss |",
    ]
    lines.append("|---:|---:|---:|")
    for size in (1_000, 100_000):
        margins = torch.tensor(draw(size, options.seed), dtype=torch.float32, requires_grad=True)
        dpo = best_of(lambda: (-torch.nn.functional.logsigmoid(margins)).mean().backward())  # noqa: B023
        sgpo = best_of(lambda: sgpo_loss(margins, options.radius).backward())  # noqa: B023
        lines.append(f"| {size:,} | {1e3 * sgpo:.2g} | {1e3 * dpo:.2g} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
