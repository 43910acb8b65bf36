"""What this machine can do at best: matrix products, copies and sorting, measured, to hold other figures against.

python benchmarks/limits.py               # prints Markdown
python benchmarks/limits.py --threads 1

Other benchmarks begin with `machine()` and `rates()`, and print their rows as `share(measured, limit)` of one of these.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from sgpo_lib.runs.provenance import environment

# SmolLM2-135M's layer: 576 wide, 1536 inside; 64 rows are a step of decoding, 1024 a batch of training or scoring.
WIDTH, INNER, ROWS = 576, 1536, (64, 1024)
COPIED = 256 * 2**20  # bytes, more than caches hold
SORTED = 1_000_000
EXTENSIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")


def machine() -> str:
    """One line that names the machine: processor, cores, threads in use, the extensions that decide products."""
    made = environment(Path(__file__).parent)
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    extensions = [name for name in EXTENSIONS if name in flags]
    versions = f"torch {made['packages']['torch']}, numpy {made['packages']['numpy']}"
    return (
        f"{made['processor']}, {made['cores']} cores, {torch.get_num_threads()} threads, "
        f"{' '.join(extensions) or 'extensions unknown'}; {versions}"
    )


def rates(seconds: float = 0.5) -> dict[str, float]:
    """Measure the machine, each rate for about so many seconds; the best repetition counts.

    Returns
    -------
    dict : `"<dtype> product, <rows> rows, GFLOP/s"` for both dtypes and `ROWS`, `"copy, GB/s"` (read and written
        bytes together) and `"sort of 1e6 float64, M/s"` (numbers, by `numpy.sort`).
    """
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        for rows in ROWS:
            # As in the model: another layer's weights each time, which no cache has.
            weights = [torch.randn(WIDTH, INNER).to(dtype) for _ in range(30)]
            states = torch.randn(rows, WIDTH).to(dtype)
            taken = fastest(lambda states=states, weights=weights: [states @ weight for weight in weights], seconds)
            name = f"{str(dtype).removeprefix('torch.')} product, {rows} rows, GFLOP/s"
            found[name] = len(weights) * 2 * rows * WIDTH * INNER / taken / 1e9
    source = torch.ones(COPIED // 4)
    target = torch.empty_like(source)
    found["copy, GB/s"] = 2 * COPIED / fastest(lambda: target.copy_(source), seconds) / 1e9
    numbers = np.random.default_rng(0).normal(size=SORTED)
    found["sort of 1e6 float64, M/s"] = SORTED / fastest(lambda: np.sort(numbers), seconds) / 1e6
    return found


def fastest(work: Callable[[], object], seconds: float) -> float:
    """Seconds of the fastest of the repetitions that fit into so many seconds, after one that warms up."""
    work()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def share(measured: float, limit: float) -> str:
    """Return a rate as a share of its limit, as text for a table."""
    return f"{measured / limit:.0%}" if measured < 10 * limit else f"{measured / limit:.1f} x"


def as_table(found: dict[str, float]) -> str:
    """Lay rates out as Markdown, below the machine that they are of."""
    table = pd.Series(found, name="measured").rename_axis("limit").to_frame()
    return f"{machine()}\n\n{table.to_markdown(floatfmt=',.1f')}\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    torch.set_num_threads(parser.parse_args().threads)
    with torch.inference_mode():
        print(as_table(rates()))
