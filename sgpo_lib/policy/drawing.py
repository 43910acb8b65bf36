"""One token from each row of logits, by the uniform number given for it."""

import torch

# Vocabulary entries whose sum is searched before they are.
_BLOCK = 256


def draw(
    logits: torch.Tensor, uniforms: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw a token for each row by inverse distribution function.

    One uniform a row in place of one exponential a vocabulary entry, and sums of blocks in place of a running sum.

    Parameters
    ----------
    logits : shape (N, V).
    uniforms : shape (N,), in [0, 1].

    Returns
    -------
    The tokens and their log-probabilities at temperature 1 and at `temperature`, in nats, each of shape (N,).
    """
    n, n_tokens = logits.shape
    scores = logits.new_full((n, -(-n_tokens // _BLOCK) * _BLOCK), -torch.inf, dtype=torch.float32)
    scores[:, :n_tokens] = logits
    scores.sub_(scores.amax(-1, keepdim=True))
    blocks = scores.view(n, -1, _BLOCK)
    plain_total = blocks.exp().sum(-1).sum(-1) if temperature != 1 else None
    weights = (blocks / temperature).exp_()
    sums = weights.sum(-1).cumsum(-1)
    total = sums[:, -1:]
    at = uniforms.float()[:, None] * total
    block = _first_beyond(sums, at)
    before = sums.gather(-1, (block - 1).clamp(min=0)).where(block > 0, 0.0)
    inside = weights[torch.arange(n, device=logits.device), block[:, 0]].cumsum(-1)
    token = block * _BLOCK + _first_beyond(inside, at - before)
    score = scores.gather(-1, token)
    sampling_log_prob = score / temperature - total.log()
    log_prob = sampling_log_prob if plain_total is None else score - plain_total[:, None].log()
    return token[:, 0], log_prob[:, 0], sampling_log_prob[:, 0]


def _first_beyond(cumulative: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Return where each row's sums first exceed `at`, shape (N, 1): an entry that is not 0, also where `at` is off."""
    below_all = torch.nextafter(cumulative[:, -1:], torch.zeros_like(at))
    return torch.searchsorted(cumulative, torch.minimum(at, below_all).clamp_(min=0.0), right=True)
