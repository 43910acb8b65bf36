"""Log-probabilities of given responses, and embeddings of prompts."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from peft import PeftModel
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from sgpo_lib.leader.packing import pack, packed_log_probs, row_length
from sgpo_lib.policy.model import Policy

# Positions whose logits are held at once when scoring: 200 MB in float32 at a vocabulary of 49K.
_LOGIT_POSITIONS = 1024


@torch.inference_mode()
def sequence_log_probs(
    policy: Policy,
    prompt_ids: Sequence[list[int]],
    response_ids: Sequence[list[int]],
    reference: bool = False,
    temperature: float = 1.0,
    batch_size: int = 32,
    dtype: str | None = None,
) -> np.ndarray:
    """Return log pi(y|x), summed over the response's tokens, in nats, shape (N,).

    Responses to the same prompt share its computation where the model can be packed (`sgpo_lib.leader.packing`).
    In float32 the batch changes a sum by less than 1e-4 nats; in bfloat16 by some tenths.

    Parameters
    ----------
    reference : score under the SFT model instead of the policy.
    temperature : divides the logits; the sampling temperature gives the law that responses are drawn from.
    dtype : of the passes, "float32" or "auto", which is that of the weights; None for `policy.params.scoring_dtype`.

    Raises
    ------
    ValueError : if a sequence is longer than the model's context.
    """
    lengths = [len(p) + len(r) for p, r in zip(prompt_ids, response_ids, strict=True)]
    check_context(policy, max(lengths, default=0), "A prompt and its response")
    result = np.zeros(len(lengths))
    with policy.scoring(reference, dtype) as model, tqdm(total=len(lengths), desc="score", unit="response") as progress:
        rows = _share_prompts(prompt_ids, response_ids, batch_size)
        score = _packed_scores
        if not _can_be_packed(policy, model, rows, prompt_ids, response_ids):
            rows, score = [[i] for row in rows for i in row], _padded_scores
        for batch in _batches(rows, prompt_ids, response_ids, batch_size):
            members = [i for row in batch for i in row]
            prompts = [prompt_ids[row[0]] for row in batch]
            answers = [[response_ids[i] for i in row] for row in batch]
            result[members] = score(policy, model, prompts, answers, temperature).double().cpu().numpy()
            progress.update(len(members))
    return result


def _share_prompts(prompt_ids: Sequence[list[int]], response_ids: Sequence[list[int]], n_most: int) -> list[list[int]]:
    """Group the indices of responses with a token by their prompts, as many as one batch may hold."""
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for i, (prompt, response) in enumerate(zip(prompt_ids, response_ids, strict=True)):
        if len(response):  # nothing has log-probability 0, and no row of its own
            by_prompt.setdefault(tuple(prompt), []).append(i)
    rows = []
    for same in by_prompt.values():
        longest = max(len(response_ids[i]) for i in same)
        size = min(n_most, max(1, _LOGIT_POSITIONS // longest))
        rows += [same[start : start + size] for start in range(0, len(same), size)]
    return rows


def _can_be_packed(
    policy: Policy,
    model: torch.nn.Module,
    rows: list[list[int]],
    prompt_ids: Sequence[list[int]],
    response_ids: Sequence[list[int]],
) -> bool:
    """Return whether there is something to share and the model shares it rightly, tried on the shortest shared rows."""
    if all(len(row) == 1 for row in rows):
        return False
    order = sorted(rows, key=lambda row: (len(row) == 1, _n_tokens(row, prompt_ids, response_ids)))
    answers = [[response_ids[i] for i in row] for row in order]
    return policy.packing_checks[model.dtype](model, [prompt_ids[row[0]] for row in order], answers)


def _n_tokens(row: list[int], prompt_ids: Sequence[list[int]], response_ids: Sequence[list[int]]) -> int:
    return row_length(prompt_ids[row[0]], [response_ids[i] for i in row])


def _batches(
    rows: list[list[int]], prompt_ids: Sequence[list[int]], response_ids: Sequence[list[int]], batch_size: int
) -> Iterator[list[list[int]]]:
    """Give rows of about one length, the longest first, with no more responses and logits than a batch may hold."""
    batch, n, longest = [], 0, 0
    for row in sorted(rows, key=lambda row: -_n_tokens(row, prompt_ids, response_ids)):
        longest_with = max(longest, *(len(response_ids[i]) for i in row))
        n_with = n + len(row)
        if batch and (n_with > batch_size or n_with * longest_with > _LOGIT_POSITIONS):
            yield batch
            batch, n_with, longest_with = [], len(row), max(len(response_ids[i]) for i in row)
        batch.append(row)
        n, longest = n_with, longest_with
    if batch:
        yield batch


def _packed_scores(
    policy: Policy, model: torch.nn.Module, prompts: list, answers: list, temperature: float
) -> torch.Tensor:
    return packed_log_probs(model, pack(prompts, answers).to(model.device), temperature)


def _padded_scores(
    policy: Policy, model: torch.nn.Module, prompts: list, answers: list, temperature: float
) -> torch.Tensor:
    """Score prompts with one answer each, a row for each."""
    responses = [response for (response,) in answers]
    longest = max(map(len, responses))
    inputs = pad([[*p, *r] for p, r in zip(prompts, responses, strict=True)], policy.tokenizer, model.device)
    positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    logits = model(**inputs, position_ids=positions, logits_to_keep=longest + 1, use_cache=False).logits
    logits = logits[:, :-1].float().div_(temperature)
    targets = inputs["input_ids"][:, -longest:]
    log_probs = logits.gather(-1, targets[..., None])[..., 0] - logits.logsumexp(-1)
    lengths = torch.tensor([len(response) for response in responses], device=model.device)
    is_response = torch.arange(longest, 0, -1, device=model.device) <= lengths[:, None]
    return torch.where(is_response, log_probs, 0.0).sum(-1)


def embed(policy: Policy, prompts: Sequence[list[dict]], max_length: int, batch_size: int = 64) -> np.ndarray:
    """Return the SFT model's last-layer state at each prompt's last token, shape (N, hidden size), float32."""
    prompt_ids = policy.encode_prompts(prompts, max_length)
    check_context(policy, max(map(len, prompt_ids), default=0), "A prompt")
    return _mean_states(policy, prompt_ids, [1] * len(prompt_ids), batch_size, "prompt")


def embed_responses(
    policy: Policy, prompt_ids: Sequence[list[int]], response_ids: Sequence[list[int]], batch_size: int = 32
) -> np.ndarray:
    """Return the mean of the SFT model's last-layer states at each response's tokens, shape (N, hidden size), float32.

    The model reads the prompt first; the states at the prompt's own tokens do not count.
    """
    sequences = [[*prompt, *response] for prompt, response in zip(prompt_ids, response_ids, strict=True)]
    check_context(policy, max(map(len, sequences), default=0), "A prompt and its response")
    return _mean_states(policy, sequences, [max(1, len(ids)) for ids in response_ids], batch_size, "response")


@torch.inference_mode()
def _mean_states(
    policy: Policy, sequences: Sequence[list[int]], n_last: Sequence[int], batch_size: int, unit: str
) -> np.ndarray:
    """Return the mean of the SFT model's last-layer states at the last `n_last` tokens of each sequence."""
    order = np.argsort([-len(ids) for ids in sequences], kind="stable")
    states = np.empty((len(order), policy.model.config.get_text_config().hidden_size), dtype=np.float32)
    with policy.reference() as model, tqdm(total=len(order), desc="embed", unit=unit) as progress:
        backbone = (model.get_base_model() if isinstance(model, PeftModel) else model).base_model
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            inputs = pad([sequences[i] for i in batch], policy.tokenizer, model.device)
            positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
            last = backbone(**inputs, position_ids=positions, use_cache=False).last_hidden_state
            for i, of_tokens in zip(batch, last, strict=True):
                states[i] = of_tokens[-n_last[i] :].float().mean(0).cpu().numpy()
            progress.update(len(batch))
    return states


