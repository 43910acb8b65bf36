"""How sure a mean over runs and prompts is, when every run answers the same prompts.

Runs differ by their seed (labelled prompts, training, sampling) and prompts by their form, and neither effect averages
out over the other: the two are crossed. So a mean's variance is that of seeds plus that of forms, less what both count.
This module knows numbers only; what they measure, and which of them were planned, is the business of others.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats


class Estimate(NamedTuple):
    """A mean with what its uncertainty rests on.

    Attributes
    ----------
    mean : float
    standard_error, df : float
        Of the mean, and the degrees of freedom of its t distribution; NaN where nothing tells how seeds, or forms,
        differ.
    between_runs : float
        Standard deviation of one seed's mean, on the same prompts; NaN for a single seed.
    n_seeds, n_clusters : int
    """

    mean: float
    standard_error: float
    df: float
    between_runs: float
    n_seeds: int
    n_clusters: int

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return the two-sided t interval."""
        half = stats.t.ppf((1 + confidence) / 2, self.df) * self.standard_error
        return float(self.mean - half), float(self.mean + half)

    def p_above(self, bound: float) -> float:
        """Return the one-sided p-value against the truth being at most `bound`."""
        if self.standard_error == 0:
            return float(self.mean <= bound)
        return float(stats.t.sf((self.mean - bound) / self.standard_error, self.df))

    def p_below(self, bound: float) -> float:
        """Return the one-sided p-value against the truth being at least `bound`."""
        return self._replace(mean=-self.mean).p_above(-bound)

    def p_value(self) -> float:
        """Return the two-sided p-value against a truth of 0."""
        return min(2 * min(self.p_above(0), self.p_below(0)), 1.0)

    def p_equivalent(self, margin: float) -> float:
        """Return the p-value against a truth outside (-margin, margin), of two one-sided tests (TOST)."""
        return max(self.p_above(-margin), self.p_below(margin))

    def smallest_visible(self, alpha: float = 0.05, power: float = 0.8) -> float:
        """Return the true difference from 0 that a two-sided test at `alpha` finds with this power."""
        return float((stats.t.ppf(1 - alpha / 2, self.df) + stats.t.ppf(power, self.df)) * self.standard_error)


def over_seeds(values: np.ndarray) -> Estimate:
    """Average one number per seed, shape (S,), of prompts that are each seed's own: Student's t over seeds."""
    values = np.asarray(values, float)
    n = values.size
    spread = values.std(ddof=1) if n > 1 else np.nan
    return Estimate(float(values.mean()), float(spread / np.sqrt(n)), n - 1 if n > 1 else np.nan, float(spread), n, 0)


def crossed_mean(cells: np.ndarray, sizes: np.ndarray) -> Estimate:
    """Average over crossed seeds and clusters of prompts, with an interval that contains both.

    Parameters
    ----------
    cells : shape (S, F)
        Mean of seed s over the prompts of cluster f, such as all prompts of one form.
    sizes : shape (F,)
        Number of prompts of each cluster; every seed answers all of them.

    Notes
    -----
    Moments of the two-way random-effects analysis of variance with one cell each: with V_s the variance of the mean
    that differences between seeds imply, V_f that between clusters and V_sf what is left, V = V_s + V_f - V_sf, but
    never less than V_s, so that no interval is narrower than Student's t over seeds alone. Degrees of freedom are
    Satterthwaite's, but at least those of the rarer of the two. Clusters of unequal size count as
    1 / sum of squared shares (Kish).

    In 10,000 simulations each of 5, 10 and 20 seeds and 6 and 26 forms, with no effect and between none and most of the
    variance due to seeds and forms, a test at 5% rejected in 1.8 to 5.3%; where neither matters it is careful, 1.8 to
    4.3% (`benchmarks/intervals_over_seeds_and_forms_cover.py`).
    """
    cells, shares = np.asarray(cells, float), np.asarray(sizes) / np.sum(sizes)
    n_seeds, n_clusters = cells.shape
    of_seed, of_cluster = cells @ shares, cells.mean(axis=0)
    mean = of_seed.mean()
    if n_seeds < 2:
        return Estimate(float(mean), np.nan, np.nan, np.nan, n_seeds, n_clusters)
    effective = 1 / np.sum(shares**2)
    between_runs = of_seed.std(ddof=1)
    if n_clusters < 2:
        return Estimate(float(mean), np.nan, np.nan, float(between_runs), n_seeds, n_clusters)
    inflation = effective / (effective - 1)
    rest = cells - of_seed[:, None] - of_cluster + mean
    v_seed = between_runs**2 / n_seeds
    v_cluster = inflation * np.sum((shares * (of_cluster - mean)) ** 2)
    v_rest = inflation * np.sum((shares * rest) ** 2) / (n_seeds * (n_seeds - 1))
    variance = max(v_seed + v_cluster - v_rest, v_seed)
    parts = v_seed**2 / (n_seeds - 1) + v_cluster**2 / (effective - 1)
    parts += v_rest**2 / ((n_seeds - 1) * (effective - 1))
    least = min(n_seeds, effective) - 1
    df = max(variance**2 / parts, least) if parts > 0 else least
    return Estimate(float(mean), float(np.sqrt(variance)), float(df), float(between_runs), n_seeds, n_clusters)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Adjust p-values, shape (m,), for their number (Holm, 1979): those below alpha hold together at alpha."""
    p_values = np.asarray(p_values, float)
    order = np.argsort(p_values)
    stepped = np.maximum.accumulate(p_values[order] * np.arange(len(order), 0, -1))
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


def alpha_per_look(looks: list[int], alpha: float = 0.05, n_simulated: int = 400_000) -> float:
    """Return the level of each look at which all looks together reject in a share `alpha` where there is no effect.

    Parameters
    ----------
    looks : numbers of seeds, rising, at each of which everything so far is tested by a t test over seeds.

    Notes
    -----
    Pocock's equal levels (1977) for small samples, from simulated t tests, always the same ones. Six million of them
    give .0286 for looks at 10 and 20 seeds and .0195 at 5, 10 and 20.
    """
    if len(looks) == 1:
        return alpha
    rng = np.random.default_rng(0)
    total, squares, least = np.zeros(n_simulated), np.zeros(n_simulated), np.ones(n_simulated)
    for before, n in zip([0, *looks], looks, strict=False):
        seeds = rng.standard_normal((n - before, n_simulated))
        total += seeds.sum(axis=0)
        squares += (seeds**2).sum(axis=0)
        t = total / np.sqrt(n * (squares - total**2 / n) / (n - 1))
        np.minimum(least, 2 * stats.t.sf(np.abs(t), n - 1), out=least)
    return round(float(np.quantile(least, alpha)), 4)
