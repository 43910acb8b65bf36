"""Which batches are packed: those of a model whose packed numbers have been seen to be right, and of whole pairs."""

import warnings
from collections.abc import Mapping, Sequence

import torch

from sgpo_lib.leader.packing import PackingError, check_packed, why_not_packed

_CHECKED = 2  # prompts whose answers are also read alone


class PackingCheck:
    """Says of each batch of one model whether it can be packed, and warns once if not.

    The numbers are compared on the first prompts of the first batch (`check_packed`), so later ones cost nothing.
    """

    def __init__(self) -> None:
        """Begin with nothing known."""
        self._numbers_are_right: bool | None = None
        self._has_warned = False

    def __call__(
        self, model: torch.nn.Module, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[Sequence[int]]]
    ) -> bool:
        """Return whether `packed_log_probs` gives the plain log-probabilities of these prompts and answers.

        To be called in the precision that the batch will be computed in.
        """
        longest = max(len(prompt) + max(map(len, own)) for prompt, own in zip(prompts, answers, strict=True))
        reason = why_not_packed(model, longest)
        if reason is None and self._numbers_are_right is None:
            try:
                check_packed(model, prompts[:_CHECKED], answers[:_CHECKED])
            except PackingError as error:
                reason = str(error)
            self._numbers_are_right = reason is None
        if reason is not None and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"Answers do not share their prompt's computation, which takes longer: {reason}", stacklevel=3
            )
        return reason is None and bool(self._numbers_are_right)


def pairs_in(batch: Mapping[str, torch.Tensor]) -> tuple[list[list[int]], list[list[list[int]]]] | None:
    """Return the prompts, and [chosen, rejected] of each, in a padded batch of TRL's; None if it is not of such pairs.

    It is not where a prompt is empty or two sides of a pair have different ones, which truncation from the start and
    a user's own collator may bring about.

    Parameters
    ----------
    batch : `input_ids`, `attention_mask` and `completion_mask`, shape (2 B, L): all chosen, then all rejected.
    """
    columns = (batch[name].tolist() for name in ("input_ids", "attention_mask", "completion_mask"))
    texts = []
    for ids, kept, of_answer in zip(*columns, strict=True):
        tokens = [(token, answers) for token, keep, answers in zip(ids, kept, of_answer, strict=True) if keep]
        n_prompt = sum(not answers for _, answers in tokens)
        if not 0 < n_prompt < len(tokens) or any(answers for _, answers in tokens[:n_prompt]):
            return None
        tokens = [token for token, _ in tokens]
        texts.append((tokens[:n_prompt], tokens[n_prompt:]))
    chosen, rejected = texts[: len(texts) // 2], texts[len(texts) // 2 :]
    if any(one[0] != other[0] for one, other in zip(chosen, rejected, strict=True)):
        return None
    return [prompt for prompt, _ in chosen], [[a, b] for (_, a), (_, b) in zip(chosen, rejected, strict=True)]
