"""What this machine can do at best: products, copies and sorts, so that a table from another machine can be read.

    python benchmarks/limits.py

The other benchmarks call `machine` and `rates` and print each figure also as a share of its limit.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from sgpo_lib.runs import environment

# SmolLM2-135M's widest layer, with the rows of a batch of 64 answers that decodes, and of a scoring or training pass.
_HIDDEN, _WIDE, _DECODED, _PASS = 576, 1536, 64, 1024


def machine() -> str:
    """Return processor, cores, threads and the matrix units that PyTorch finds."""
    found = environment(Path(__file__).parent.parent)
    units = [name for name, has in _units().items() if has]
    return (
        f"{found['processor']}, {found['cores']} cores, {torch.get_num_threads()} threads"
        f" ({', '.join(units) or 'no 16-bit units'}); torch {found['packages'].get('torch')}, commit "
        f"{str(found['git_commit'])[:9]}{' with changes' if found['git_dirty'] else ''}"
    )


def _units() -> dict[str, bool]:
    return {
        "AMX": torch.cpu._is_amx_tile_supported(),
        "AVX-512 bf16": torch.cpu._is_avx512_bf16_supported()
        if hasattr(torch.cpu, "_is_avx512_bf16_supported")
        else False,
        "AVX-512": torch.backends.cpu.get_cpu_capability().startswith("AVX512"),
    }


def least_seconds(work: Callable[[], object], repeats: int = 25) -> float:
    """Return the least wall time of a call, after one that does not count: a limit is what nothing disturbed."""
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def rates() -> dict[str, float]:
    """Measure the machine's rates.

    Returns
    -------
    dict : GFLOP/s of `bfloat16`, `float32` and `decode` (bfloat16, few rows) matrix products at the model's shapes,
    `copy` in GB/s read and written, and `sort` in millions of float64 a second.
    """
    found = {}
    for name, dtype, rows in (
        ("bfloat16", torch.bfloat16, _PASS),
        ("float32", torch.float32, _PASS),
        ("decode", torch.bfloat16, _DECODED),
    ):
        weight = torch.nn.Linear(_HIDDEN, _WIDE, bias=False, dtype=dtype)
        inputs = torch.randn(rows, _HIDDEN, dtype=dtype)
        with torch.inference_mode():
            seconds = least_seconds(lambda weight=weight, inputs=inputs: [weight(inputs) for _ in range(20)])
        found[name] = 20 * 2 * rows * _HIDDEN * _WIDE / seconds / 1e9
    source, target = torch.zeros(2**25), torch.empty(2**25)
    found["copy"] = 2 * source.nbytes / least_seconds(lambda: target.copy_(source)) / 1e9
    numbers = np.random.default_rng(0).normal(size=10**6)
    found["sort"] = numbers.size / least_seconds(lambda: np.sort(numbers)) / 1e6
    return found


def main() -> None:
    """Print the machine and its rates."""
    print(machine())
    units = {"copy": "GB/s read and written", "sort": "million float64 a second"}
    for name, rate in rates().items():
        print(f"{name:10} {rate:10.1f} {units.get(name, 'GFLOP/s')}")


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
