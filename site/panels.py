"""The interactive panels of the notebooks, for pages without a kernel."""

from dataclasses import replace

import numpy as np

from sgpo_lib import lab
from sgpo_lib import regret as toy
from sgpo_lib.plots import play
from sgpo_lib.plots.flipbook import flipbook
from sgpo_lib.plots.lab import arms
from sgpo_lib.plots.regret import one_game as one_game_picture


def play_the_adversary() -> str:
    """Notebook 03: the follower on margins that no policy gave; where a run executed it, it has its own."""
    return play.play_the_adversary(np.random.default_rng(0).normal(0.1, 0.8, 96), 0.05).data


def one_game() -> str:
    """Notebook 06: the worst regret of DPO and SGPO in one game, by radius and shift."""
    setting = {"n_pairs": 24, "strength": 20.0, "bound": 6.0, "radius": 0.025}  # as the notebook's
    game = toy.random_game(np.random.default_rng([0, 0]), **setting)
    radii = {f"{radius:.3f}": radius for radius in (0.005, 0.01, 0.025, 0.04, 0.06, 0.1)}
    grid = np.linspace(0, 0.3, 13)
    curves = {radius: toy.simulate_regrets(game._replace(radius=radius), grid) for radius in radii.values()}
    return flipbook(
        lambda radius, shift: one_game_picture(curves[radius], game.lipschitz, radius, shift),
        "Worst regret of DPO and of SGPO against the size of the shift, with the theorems' bounds",
        "one-game",
        **{"radius ε": radii, "shift δ": {f"{shift:.2f}": shift for shift in grid[::2]}},
    )


def explore_the_lab() -> str:
    """Notebook 09: what each arm gains in the closed-form loop, by label noise and number of labels."""
    world, n_runs, nats = lab.make_world(0), 50, 0.5

    def draw(label_noise, n_labels):
        setting = replace(lab.Setting(), label_noise=label_noise, n_labels=n_labels)
        return arms(lab.summary(lab.compare(world, setting, lab.ARMS, n_runs, 0, nats)))

    return flipbook(
        draw,
        f"Gold utility that each arm gains over self-annotation, as trained and at matched KL, {n_runs} runs",
        "explore-the-lab",
        **{
            "label noise": {f"{noise:.0%}": noise for noise in (0.0, 0.1, 0.25, 0.4)},
            "labels": {str(n): n for n in (16, 48, 144, 432)},
        },
    )
