"""How often a test at 5% rejects where there is no effect: crossed seeds and forms of prompts, simulated.

    python benchmarks/intervals_over_seeds_and_forms_cover.py

Prints a row per number of seeds and forms and per size of their effects, and the range; coverage is 1 less that.
"""

import argparse

import numpy as np

from sgpo_lib.evaluation.statistics import crossed_mean

# Standard deviations of seed, form and seed x form, where an answer to one prompt has 1.
EFFECTS = [
    (0, 0, 0),
    (0.3, 0, 0),
    (0, 0.3, 0),
    (0.1, 0.1, 0),
    (0.3, 0.3, 0),
    (0.06, 0.06, 0.06),
    (0.15, 0.06, 0.06),
    (0.06, 0.15, 0.06),
]


def rejected(n_seeds: int, n_forms: int, effects: tuple[float, ...], n: int, alpha: float = 0.05) -> float:
    rng = np.random.default_rng(0)
    sizes = np.full(n_forms, 480 // n_forms)
    of_seed, of_form, of_both = effects
    count = 0
    for _ in range(n):
        cells = of_seed * rng.normal(size=(n_seeds, 1)) + of_form * rng.normal(size=(1, n_forms))
        cells = cells + np.sqrt(of_both**2 + 1 / sizes) * rng.normal(size=(n_seeds, n_forms))
        count += crossed_mean(cells, sizes).p_value() < alpha
    return count / n


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=10_000)
    n = parser.parse_args().simulations
    shares = []
    print("| seeds | forms | sd seed, form, both | rejected |\n|---:|---:|---|---:|")
    for n_seeds in (5, 10, 20):
        for n_forms in (6, 26):
            for effects in EFFECTS:
                shares.append(rejected(n_seeds, n_forms, effects, n))
                print(f"| {n_seeds} | {n_forms} | {', '.join(map(str, effects))} | {shares[-1]:.3f} |", flush=True)
    print(f"\nfrom {min(shares):.1%} to {max(shares):.1%} in {n:,} simulations each")