def pad(
    sequences: list[list[int]], tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> dict[str, torch.Tensor]:
    """Return a batch padded on the left, as the model takes it."""
    inputs = tokenizer.pad({"input_ids": sequences}, return_tensors="pt")
    return {key: inputs[key].to(device) for key in ("input_ids", "attention_mask")}


def check_context(policy: Policy, n_tokens: int, what: str) -> None:
    """Refuse sequences that leave the context the model has learnt."""
    context = getattr(policy.model.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and n_tokens > context:
        raise ValueError(
            f"{what} take up to {n_tokens} tokens, but {policy.params.name_or_path!r} reads {context} at most "
            "(max_position_embeddings): lower generation.max_prompt_length or generation.max_new_tokens, or leave out "
            "longer pairs."
        )


def sampled_kl(policy: Policy, responses: pd.DataFrame, temperature: float) -> np.ndarray:
    """One-sample estimates of KL(pi || SFT) in nats per response, shape (N,); single ones can be negative.

    Both laws are taken at the sampling temperature and in the type that answers are drawn in, so the mean estimates
    the divergence of what is deployed. The policy's own log-probability comes from sampling. Rounding in bfloat16
    adds a floor of a fraction of a nat, and noise to each response (`benchmarks/scoring_is_exact_and_fast.py`).
    """
    ids = responses["prompt_ids"], responses["response_ids"]
    reference = sequence_log_probs(policy, *ids, reference=True, temperature=temperature, dtype="auto")
    return responses["sampling_log_prob"].to_numpy() - reference
