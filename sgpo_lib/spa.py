"""Spread Preference Annotation's answer to wrong self-labels, as a rival: detect them and soften them.

Kim et al., ICLR 2025 (arXiv 2406.04412), with the settings that the SGPO paper compares against.
"""

from typing import Any

import torch

from sgpo_lib.losses import extrapolated_log_probs, weighted_logistic
from sgpo_lib.policy import Policy
from sgpo_lib.weighted_dpo import WeightedDPOTrainer

EXTRAPOLATION = 0.5
WARM_UP = 0.2
NOISY_SHARE = 0.1


def least_confident(confidence: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Say which of the confidences, shape (B,), are among the lowest `NOISY_SHARE` of all seen so far, shape (N,).

    Of N values the lowest round(`NOISY_SHARE` N) are, none of the first few.
    """
    rank = (seen[None, :] <= confidence[:, None]).sum(dim=1)
    return rank <= round(NOISY_SHARE * len(seen))


class NoiseDetectingTrainer(WeightedDPOTrainer):
    """Weighted DPO that smooths the labels of the pairs it is least confident of.

    A pair's confidence is its margin against the SFT model under a policy exaggerated away from that model
    (`EXTRAPOLATION`), so that it is not the policy's own word for itself. After `WARM_UP` of the steps, pairs
    among the least confident `NOISY_SHARE` get label smoothing: of all pairs since the warm-up and not of the
    batch, of which a tenth would often be less than one pair.
    """

    def __init__(self, *args: Any, policy: Policy, label_smoothing: float, **kwargs: Any):
        """Take what `WeightedDPOTrainer` takes, the policy that is trained, and the share of wrong labels."""
        super().__init__(*args, **kwargs)
        self._policy = policy
        self._label_smoothing = label_smoothing
        self._seen = torch.empty(0)

    def preference_loss(self, margins, model, inputs):
        """Return the DPO loss, with smoothed labels for the pairs that look wrong."""
        if not model.training or self.state.global_step < WARM_UP * self.state.max_steps:
            return super().preference_loss(margins, model, inputs)
        confidence = self._confidence(model, inputs)
        self._seen = torch.cat([self._seen.to(confidence), confidence])
        noisy = least_confident(confidence, self._seen)
        mode = "train" if model.training else "eval"
        self._metrics[mode]["noisy"].append(noisy.float().mean().item())
        return weighted_logistic(margins, inputs["loss_weight"], inputs["loss_slope"] + self._label_smoothing * noisy)

    @torch.no_grad()
    def _confidence(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        batch = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "use_cache": False}
        logits = model(**batch).logits
        with self._policy.reference() as reference:
            reference_logits = reference(**batch).logits
        exaggerated = extrapolated_log_probs(logits, reference_logits, labels, EXTRAPOLATION)
        plain = extrapolated_log_probs(reference_logits, reference_logits, labels, 0.0)
        chosen, rejected = (self.beta * (exaggerated - plain)).chunk(2)
        return chosen - rejected
