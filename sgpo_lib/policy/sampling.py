"""Sampling of responses: reproducible, one stream of random numbers for each, log-probabilities kept."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from peft import PeftModel
from tqdm.auto import tqdm
from transformers import (
    GenerationConfig,
    LogitsProcessor,
)

from sgpo_lib.policy.model import Policy
from sgpo_lib.policy.scoring import check_context, pad


@torch.inference_mode()
def generate(
    policy: Policy,
    prompts: Sequence[list[dict]],
    n_samples: int,
    seed: int,
    temperature: float,
    max_new_tokens: int,
    max_prompt_length: int | None = None,
    batch_size: int = 64,
    first_index: int = 0,
) -> pd.DataFrame:
    """Sample responses.

    Each (prompt, sample) has its own stream of random numbers, so in float32 what is drawn does not depend on the
    batch it is drawn in. In 16 bits the rounding of the logits changes with the batch's shape, and a token that it
    tips changes all that follow: of the embedded model's answers in bfloat16 4% to 21% were equal in batches
    of two sizes. Equal calls give equal answers in any type.

    Parameters
    ----------
    prompts : N conversations.
    n_samples : responses per prompt.
    temperature : of the sampling distribution; no top-k or top-p cut.
    max_new_tokens : responses that reach it are cut there and marked as not finished.
    first_index : `prompt_index` of the first prompt, for prompts that are a later part of a longer list: it is
        part of the random stream's name, so parts draw what the whole would.

    Returns
    -------
    DataFrame with N * n_samples rows, ordered by prompt and sample: `prompt_index`, `sample`, `response`,
    `prompt_ids`, `response_ids`, `finished`, and two sums over the response's tokens in nats: `log_prob`
    (log pi(y|x) at temperature 1) and `sampling_log_prob` (at the sampling temperature), both in the type that
    the model generates in.

    Raises
    ------
    ValueError : if a prompt with its longest answer may leave the model's context, and as `Policy.encode_prompts`.
    """
    prompt_ids = dict(enumerate(policy.encode_prompts(prompts, max_prompt_length), first_index))
    longest_first = sorted(prompt_ids, key=lambda index: len(prompt_ids[index]), reverse=True)
    if longest_first:
        check_context(policy, len(prompt_ids[longest_first[0]]) + max_new_tokens, "A prompt and max_new_tokens")
    stop = policy.stop_tokens
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=stop,
        pad_token_id=policy.tokenizer.pad_token_id,
    )
    rows = []
    total, n_at_once = len(prompt_ids) * n_samples, max(1, batch_size // n_samples)
    bar = tqdm(total=total, desc="generate", unit="response", disable=total <= batch_size)  # one batch has no middle
    with _generating_by(policy, config), bar as progress:
        for start in range(0, len(prompt_ids), n_at_once):
            asked = longest_first[start : start + n_at_once]
            batch = [(index, sample) for index in asked for sample in range(n_samples)]
            uniforms = np.stack([np.random.default_rng([seed, *job]).random(max_new_tokens) for job in batch])
            inputs = _read_once(
                policy, pad([prompt_ids[index] for index in asked], policy.tokenizer, policy.device), n_samples
            )
            sampler = _Sampler(torch.from_numpy(uniforms).to(policy.device, torch.float32), temperature)
            output = policy.model.generate(**inputs, logits_processor=[sampler])
            tokens = output[:, inputs["input_ids"].shape[1] :].tolist()
            log_prob, sampling_log_prob = (x.tolist() for x in sampler.log_probs())
            for row, (index, sample) in enumerate(batch):
                length = next((i + 1 for i, token in enumerate(tokens[row]) if token in stop), len(tokens[row]))
                ids = tokens[row][:length]
                finished = ids[-1] in stop
                rows.append(
                    {
                        "prompt_index": index,
                        "sample": sample,
                        "response": policy.tokenizer.decode(
                            ids[:-1] if finished else ids, skip_special_tokens=True
                        ).strip(),
                        "prompt_ids": prompt_ids[index],
                        "response_ids": ids,
                        "finished": finished,
                        "log_prob": sum(log_prob[row][:length]),
                        "sampling_log_prob": sum(sampling_log_prob[row][:length]),
                    }
                )
            progress.update(len(batch))
    return pd.DataFrame(rows).sort_values(["prompt_index", "sample"], ignore_index=True)


def _read_once(policy: Policy, inputs: dict[str, torch.Tensor], n_samples: int) -> dict[str, Any]:
    """Repeat each prompt for its samples, with the cache of a single pass over it where there are several."""
    repeated = {name: tensor.repeat_interleave(n_samples, dim=0) for name, tensor in inputs.items()}
    length = inputs["input_ids"].shape[1]
    if n_samples == 1 or length < 2:
        return repeated
    mask = inputs["attention_mask"][:, :-1]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = policy.model(
        input_ids=inputs["input_ids"][:, :-1],
        attention_mask=mask,
        position_ids=positions,
        use_cache=True,
        logits_to_keep=1,
    ).past_key_values
    cache.batch_repeat_interleave(n_samples)
    return repeated | {"past_key_values": cache}


@contextlib.contextmanager
def _generating_by(policy: Policy, config: GenerationConfig) -> Iterator[None]:
    """Set aside the model's own defaults, whose penalties and suppressed tokens would bend the law sampled from."""
    model = policy.model.get_base_model() if isinstance(policy.model, PeftModel) else policy.model
    own, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = own


class _Sampler(LogitsProcessor):
    """Draws the token itself, by inverse distribution function, and leaves only that one to greedy decoding.

    One uniform a token in place of one exponential a vocabulary entry; the log-probabilities, which the
    draw has computed anyway, are kept instead of being scored again.
    """

    def __init__(self, uniforms: torch.Tensor, temperature: float):
        self.uniforms = uniforms
        self.temperature = temperature
        self.kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.float()
        log_normalizer = scores.logsumexp(-1, keepdim=True)
        scores.div_(self.temperature)
        sampling_log_normalizer = scores.logsumexp(-1, keepdim=True)
        cumulative = scores.sub(sampling_log_normalizer).exp_().cumsum_(-1)
        drawn = self.uniforms[:, len(self.kept), None] * cumulative[:, -1:]
        token = torch.searchsorted(cumulative, drawn).clamp_(max=scores.shape[-1] - 1)
        chosen = scores.gather(-1, token)
        self.kept.append((chosen * self.temperature - log_normalizer, chosen - sampling_log_normalizer))
        return scores.fill_(-torch.inf).scatter_(-1, token, 0.0)

    def log_probs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Per-token log-probabilities, each (batch, tokens), at temperature 1 and at the sampling temperature."""
        plain, tempered = zip(*self.kept, strict=True)
        return torch.cat(plain, -1), torch.cat(tempered, -1)
