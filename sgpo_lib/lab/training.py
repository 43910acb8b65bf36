"""The leader: minibatch gradient descent on the DPO loss as an adversary distorts it, all runs at once."""

from dataclasses import dataclass

import numpy as np

from sgpo_lib.follower.loss import sigmoid
from sgpo_lib.lab.pairs import Pairs


@dataclass(frozen=True, eq=False)
class Distortion:
    """What a follower does to the loss of each pair: (1 - t) l(x) + t l(x - d) + q x.

    Attributes
    ----------
    moved, displacement : ndarray, shape (S, N)
        t and d of leader mode `transport`.
    flip_probability : ndarray, shape (S, N)
        q of leader mode `flips`.
    """

    moved: np.ndarray
    displacement: np.ndarray
    flip_probability: np.ndarray

    @classmethod
    def none(cls, shape: tuple[int, int]) -> "Distortion":
        """Return the distortion that leaves DPO's loss as it is."""
        return cls(np.zeros(shape), np.zeros(shape), np.zeros(shape))

    def taken(self, index: np.ndarray) -> "Distortion":
        """Return the distortion of the pairs at an index of shape (S, B) into each run's own."""
        columns = (self.moved, self.displacement, self.flip_probability)
        return Distortion(*(np.take_along_axis(x, index, axis=1) for x in columns))

    def pull(self, margins: np.ndarray) -> np.ndarray:
        """Return minus the loss's slope in the margin, shape (S, N)."""
        plain = (1 - self.moved) * sigmoid(-margins)
        return plain + self.moved * sigmoid(self.displacement - margins) - self.flip_probability

    def influence(self) -> np.ndarray:
        """Return sum |pull - DPO's| / sum DPO's where all margins are 0, shape (S,); see `follower.influence`."""
        start = np.zeros(self.moved.shape)
        return np.abs(self.pull(start) - 0.5).mean(axis=1) / 0.5


def batches(rng: np.random.Generator, n_runs: int, n_pairs: int, n_steps: int, batch_size: int) -> np.ndarray:
    """Return each step's pairs, shape (n_steps, S, B): shuffled epochs end to end, cut after n_steps."""
    n_epochs = -(-n_steps * batch_size // n_pairs)
    epoch = np.broadcast_to(np.arange(n_pairs), (n_runs, n_pairs))
    order = np.concatenate([rng.permuted(epoch, axis=1) for _ in range(n_epochs)], axis=1)
    return order[:, : n_steps * batch_size].reshape(n_runs, n_steps, batch_size).swapaxes(0, 1)


def gradient(
    theta: np.ndarray, reference: np.ndarray, pairs: Pairs, distortion: Distortion, features: np.ndarray, beta: float
) -> np.ndarray:
    """Return the gradient of the mean loss of each run's pairs, shape (S, d).

    Parameters
    ----------
    theta, reference : ndarray, shape (S, d)
        A margin is beta (theta - reference) . (phi(chosen) - phi(rejected)).
    features : ndarray, shape (M, A, d)
    """
    difference = pairs.features(features)
    margins = beta * np.einsum("snd,sd->sn", difference, theta - reference)
    return -beta * np.einsum("snd,sn->sd", difference, distortion.pull(margins)) / margins.shape[1]


def train(
    theta: np.ndarray,
    reference: np.ndarray,
    parts: list[tuple[Pairs, Distortion, np.ndarray]],
    features: np.ndarray,
    beta: float,
    learning_rate: float,
) -> np.ndarray:
    """Take one gradient step a batch and return the new theta, shape (S, d).

    Parameters
    ----------
    parts : list of (pairs, distortion, batches)
        Each step averages the gradients of one batch from every part: replay adds a part, not steps.
    """
    for step in zip(*(order for _, _, order in parts), strict=True):
        gradients = [
            gradient(theta, reference, pairs.taken(index), distortion.taken(index), features, beta)
            for (pairs, distortion, _), index in zip(parts, step, strict=True)
        ]
        theta = theta - learning_rate * sum(gradients) / len(gradients)
    return theta
