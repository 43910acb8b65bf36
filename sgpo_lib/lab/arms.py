"""The arms of the lab: one game of rounds for each, from a seed policy that all of them share."""

from dataclasses import dataclass, field

import numpy as np

from sgpo_lib.follower import CalibratedRadius, RangeSupport, calibrated_radius, worst_case, worst_flips
from sgpo_lib.lab.pairs import Pairs, draw_pairs, labelled, self_annotated
from sgpo_lib.lab.policy import World
from sgpo_lib.lab.training import Distortion, batches, train


@dataclass(frozen=True)
class Setting:
    """What all arms of a comparison share.

    Attributes
    ----------
    n_labels, n_calibration : int
        Labelled pairs of a run for seed DPO; and apart from them, for the flip probabilities.
    label_noise : float
        Share of all labels turned over, on top of Bradley-Terry's own doubt; the calibration knows it.
    strength : float
        Of Bradley-Terry, per unit of gold utility; a utility difference has variance of about 2.
    n_pairs, n_rounds, batch_size : int
        Self-annotated pairs a round, rounds, pairs a step.
    n_seed_steps : int
        Steps of seed DPO, each on all labels.
    beta, learning_rate : float
    """

    n_labels: int = 64
    n_calibration: int = 48
    label_noise: float = 0.0
    strength: float = 1.0
    n_pairs: int = 96
    n_rounds: int = 3
    batch_size: int = 16
    n_seed_steps: int = 16
    beta: float = 0.5
    learning_rate: float = 0.1


@dataclass(frozen=True)
class Arm:
    """How an arm departs from plain self-annotation.

    Attributes
    ----------
    radius : float
        Of the transport follower, in margin units.
    at_random : bool
        Whether that follower's displacements go to random pairs: a placebo of the same size.
    flips : float or None
        Radius of the flip follower in nats; None is no such follower, 0 calibrated label smoothing.
    replay : bool
        Whether each step also takes a batch of labelled seed pairs.
    on_labels : bool
        Whether it goes on training on the seed's pairs and annotates nothing.
    by_gold : bool
        Whether gold utility orders the round's pairs: the ceiling.
    more_steps : int
        Optimiser steps a round beyond the others': a confound.
    step_size : float
        Factor on the learning rate of the rounds: a confound, because weaker pulls are shorter steps.
    shuffle : int
        Another number is another shuffle of the same pairs: the A/A arm.
    """

    radius: float = 0.0
    at_random: bool = False
    flips: float | None = None
    replay: bool = False
    on_labels: bool = False
    by_gold: bool = False
    more_steps: int = 0
    step_size: float = 1.0
    shuffle: int = 0


ARMS = {
    "self-annotation": Arm(),
    "seed DPO longer": Arm(on_labels=True),
    "transport .01": Arm(radius=0.01),
    "transport .3": Arm(radius=0.3),
    "transport 1": Arm(radius=1.0),
    "flips": Arm(flips=0.01),
    "replay": Arm(replay=True),
    "flips + replay": Arm(flips=0.01, replay=True),
    "gold labels": Arm(by_gold=True),
    "A/A: other shuffle": Arm(shuffle=1),
    "placebo: transport .3 at random": Arm(radius=0.3, at_random=True),
    "confound: one step more": Arm(more_steps=1),
    "confound: steps a quarter as long": Arm(step_size=0.25),
}
"""Name to arm. The last four are controls: what a comparison shows where no adversary is at work."""


@dataclass(frozen=True, eq=False)
class Start:
    """What all arms start from.

    Attributes
    ----------
    utility, theta : ndarray, shape (S, d)
        The runs' gold utilities and seed policies.
    seed_pairs : Pairs, shape (S, n_labels)
    calibration : list of CalibratedRadius, one a run
    seed : int
    """

    utility: np.ndarray
    theta: np.ndarray
    seed_pairs: Pairs
    calibration: list[CalibratedRadius] = field(repr=False)
    seed: int


@dataclass(frozen=True, eq=False)
class End:
    """Where an arm ends.

    Attributes
    ----------
    theta : ndarray, shape (S, d)
    influence : ndarray, shape (S,)
        Of the follower, mean over rounds.
    accuracy : ndarray, shape (S,)
        Share of the trained pairs in the order of gold utility, mean over rounds.
    """

    theta: np.ndarray
    influence: np.ndarray
    accuracy: np.ndarray


