"""The follower on labels: seconds and duality gap for up to a million pairs, the least time of several.

python benchmarks/flips_are_exact_and_fast.py    # prints Markdown
"""

import argparse
import time

import numpy as np

from sgpo_lib.follower import worst_flips


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, nargs="+", default=[10**4, 10**5, 10**6])
    parser.add_argument("--radius", type=float, nargs="+", default=[0.001, 0.03, 0.3])
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()

    print("| pairs | radius (nats) | seconds | value | duality gap |\n|--:|--:|--:|--:|--:|")
    for n in arguments.pairs:
        rng = np.random.default_rng(0)
        margins, flip_probability = rng.normal(0.5, 1, n), rng.uniform(0, 0.5, n)
        for radius in arguments.radius:
            seconds = []
            for _ in range(arguments.repeats):
                start = time.perf_counter()
                worst = worst_flips(margins, flip_probability, radius)
                seconds.append(time.perf_counter() - start)
            print(f"| {n:,} | {radius:g} | {min(seconds):.4f} | {worst.value:.6f} | {worst.gap:.1e} |")


if __name__ == "__main__":
    main()
