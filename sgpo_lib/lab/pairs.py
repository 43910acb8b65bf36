"""Pairs of answers of many runs: drawn from a policy, ordered by gold labels or by the policy itself."""

from dataclasses import dataclass

import numpy as np

from sgpo_lib.follower.loss import sigmoid
from sgpo_lib.lab.policy import log_probabilities, scores


@dataclass(frozen=True, eq=False)
class Pairs:
    """N pairs of each of S runs, as indices into the training prompts and their answers.

    Attributes
    ----------
    prompt, chosen, rejected : ndarray of int, shape (S, N)
    """

    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray

    def swapped_where(self, is_wrong: np.ndarray) -> "Pairs":
        """Turn over the pairs where `is_wrong`, shape (S, N)."""
        return Pairs(
            self.prompt,
            np.where(is_wrong, self.rejected, self.chosen),
            np.where(is_wrong, self.chosen, self.rejected),
        )

    def taken(self, index: np.ndarray) -> "Pairs":
        """Return the pairs at an index of shape (S, B) into each run's own."""
        return Pairs(*(np.take_along_axis(x, index, axis=1) for x in (self.prompt, self.chosen, self.rejected)))

    def features(self, features: np.ndarray) -> np.ndarray:
        """Return phi(chosen) - phi(rejected), shape (S, N, d)."""
        return features[self.prompt, self.chosen] - features[self.prompt, self.rejected]

    def margins(self, theta: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Return theta . (phi(chosen) - phi(rejected)), shape (S, N)."""
        return np.einsum("snd,sd->sn", self.features(features), theta)


def draw_pairs(rng: np.random.Generator, theta: np.ndarray, features: np.ndarray, n: int) -> Pairs:
    """Draw n prompts a run, uniformly, and two different answers to each from the run's policy.

    The two largest of log pi + Gumbel noise are two draws without replacement. From the same generator and policy
    a smaller n gives the first of the pairs of a larger one.
    """
    prompts, answers = rng.spawn(2)
    prompt = prompts.integers(len(features), size=(n, len(theta))).T
    log_pi = log_probabilities(scores(theta, features))[np.arange(len(theta))[:, None], prompt]
    noisy = log_pi + answers.gumbel(size=(n, len(theta), features.shape[1])).swapaxes(0, 1)
    two = np.argpartition(noisy, -2, axis=-1)[..., -2:]
    return Pairs(prompt, two[..., 0], two[..., 1])


def labelled(rng: np.random.Generator, pairs: Pairs, utility, features, strength: float, noise: float) -> Pairs:
    """Order pairs by Bradley-Terry on gold utility, then turn over a share `noise` of them at random.

    As in `draw_pairs`, fewer pairs get the labels of the first of more.

    Parameters
    ----------
    utility : ndarray, shape (S, d)
    strength : float
        The better answer wins with probability sigma(strength times the difference of utility).
    """
    prefers = sigmoid(strength * pairs.margins(utility, features))
    doubts, errors = (child.random(prefers.T.shape).T for child in rng.spawn(2))
    return pairs.swapped_where((doubts > prefers) ^ (errors < noise))


def self_annotated(pairs: Pairs, theta: np.ndarray, features: np.ndarray) -> Pairs:
    """Order pairs by the implicit reward of the policy against the uniform one."""
    return pairs.swapped_where(pairs.margins(theta, features) < 0)
