"""At equal KL to the SFT model: by how much to scale a policy's adapter so that it is as far from it as asked.

Policies that end at different KL are not compared fairly by their rewards: who goes further gains more, until it
over-optimises. On the path from the SFT model (scale 0) to the policy (scale 1) the KL grows with the scale, for small
ones as its square, so that its logarithm is nearly a line in the scale's and a secant finds any KL in a few steps.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from sgpo_lib.params.schema import GenerationParams
from sgpo_lib.policy.model import Policy
from sgpo_lib.policy.sampling import generate
from sgpo_lib.policy.scoring import pad

N_PROMPTS = 96
"""Answers that a KL is estimated with, one a prompt. Of the embedded model's 4 nats the standard error is then 5%."""

# Positions whose two sets of logits are held at once: 100 MB each in float32 at a vocabulary of 49K.
_LOGIT_POSITIONS = 512


@torch.inference_mode()
def stepwise_kl(
    policy: Policy, prompt_ids: Sequence[list[int]], response_ids: Sequence[list[int]], temperature: float
) -> np.ndarray:
    """Sum the KL of the next token's law from the SFT model's along given responses, in nats, shape (N,).

    Along the policy's own samples its mean is KL(pi || SFT), as that of the log-ratio is, with the luck of each token
    averaged out (Rao-Blackwell; Amini et al., 2025, arXiv 2504.10637), so that it is never negative and varies less.
    Both laws are in the type that answers are sampled in, which is what is deployed.
    """
    result = np.zeros(len(response_ids))
    order = sorted(range(len(response_ids)), key=lambda i: -len(response_ids[i]))
    while order:
        longest = max(1, len(response_ids[order[0]]))
        size = max(1, _LOGIT_POSITIONS // longest)
        batch, order = order[:size], order[size:]
        inputs = pad([[*prompt_ids[i], *response_ids[i]] for i in batch], policy.tokenizer, policy.device)
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        ours = _log_probs(policy.model, inputs, longest, temperature)
        with policy.reference() as sft:
            theirs = _log_probs(sft, inputs, longest, temperature)
        by_token = (ours.exp() * ours.sub(theirs)).sum(-1)
        lengths = torch.tensor([len(response_ids[i]) for i in batch], device=by_token.device)
        is_response = torch.arange(longest, 0, -1, device=by_token.device) <= lengths[:, None]
        result[batch] = torch.where(is_response, by_token, 0.0).sum(-1).double().cpu().numpy()
    return result


def _log_probs(
    model: torch.nn.Module, inputs: dict[str, torch.Tensor], n_last: int, temperature: float
) -> torch.Tensor:
    """Return the laws that the last tokens of each row are drawn from, shape (B, n_last, V)."""
    logits = model(**inputs, logits_to_keep=n_last + 1, use_cache=False).logits[:, :-1]
    return logits.float().div_(temperature).log_softmax(-1)


def estimate_kl(policy: Policy, prompts: Sequence[list[dict]], generation: GenerationParams, seed: int) -> np.ndarray:
    """Estimate KL(pi || SFT) by the mean of `stepwise_kl` over one answer each to the last `N_PROMPTS` prompts.

    Returns
    -------
    ndarray, shape (N,), N at most `N_PROMPTS` : of each answer, in nats, at the temperature of `generation`.
    """
    options = generation.model_dump(exclude={"engine"})
    responses = generate(policy, prompts[-N_PROMPTS:], 1, seed, **options)
    return stepwise_kl(policy, responses["prompt_ids"], responses["response_ids"], generation.temperature)


class Match(NamedTuple):
    """By how much a policy's adapter is scaled to be at a KL.

    Attributes
    ----------
    target : KL to the SFT model that was asked for, in nats.
    alpha : the scale; None where no scale was found.
    kl, standard_error : estimate at that scale, or the nearest to the target there was; over answers, in nats.
    why_not : where no scale was found, the reason.
    """

    target: float
    alpha: float | None
    kl: float
    standard_error: float
    why_not: str = ""


def match_kl(
    policy: Policy, prompts: Sequence[list[dict]], targets: Sequence[float], generation: GenerationParams, seed: int
) -> list[Match]:
    """Find for each KL how much to scale a policy's adapter by.

    Parameters
    ----------
    prompts : conversations that the policies to be compared are not evaluated on, of which the last `N_PROMPTS` are
        answered for every estimate. With the same ones, and the same `seed`, for all policies, what the estimates are
        off by is much the same for all.
    targets : in nats, at the temperature of `generation`, each once.

    Returns
    -------
    A match per target; tolerance, number of estimates and largest scale are those of `find_scales`.
    """

    def kl_at(alpha: float) -> np.ndarray:
        with policy.scaled(alpha):
            return estimate_kl(policy, prompts, generation, seed)

    return find_scales(kl_at, targets)


def find_scales(
    kl_at: Callable[[float], np.ndarray],
    targets: Sequence[float],
    tolerance: float = 0.05,
    n_most: int = 6,
    largest: float = 1.5,
) -> list[Match]:
    """Find the scales at which a KL that grows with the scale is as asked.

    Parameters
    ----------
    kl_at : gives estimates of the KL at a scale, one an answer, shape (N,), in nats.
    tolerance : by what share of the target the mean estimate may miss it.
    n_most : estimates for one target; those made for another are used too.
    largest : scale to try; further out the adapter is no longer near anything that was trained.
    """
    known = {1.0: kl_at(1.0)}

    def nearest(target: float) -> float:
        return min(known, key=lambda alpha: abs(known[alpha].mean() - target))

    matches = []
    for target in targets:
        for _ in range(n_most):
            if abs(known[nearest(target)].mean() / target - 1) <= tolerance:
                break
            alpha = min(_secant({alpha: kl.mean() for alpha, kl in known.items()}, target), largest)
            if alpha in known:
                break
            known[alpha] = kl_at(alpha)
        alpha = nearest(target)
        kl = known[alpha]
        why_not = ""
        if abs(kl.mean() / target - 1) > tolerance:
            reached = f"{kl.mean():.1f} nats at {alpha:.2f} times the adapter"
            why_not = f"{reached}, as far as was tried" if largest in known else f"no nearer than {reached}"
        scale = None if why_not else alpha
        matches.append(Match(target, scale, float(kl.mean()), float(kl.std(ddof=1) / np.sqrt(len(kl))), why_not))
    return matches


def _secant(known: dict[float, float], target: float) -> float:
    """Guess the scale of a KL from those known, by the line through the two nearest, or of slope 2, in logarithms."""
    x = np.log(sorted(known))
    y = np.log(np.maximum([known[alpha] for alpha in sorted(known)], 1e-9))
    above = np.searchsorted(np.maximum.accumulate(y), np.log(target))
    if 0 < above < len(x):
        return float(np.exp(np.interp(np.log(target), y[above - 1 : above + 1], x[above - 1 : above + 1])))
    end, other = (0, 1) if above == 0 else (-1, -2)
    slope = 2 if len(x) == 1 else np.clip((y[end] - y[other]) / (x[end] - x[other]), 1, 4)
    return float(np.exp(x[end] + (np.log(target) - y[end]) / slope))
