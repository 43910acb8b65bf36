"""Log-probabilities of given responses, and embeddings of prompts."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from peft import PeftModel
from tqdm.auto import tqdm
from transformers import (
    PreTrainedTokenizerBase,
)

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
) -> np.ndarray:
    """Return log pi(y|x), summed over the response's tokens, in nats, shape (N,).

    Parameters
    ----------
    reference : score under the SFT model instead of the policy.
    temperature : divides the logits; the sampling temperature gives the law that responses are drawn from.

    The passes run in `policy.params.scoring_dtype`. In float32 the batch changes a sum by less than 1e-4 nats; in
    bfloat16 by some tenths.

    Raises
    ------
    ValueError : if a sequence is longer than the model's context.
    """
    lengths = [len(p) + len(r) for p, r in zip(prompt_ids, response_ids, strict=True)]
    check_context(policy, max(lengths, default=0), "A prompt and its response")
    order = np.argsort([-length for length in lengths], kind="stable")
    result = np.zeros(len(order))
    with policy.scoring(reference) as model, tqdm(total=len(order), desc="score", unit="response") as progress:
        start = 0
        while start < len(order):
            longest = max(len(response_ids[i]) for i in order[start : start + batch_size])
            batch = order[start : start + min(batch_size, max(1, _LOGIT_POSITIONS // longest))]
            longest = max(len(response_ids[i]) for i in batch)
            inputs = pad([[*prompt_ids[i], *response_ids[i]] for i in batch], policy.tokenizer, model.device)
            positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
            logits = model(**inputs, position_ids=positions, logits_to_keep=longest + 1, use_cache=False).logits
            logits = logits[:, :-1].float().div_(temperature)
            targets = inputs["input_ids"][:, -longest:]
            log_probs = logits.gather(-1, targets[..., None])[..., 0] - logits.logsumexp(-1)
            lengths = torch.tensor([len(response_ids[i]) for i in batch], device=model.device)
            is_response = torch.arange(longest, 0, -1, device=model.device) <= lengths[:, None]
            result[batch] = torch.where(is_response, log_probs, 0.0).sum(-1).double().cpu().numpy()
            start += len(batch)
            progress.update(len(batch))
    return result


@torch.inference_mode()
def embed(policy: Policy, prompts: Sequence[list[dict]], max_length: int, batch_size: int = 64) -> np.ndarray:
    """Return the SFT model's last-layer state at each prompt's last token, shape (N, hidden size), float32."""
    prompt_ids = policy.encode_prompts(prompts, max_length)
    check_context(policy, max(map(len, prompt_ids), default=0), "A prompt")
    order = np.argsort([-len(ids) for ids in prompt_ids], kind="stable")
    states = np.empty((len(order), policy.model.config.get_text_config().hidden_size), dtype=np.float32)
    with policy.reference() as model, tqdm(total=len(order), desc="embed", unit="prompt") as progress:
        backbone = (model.get_base_model() if isinstance(model, PeftModel) else model).base_model
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            inputs = pad([prompt_ids[i] for i in batch], policy.tokenizer, model.device)
            positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
            last = backbone(**inputs, position_ids=positions, use_cache=False).last_hidden_state[:, -1]
            states[batch] = last.float().cpu().numpy()
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

    Both laws are taken at the sampling temperature, so the mean estimates the divergence of what is
    deployed. The policy's own log-probability comes from sampling where that was as exact as scoring, else from a
    scoring pass like the reference's: rounding in bfloat16 would add a floor of some tenths of a nat.
    """
    ids = responses["prompt_ids"], responses["response_ids"]
    own = responses["sampling_log_prob"].to_numpy()
    if not policy.samples_as_it_scores:
        own = sequence_log_probs(policy, *ids, temperature=temperature)
    return own - sequence_log_probs(policy, *ids, reference=True, temperature=temperature)
