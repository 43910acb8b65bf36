"""Sampling of responses: reproducible, one stream of random numbers for each, log-probabilities kept."""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from peft import PeftModel
from tqdm.auto import tqdm
from transformers import GenerationConfig, LogitsProcessor

from sgpo_lib.policy import lora
from sgpo_lib.policy.decoding import Answer, DecodingError, decode, why_not_decoded
from sgpo_lib.policy.drawing import draw
from sgpo_lib.policy.model import Policy
from sgpo_lib.policy.scoring import check_context


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
    doing: str = "generate",
) -> pd.DataFrame:
    """Sample responses.

    Each (prompt, sample) has its own stream of random numbers, so in float32 what is drawn does not depend on the
    batch it is drawn in. In 16 bits the rounding of the logits changes with the batch's shape, and a token that it
    tips changes all that follow: of the embedded model's answers in bfloat16 4% to 21% were equal in batches
    of two sizes. Equal calls give equal answers in any type.

    An adapter is applied in the type of its base (`sgpo_lib.policy.lora`). Models that `sgpo_lib.policy.decoding`
    cannot serve, such as recurrent ones, are sampled by `model.generate`, with a warning.

    Parameters
    ----------
    prompts : N conversations.
    n_samples : responses per prompt.
    temperature : of the sampling distribution; no top-k or top-p cut.
    max_new_tokens : responses that reach it are cut there and marked as not finished.
    batch_size : responses drawn at once; as some end, others are begun.
    first_index : `prompt_index` of the first prompt, for prompts that are a later part of a longer list: it is
        part of the random stream's name, so parts draw what the whole would.
    doing : what the progress bar says.

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
    prompt_ids = policy.encode_prompts(prompts, max_prompt_length)
    longest = max(map(len, prompt_ids), default=0) + max_new_tokens
    check_context(policy, longest, "A prompt and max_new_tokens")
    jobs = [(index, sample) for index in range(len(prompt_ids)) for sample in range(n_samples)]
    jobs.sort(key=lambda job: -len(prompt_ids[job[0]]))

    def begin() -> list[Answer]:
        streams = [np.random.default_rng([seed, first_index + index, sample]) for index, sample in jobs]
        return [Answer(prompt_ids[index], stream) for (index, _), stream in zip(jobs, streams, strict=True)]

    stop = policy.stop_tokens
    answers = _answers(policy.model, begin, longest, doing, temperature, stop, max_new_tokens, batch_size)
    rows = []
    for (index, sample), answer in sorted(zip(jobs, answers, strict=True), key=lambda pair: pair[0]):
        finished = answer.ids[-1] in stop
        text = policy.tokenizer.decode(answer.ids[:-1] if finished else answer.ids, skip_special_tokens=True)
        rows.append(
            {
                "prompt_index": first_index + index,
                "sample": sample,
                "response": text.strip(),
                "prompt_ids": answer.prompt,
                "response_ids": answer.ids,
                "finished": finished,
                "log_prob": answer.log_prob,
                "sampling_log_prob": answer.sampling_log_prob,
            }
        )
    return pd.DataFrame(rows)


def _answers(
    model: torch.nn.Module, begin: Callable[[], list[Answer]], longest: int, doing: str, *how: float | list[int]
) -> list[Answer]:
    """Draw all answers that `begin` begins, by `decode` where its numbers are the model's, else by `model.generate`."""
    reason = why_not_decoded(model, longest)
    with lora.in_compute_dtype(model):
        if reason is None:
            try:
                return _all(decode, model, begin(), doing, *how)
            except DecodingError as error:
                reason = str(error)
        warnings.warn(f"Answers are sampled by model.generate, which takes longer: {reason}.", stacklevel=3)
        return _all(_by_generate, model, begin(), doing, *how)


def _all(
    draw_all: Callable[..., Iterator[Answer]], model: torch.nn.Module, answers: list[Answer], doing: str, *how
) -> list[Answer]:
    with tqdm(total=len(answers), desc=doing, unit="response") as progress:
        for _ in draw_all(model, answers, *how):
            progress.update()
    return answers


@torch.inference_mode()
def _by_generate(
    model: torch.nn.Module,
    answers: list[Answer],
    temperature: float,
    stop: list[int],
    max_new_tokens: int,
    n_at_once: int,
) -> Iterator[Answer]:
    """Do what `decode` does, for any model, a batch after the other."""
    config = GenerationConfig(do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=stop, pad_token_id=stop[0])
    with _generating_by(model, config):
        for start in range(0, len(answers), n_at_once):
            batch = answers[start : start + n_at_once]
            length = max(len(answer.prompt) for answer in batch)
            ids = torch.tensor([[stop[0]] * (length - len(answer.prompt)) + answer.prompt for answer in batch])
            n_tokens = torch.tensor([len(answer.prompt) for answer in batch])
            mask = (torch.arange(length) >= length - n_tokens[:, None]).long()
            sampler = _Sampler(batch, temperature, stop)
            model.generate(
                input_ids=ids.to(model.device), attention_mask=mask.to(model.device), logits_processor=[sampler]
            )
            yield from batch


@contextlib.contextmanager
def _generating_by(model: torch.nn.Module, config: GenerationConfig) -> Iterator[None]:
    """Set aside the model's own defaults, whose penalties and suppressed tokens would bend the law sampled from."""
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    own, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = own


class _Sampler(LogitsProcessor):
    """Draws the token itself, adds it to its answer, and leaves only that one to greedy decoding."""

    def __init__(self, answers: list[Answer], temperature: float, stop: list[int]):
        self.answers, self.temperature, self.stop = answers, temperature, stop

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        uniforms = torch.tensor([answer.stream.random() for answer in self.answers], device=scores.device)
        tokens, *log_probs = draw(scores, uniforms, self.temperature)
        for answer, *drawn in zip(self.answers, tokens.tolist(), *(x.tolist() for x in log_probs), strict=True):
            if not (answer.ids and answer.ids[-1] in self.stop):
                answer.add(*drawn)
        return torch.full_like(scores, -torch.inf).scatter_(-1, tokens[:, None], 0.0)
