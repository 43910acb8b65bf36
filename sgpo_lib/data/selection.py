"""Which prompts are worth a label, at random or far from each other; and which two of several answers to one."""

import numpy as np


def random_subset(n_total: int, n: int, seed: int) -> np.ndarray:
    """Return `n` of `n_total` positions uniformly at random, shape (n,): the first n of one permutation."""
    if not 0 <= n <= n_total:
        raise ValueError(f"cannot choose {n} of {n_total}")
    return np.random.default_rng(seed).permutation(n_total)[:n]


def farthest_point(embeddings: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Choose points one by one, each the farthest in cosine distance from all chosen before it.

    Parameters
    ----------
    embeddings : ndarray, shape (N, d)
        Any length but zero: only directions count.
    n : int
        How many to choose, at most N.
    seed : int
        Draws the first point; the rest is determined by it.

    Returns
    -------
    ndarray of int, shape (n,)
        Positions in the order of choice, so the first m are the choice for n = m.

    Raises
    ------
    ValueError
        `n` is out of range, or an embedding is zero or not finite.

    Notes
    -----
    O(N n d) time and O(N d) memory: one running minimum of distances, never an N x N matrix. This is the
    farthest-first traversal of Gonzalez (1985), Clustering to minimize the maximum intercluster distance.
    """
    embeddings = np.asarray(embeddings)
    if not 0 <= n <= len(embeddings):
        raise ValueError(f"cannot choose {n} of {len(embeddings)}")
    directions = np.array(embeddings, dtype=np.float32)
    norms = np.linalg.norm(directions, axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(norms[:, 0]) | (norms[:, 0] == 0))
    if len(bad):
        raise ValueError(f"{len(bad)} embeddings are zero or not finite, the first at position {bad[0]}")
    directions /= norms

    # Cosine similarity to the nearest chosen point; while there is none, the drawn one counts as farthest.
    nearest = np.full(len(directions), -2.0, dtype=np.float32)
    nearest[np.random.default_rng(seed).integers(len(directions))] = -np.inf
    chosen = np.empty(n, dtype=int)
    for i in range(n):
        chosen[i] = nearest.argmin()
        np.maximum(nearest, directions @ directions[chosen[i]], out=nearest)
        nearest[chosen[i]] = np.inf
    return chosen


def choose_two(similarity: np.ndarray, diversity: float = 1.0) -> tuple[int, int]:
    """Choose which two of N answers to compare: those that stand for the others and are unlike each other.

    Parameters
    ----------
    similarity : ndarray, shape (N, N)
        Symmetric, such as cosines of embeddings. Its diagonal does not count.
    diversity : float
        What unlikeness is worth against standing for the others; 1 in the paper's experiments.

    Returns
    -------
    tuple of int
        Positions i < j; of pairs that are as good the first.

    Raises
    ------
    ValueError
        There are fewer than two answers.

    Notes
    -----
    AEPO (Jinnai and Honda, Findings of EMNLP 2025, arXiv 2405.13541) with k = 2: the pair that maximises
    (m_i + m_j) / 2 - diversity * s_ij, where m_i is the mean similarity of i to the N - 1 others. All pairs are tried.
    Another zero or scale of the similarities changes nothing.
    """
    similarity = np.array(similarity, dtype=float)
    n = len(similarity)
    if n < 2:
        raise ValueError(f"two answers cannot be chosen from {n}")
    np.fill_diagonal(similarity, 0.0)
    mean = similarity.sum(axis=1) / (n - 1)
    first, second = np.triu_indices(n, 1)
    best = np.argmax((mean[first] + mean[second]) / 2 - diversity * similarity[first, second])
    return int(first[best]), int(second[best])


def two_by_gap(scores: np.ndarray, largest: bool) -> tuple[int, int]:
    """Return positions i < j of the two of N scores that differ most or least; of equal gaps the first."""
    first, second = np.triu_indices(len(scores), 1)
    gaps = np.abs(np.asarray(scores)[first] - np.asarray(scores)[second])
    best = gaps.argmax() if largest else gaps.argmin()
    return int(first[best]), int(second[best])
