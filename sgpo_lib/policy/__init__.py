"""The language model: load and save it, sample from it, score sequences under it and under its SFT reference.

This room knows tokens, log-probabilities and adapters. It knows nothing of judges, pairs, followers or training.
"""

from sgpo_lib.policy.checks import check_complete
from sgpo_lib.policy.export import merge, push_to_hub
from sgpo_lib.policy.kl_matching import match_kl, stepwise_kl
from sgpo_lib.policy.loading import choose_device, choose_dtype
from sgpo_lib.policy.model import Policy
from sgpo_lib.policy.sampling import generate
from sgpo_lib.policy.scoring import embed, embed_responses, sampled_kl, sequence_log_probs

__all__ = [
    "Policy",
    "check_complete",
    "choose_device",
    "choose_dtype",
    "embed",
    "embed_responses",
    "generate",
    "match_kl",
    "merge",
    "push_to_hub",
    "sampled_kl",
    "sequence_log_probs",
    "stepwise_kl",
]