def start(world: World, setting: Setting, n_runs: int, seed: int) -> Start:
    """Draw utilities and labels and train the seed policies.

    Labels are nested: fewer labels are the first of more. A utility direction is uniform, scaled so that an
    answer's utility has variance 1.
    """
    features = world.training
    rng = np.random.default_rng([seed, 1])
    utility = rng.normal(size=(n_runs, features.shape[-1]))
    utility /= np.sqrt(np.einsum("sd,de,se->s", utility, _covariance(features), utility))[:, None]
    uniform = np.zeros_like(utility)

    def ask(stream: int, n: int) -> Pairs:
        rng = np.random.default_rng([seed, stream])
        pairs = draw_pairs(rng, uniform, features, n)
        return labelled(rng, pairs, utility, features, setting.strength, setting.label_noise)

    seed_pairs = ask(2, setting.n_labels)
    every = np.broadcast_to(np.arange(setting.n_labels), (setting.n_seed_steps, n_runs, setting.n_labels))
    plain = Distortion.none(seed_pairs.prompt.shape)
    rate = setting.learning_rate
    theta = train(uniform, uniform, [(seed_pairs, plain, every)], features, setting.beta, rate)
    known = setting.beta * ask(3, setting.n_calibration).margins(theta, features)
    calibration = [calibrated_radius([0.0], margins, setting.label_noise) for margins in known]
    return Start(utility, theta, seed_pairs, calibration, seed)


def _covariance(features: np.ndarray) -> np.ndarray:
    rows = features.reshape(-1, features.shape[-1])
    return rows.T @ rows / len(rows)


def play(world: World, setting: Setting, begin: Start, arm: Arm) -> End:
    """Play an arm's rounds: annotate, let the follower answer, train (method of the paper's Algorithm 1).

    Rounds train against the policy before (reference `previous`); `on_labels` goes on against the uniform one.
    All arms draw from the same streams of random numbers, and take the same number of steps unless more are asked
    for.
    """
    theta, features = begin.theta, world.training
    n_runs = len(theta)
    n_steps = setting.n_pairs // setting.batch_size + arm.more_steps
    influences, accuracies = [], []
    for t in range(1, setting.n_rounds + 1):
        streams = [np.random.default_rng([begin.seed, 4, t, k]) for k in range(3)]
        if arm.on_labels:
            pairs, reference = begin.seed_pairs, np.zeros_like(theta)
        else:
            pairs, reference = draw_pairs(streams[0], theta, features, setting.n_pairs), theta
            pairs = self_annotated(pairs, begin.utility if arm.by_gold else theta, features)
        margins = setting.beta * pairs.margins(theta, features)
        distortion = follow(arm, margins, begin.calibration, streams[1])
        shuffle = np.random.default_rng([begin.seed, 5, t, arm.shuffle])
        order = batches(shuffle, n_runs, margins.shape[1], n_steps, setting.batch_size)
        parts = [(pairs, distortion, order)]
        if arm.replay:
            shape = begin.seed_pairs.prompt.shape
            order = batches(streams[2], n_runs, shape[1], n_steps, setting.batch_size)
            parts.append((begin.seed_pairs, Distortion.none(shape), order))
        theta = train(theta, reference, parts, features, setting.beta, arm.step_size * setting.learning_rate)
        influences.append(distortion.influence())
        accuracies.append((pairs.margins(begin.utility, features) > 0).mean(axis=1))
    return End(theta, np.mean(influences, axis=0), np.mean(accuracies, axis=0))


def follow(arm: Arm, margins: np.ndarray, calibration: list, rng: np.random.Generator) -> Distortion:
    """Solve each run's follower on its margins, shape (S, N)."""
    moved, displacement, flips = np.zeros((3, *margins.shape))
    if arm.radius:
        for s, own in enumerate(margins):
            worst = worst_case(own, arm.radius, RangeSupport())
            moved[s], displacement[s] = worst.moved, worst.displacement
    if arm.at_random:
        order = rng.permuted(np.broadcast_to(np.arange(margins.shape[1]), margins.shape), axis=1)
        moved, displacement = (np.take_along_axis(x, order, axis=1) for x in (moved, displacement))
    if arm.flips is not None:
        for s, (own, fit) in enumerate(zip(margins, calibration, strict=True)):
            flips[s] = worst_flips(own, fit.flip_probability(own), arm.flips).flip_probability
    return Distortion(moved, displacement, flips)
