"""A policy with closed forms: log-linear over a finite answer set, many runs at once.

Answer y to prompt x has features phi(x, y) in R^d, centred over the answers of a prompt. The policy with
parameters theta answers with probability proportional to exp(theta . phi(x, y)); theta = 0, uniform, stands for
the SFT model. Its implicit reward against another policy is beta (theta - theta') . phi(x, y) up to a term of the
prompt, which no margin contains. Gold utility is utility . phi(x, y), a direction that each run has for itself.

Shapes: S runs, M prompts, A answers, d features.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class World:
    """The prompts and answers that all runs share.

    Attributes
    ----------
    training, held_out : ndarray, shapes (M, A, d) and (M', A, d)
        Features of the prompts to train on, and of those to evaluate on.
    """

    training: np.ndarray
    held_out: np.ndarray


def make_world(seed: int, n_prompts=128, n_held_out=64, n_answers=16, n_features=24, decay=1.0) -> World:
    """Draw Gaussian features whose k-th direction has variance proportional to k^-decay.

    The variances sum to n_features: with decay 0 every direction has variance 1.
    """
    rng = np.random.default_rng([seed, 0])
    variance = np.arange(1, n_features + 1.0) ** -decay
    features = rng.normal(size=(n_prompts + n_held_out, n_answers, n_features))
    features *= np.sqrt(variance * n_features / variance.sum())
    features -= features.mean(axis=1, keepdims=True)
    return World(features[:n_prompts], features[n_prompts:])


def scores(theta: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Return theta . phi of every answer: shapes (S, d) and (M, A, d) to (S, M, A)."""
    n_prompts, n_answers, n_features = features.shape
    return (theta @ features.reshape(-1, n_features).T).reshape(-1, n_prompts, n_answers)


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Return log softmax over the last axis, shape (S, M, A)."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def divergence(theta: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Return KL(pi_theta || uniform), mean over prompts, in nats, shape (S,)."""
    return _divergence(scores(theta, features))


def expected_utility(theta: np.ndarray, utility: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Return the exact expected gold utility of the policy's answers, mean over prompts, shape (S,).

    Parameters
    ----------
    theta, utility : ndarray, shape (S, d)
    features : ndarray, shape (M, A, d)
    """
    chances = np.exp(log_probabilities(scores(theta, features)))
    return (chances * scores(utility, features)).sum(axis=-1).mean(axis=-1)


def scaled_to(theta: np.ndarray, features: np.ndarray, nats: float) -> np.ndarray:
    """Scale each run's theta until its policy's divergence from uniform is `nats`, shape (S, d).

    What scaling an adapter is to a language model. The divergence rises along every ray, because its derivative
    by the scale s is s times the variance of theta . phi under the policy.

    Raises
    ------
    ValueError
        If no scale reaches the divergence: beyond log A, where a policy is certain of its answers, or at theta 0.
    """
    if not 0 < nats < np.log(features.shape[1]):
        limit = np.log(features.shape[1])
        raise ValueError(f"a policy over {features.shape[1]} answers diverges by 0 to {limit:.2f} nats, not by {nats}")
    logits = scores(theta, features)
    low, high = np.full(len(theta), -12.0), np.full(len(theta), 12.0)
    spread = logits.std(axis=(1, 2))
    if not spread.all():
        raise ValueError(f"{np.sum(spread == 0)} of {len(theta)} policies are uniform; no scale gives them {nats} nats")
    logits /= spread[:, None, None]
    for _ in range(45):
        middle = (low + high) / 2
        is_below = _divergence(np.exp(middle)[:, None, None] * logits) < nats
        low, high = np.where(is_below, middle, low), np.where(is_below, high, middle)
    return theta * (np.exp(low) / spread)[:, None]


def _divergence(logits: np.ndarray) -> np.ndarray:
    logs = log_probabilities(logits)
    return (np.exp(logs) * logs).sum(axis=-1).mean(axis=-1) + np.log(logits.shape[-1])
