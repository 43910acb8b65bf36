"""Refine drafts in parallel: every token replaced at once by the likeliest one after the tokens before it."""

from collections.abc import Sequence

import torch

from sgpo_lib.policy.model import Policy
from sgpo_lib.policy.scoring import check_context, pad


@torch.inference_mode()
def refine(
    policy: Policy, prompt_ids: Sequence[list[int]], draft_ids: Sequence[list[int]], n_iterations: int, n_tokens: int
) -> list[list[list[int]]]:
    """Rewrite drafts by repeated passes over all their positions: Jacobi iteration of greedy decoding.

    It is how DiffPO (Chen et al., ACL 2025, arXiv 2503.04240) lets an aligned model improve another one's answers.
    For a causal model the fixed point is unique: **the policy's own greedy answer**, from any draft. By induction the
    first k tokens are greedy after k passes, for the first depends on the prompt alone and each other one on those
    before it. So of the draft nothing is left in the end, and `n_tokens` passes always suffice; fewer do where the
    draft had guessed stretches of the greedy answer.

    Parameters
    ----------
    prompt_ids, draft_ids : token ids of N prompts and drafts.
    n_iterations : passes.
    n_tokens : room for an answer. Drafts are cut to it; shorter ones are filled up with the stop token.

    Returns
    -------
    list of n_iterations + 1 lists of N answers, as token ids up to the first stop token; the first holds the drafts.

    Raises
    ------
    ValueError : if a prompt with its answer is longer than the model's context.
    """
    check_context(policy, max(map(len, prompt_ids), default=0) + n_tokens, "A prompt and n_tokens")
    stop = policy.stop_tokens
    answers = torch.full((len(prompt_ids), n_tokens), stop[0], device=policy.device)
    for row, draft in enumerate(draft_ids):
        cut = draft[:n_tokens]
        answers[row, : len(cut)] = torch.tensor(cut, dtype=torch.long)
    inputs = pad(list(prompt_ids), policy.tokenizer, policy.device)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(answers)], 1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    iterations = [_until_stop(answers, stop)]
    for _ in range(n_iterations):
        rows = torch.cat([inputs["input_ids"], answers], 1)
        logits = policy.model(
            input_ids=rows, attention_mask=mask, position_ids=positions, logits_to_keep=n_tokens + 1, use_cache=False
        ).logits
        answers = logits[:, :-1].argmax(-1)
        iterations.append(_until_stop(answers, stop))
    return iterations


def _until_stop(answers: torch.Tensor, stop: list[int]) -> list[list[int]]:
    """Cut each row after its first stop token."""
    cut = []
    for ids in answers.tolist():
        end = next((i for i, token in enumerate(ids) if token in stop), len(ids))
        cut.append(ids[: end + 1])
    return cut
