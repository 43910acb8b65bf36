"""Radii that follow from data, where the paper fixes one by hand."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from sgpo_lib.follower.inputs import checked_margins
from sgpo_lib.follower.loss import sigmoid


@dataclass(frozen=True)
class CalibratedRadius:
    """A radius implied by label errors, with the model of those errors.

    Attributes
    ----------
    radius : float
        In margin units.
    intercept, slope : float
        c0 and c1 of the flip probability sigma(-(c0 + c1 x)); c1 in inverse margin units.
    n_flips, n_labelled : int
        How often the human order contradicted the implicit reward, and of how many labelled pairs.
    """

    radius: float
    intercept: float
    slope: float
    n_flips: int
    n_labelled: int

    def flip_probability(self, margins) -> np.ndarray:
        """Return the probability that each pair's true order is the other one, shape (N,).

        Where a margin is negative the pair is not in the order that the policy prefers, as earlier rounds' pairs may
        not be: its order is then wrong with the probability that the policy's is right.
        """
        margins = np.asarray(margins, dtype=float)
        return sigmoid(-np.where(margins < 0, -1, 1) * (self.intercept + self.slope * np.abs(margins)))


def calibrated_radius(margins, labelled_margins, label_noise: float = 0.0) -> CalibratedRadius:
    """Return the radius that reaches the true labels, given how often the implicit reward is wrong.

    Turning pair i over moves its margin from x_i to -x_i over a distance 2|x_i|. So the margins under the
    true labels lie within W1 distance (2/N) sum_i p(x_i) |x_i| in expectation, for flip probabilities p. A
    logistic regression on labelled pairs gives p(x) = sigma(-(c0 + c1 x)), with x the margin in the order
    that the implicit reward prefers and the human's contradiction of that order as outcome.

    Where a known share f of the human labels is itself wrong at random, a contradiction is seen with
    probability p_obs = f + (1 - 2f) p. The likelihood is of p_obs, the result p = (p_obs - f) / (1 - 2f). (To
    fit p_obs as a logistic curve and convert that would be biased: p_obs never falls below f.)

    Parameters
    ----------
    margins : array_like, shape (N,)
        This round's margins, of the pairs to train on.
    labelled_margins : array_like, shape (M,)
        Implicit reward of the human's chosen response less that of the rejected one, on labelled pairs the
        policy was not trained on. Negative where human and policy disagree. Make these pairs as the pairs to
        train on are made (two samples, say, not the best and the worst of four): easier pairs have fewer flips.
    label_noise : float, 0 <= f < 1/2
        Share of the human labels known to be wrong.

    Returns
    -------
    CalibratedRadius
        If all labelled pairs agree, or none does, after (flips - f pairs) / (1 - 2f) takes the noise out, no
        curve can be fitted; the flip probability is then the same for every pair, (flips + 1) / (pairs + 2) by
        the rule of succession.

    Raises
    ------
    ValueError
        If either array is empty, NaN or infinite, or the label noise is not in [0, 1/2).
    """
    _check_label_noise(label_noise)
    margins, labelled = checked_margins(margins), checked_margins(labelled_margins)
    flipped = labelled < 0
    n_flips = int(flipped.sum())
    n_wrong = (n_flips - label_noise * labelled.size) / (1 - 2 * label_noise)
    if 0 < n_wrong < labelled.size:
        # The penalty is on the slope, so the slope should not depend on the units of the reward.
        scale = np.abs(labelled).mean()
        intercept, slope = _fit_flips(np.abs(labelled) / scale, flipped, label_noise)
        slope = float(slope / scale)
    else:
        n_wrong = min(max(n_wrong, 0), labelled.size)
        intercept, slope = float(np.log((labelled.size - n_wrong + 1) / (n_wrong + 1))), 0.0
    fit = CalibratedRadius(0.0, intercept, slope, n_flips, labelled.size)
    return replace(fit, radius=2 * float(np.mean(fit.flip_probability(margins) * np.abs(margins))))


def flip_radius(n_labelled: int, label_noise: float = 0.0, confidence: float = 0.95) -> float:
    """Return how far calibrated flip probabilities may be from the true ones: a radius for `worst_flips`.

    By Wilks' theorem 2 M times the divergence per pair between the fitted curve of two coefficients and the true
    one is near chi-squared with two degrees of freedom, whose quantile is -2 log(1 - confidence). So at 95% the
    radius is 3.0 / M. Noise f in the labels leaves (1 - 2f)^2 or less of what a label tells.

    Parameters
    ----------
    n_labelled : int > 0
        M, the labelled pairs of `calibrated_radius`.
    label_noise : float, 0 <= f < 1/2
        Share of their labels known to be wrong.
    confidence : float in (0, 1)

    Returns
    -------
    float, in nats per pair. It covers the curve's uncertainty, and not that the true curve may have another form,
    nor that the pairs to train on may differ from the labelled ones.

    Raises
    ------
    ValueError
        If there are no labelled pairs, or the label noise is not in [0, 1/2).
    """
    if n_labelled < 1:
        raise ValueError(f"flip probabilities are calibrated on labelled pairs, but there are {n_labelled}")
    _check_label_noise(label_noise)
    return -math.log(1 - confidence) / (n_labelled * (1 - 2 * label_noise) ** 2)


def shift_radius(before, after) -> float:
    """Return the W1 distance between the margins of two rounds: how far margins drift in one round.

    Parameters
    ----------
    before, after : array_like, shapes (N,) and (M,)
        The sizes may differ; equal ones give the mean absolute difference of the sorted margins.

    Returns
    -------
    float, in margin units.

    Raises
    ------
    ValueError
        If either array is empty, NaN or infinite.
    """
    from scipy.stats import wasserstein_distance

    return float(wasserstein_distance(checked_margins(before), checked_margins(after)))


def resolve_radius(
    radius: float | Mapping, margins, labelled_margins=None, margins_before=None, label_noise: float = 0.0
) -> float:
    """Return what a params file's `radius` stands for in this round.

    Parameters
    ----------
    radius : a number, {"rule": "calibrated"}, or {"rule": "shift", "first": number}.
    margins, labelled_margins, label_noise : see `calibrated_radius`; the latter two for that rule only.
    margins_before : of the round before, for `shift`; None in the first round, whose radius is `first`.

    Raises
    ------
    ValueError
        If there is no such rule, or `calibrated` has no labelled margins.
    """
    if not isinstance(radius, Mapping):
        return float(radius)
    if radius["rule"] == "calibrated":
        if labelled_margins is None:
            raise ValueError("the calibrated radius needs margins of labelled pairs: set data.n_calibration")
        return calibrated_radius(margins, labelled_margins, label_noise).radius
    if radius["rule"] == "shift":
        return float(radius["first"]) if margins_before is None else shift_radius(margins_before, margins)
    raise ValueError(f"there is no radius rule {radius['rule']!r}; the rules are calibrated, shift")


def _check_label_noise(label_noise: float) -> None:
    if not 0 <= label_noise < 0.5:
        raise ValueError(f"label_noise must be in [0, 0.5), but is {label_noise}; at 0.5 labels say nothing")


def _fit_flips(sizes: np.ndarray, flipped: np.ndarray, label_noise: float) -> tuple[float, float]:
    """Return intercept and slope of largest likelihood, with half the slope's square as penalty."""
    from scipy.optimize import minimize

    def loss_and_gradient(coefficients: np.ndarray) -> tuple[float, np.ndarray]:
        intercept, slope = coefficients
        wrong, right = (sigmoid(sign * (intercept + slope * sizes)) for sign in (-1, 1))
        seen_flipped, seen_kept = (label_noise + (1 - 2 * label_noise) * chance for chance in (wrong, right))
        likelihood = np.maximum(np.where(flipped, seen_flipped, seen_kept), np.finfo(float).tiny)
        pull = (1 - 2 * label_noise) * wrong * right * np.where(flipped, 1, -1) / likelihood
        loss = slope**2 / 2 - np.log(likelihood).sum()
        return loss / sizes.size, np.array([pull.sum(), pull @ sizes + slope]) / sizes.size

    fit = minimize(loss_and_gradient, np.zeros(2), jac=True, method="BFGS", options={"gtol": 1e-8})
    return float(fit.x[0]), float(fit.x[1])
