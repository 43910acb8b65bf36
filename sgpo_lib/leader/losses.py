"""Preference losses as functions of a batch of margins, apart from any trainer.

A margin is beta * [(log pi/pi_ref)(chosen) - (log pi/pi_ref)(rejected)], shape (B,), in reward units. Every
loss returns the scalar that one step of training lowers. IPO and the robust loss are not here: TRL has them.
"""

import math

import torch
import torch.nn.functional as F


def weighted_logistic(
    margins: torch.Tensor,
    weight: torch.Tensor | None = None,
    slope: torch.Tensor | None = None,
    moved: torch.Tensor | None = None,
    displacement: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the mean of `weight * [(1 - moved) * l(x) + moved * l(x - displacement)] + slope * x` over margins x.

    With l(x) = log(1 + e^-x). All arguments have shape (B,) and are what the leader modes come down to; without
    them this is the DPO loss. A slope of alpha is label smoothing, as (1 - alpha) l(x) + alpha l(-x) = l(x) + alpha x.
    """
    losses = -F.logsigmoid(margins)
    if moved is not None:
        losses = (1 - moved) * losses - moved * F.logsigmoid(margins - displacement)
    if weight is not None:
        losses = weight * losses
    if slope is not None:
        losses = losses + slope * margins
    return losses.mean()


def dr_dpo_loss(margins: torch.Tensor, beta: float) -> torch.Tensor:
    """Return -beta' log mean exp(-l / beta') over the batch: Dr. DPO (Wu et al., 2024, arXiv 2407.07880).

    The adversary's opposite: pairs of high loss, taken for label errors, count less. As beta' grows it
    becomes the DPO loss.
    """
    losses = -F.logsigmoid(margins)
    return -beta * (torch.logsumexp(-losses / beta, 0) - math.log(losses.numel()))


def kl_dpo_loss(margins: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the mean of w l with w = min(10, exp((l - mean l) / temperature)), held fixed: KLDPO.

    Xu et al., NeurIPS 2025, arXiv 2502.01930: the worst case in a Kullback-Leibler ball, the mirror image of Dr. DPO:
    pairs of high loss count more. Their values are 0.005 and 0.05. As the temperature grows it becomes the DPO loss.
    """
    losses = -F.logsigmoid(margins)
    weights = ((losses - losses.mean()) / temperature).clamp(max=math.log(10)).exp().detach()
    return (weights * losses).mean()


def density_power_loss(margins: torch.Tensor, gamma: float) -> torch.Tensor:
    """Return the mean of p^(1+g) + (1-p)^(1+g) - (1 + 1/g) p^g + 1/g with p = sigma(margin): Hoelder-DPO.

    The density power divergence (Basu et al., 1998) of the Bradley-Terry model from the labels, both orders of a pair
    summed over, as in Hoelder-DPO (Fujisawa et al., NeurIPS 2025). A pair far on the wrong side pulls less and less,
    so that label errors lose their influence; as gamma falls to 0 it becomes the DPO loss, up to a constant 1.
    """
    right, wrong = F.logsigmoid(margins), F.logsigmoid(-margins)
    integral = ((1 + gamma) * right).exp() + ((1 + gamma) * wrong).exp()
    return (integral - (1 + 1 / gamma) * (gamma * right).exp() + 1 / gamma).mean()
