"""Answers token by token: when some have ended, the next prompts take their places in the batch.

Knows token ids and causal language models; knows nothing of conversations, policies or tables.

All places write their next key to one slot of a ring of fixed length, and a mask says which slots are a place's own.
Keys hold the position they were rotated by, so attention does not care where they lie:

    slot       0  1  2  3  4  5  6  7
    place 0    p0 p1 p2 a0 a1 a2 .  .      prompt p, answer a
    place 1    -  -  -  -  q0 q1 b0 .      prompt q came when the place fell free, before slot 5
"""

import inspect
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from sgpo_lib.leader.packing import why_not_packed
from sgpo_lib.policy.drawing import draw

# Free places, as a share of all, that wait for company before prompts are read, or before the batch shrinks: each has
# a price of its own, whatever their number.
_FREE_BEFORE_READING, _FREE_BEFORE_SHRINKING = 1 / 8, 1 / 4

# What the log-probability of an answer of n tokens may be off by, over sqrt(n), in nats.
_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.3}


class DecodingError(RuntimeError):
    """The log-probabilities of an answer drawn by `decode` are not those that the model gives it."""


@dataclass
class Answer:
    """What is drawn for one prompt.

    Attributes
    ----------
    prompt : token ids, one at least.
    stream : random numbers, one a token.
    ids : tokens drawn so far.
    log_prob, sampling_log_prob : their log-probabilities at temperature 1 and at the sampling temperature, in nats.
    """

    prompt: list[int]
    stream: np.random.Generator
    ids: list[int] = field(default_factory=list)
    log_prob: float = 0.0
    sampling_log_prob: float = 0.0

    def add(self, token: int, log_prob: float, sampling_log_prob: float) -> None:
        """Take on a token that was drawn."""
        self.ids.append(token)
        self.log_prob += log_prob
        self.sampling_log_prob += sampling_log_prob


def why_not_decoded(model: torch.nn.Module, longest: int) -> str | None:
    """Return why `decode` cannot be used with a model, or None if nothing is known against it.

    Parameters
    ----------
    longest : tokens of the longest prompt with its longest answer.
    """
    reason = why_not_packed(model, longest)
    if reason is not None:
        return reason
    causal_lm = model.get_base_model() if hasattr(model, "get_base_model") else model
    if "past_key_values" not in inspect.signature(type(causal_lm).forward).parameters:
        return f"{type(causal_lm).__name__} takes no past_key_values"
    kinds = {type(layer) for layer in DynamicCache(config=causal_lm.config).layers}
    others = kinds - {DynamicLayer, DynamicSlidingWindowLayer}
    return f"its cache holds more than keys and values ({', '.join(k.__name__ for k in others)})" if others else None


@torch.inference_mode()
def decode(
    model: torch.nn.Module,
    answers: Sequence[Answer],
    temperature: float,
    stop: Sequence[int],
    max_new_tokens: int,
    n_at_once: int,
) -> Iterator[Answer]:
    """Draw answers, begun in the order given, and give each when it has ended.

    An answer ends with its first token of `stop`, or after `max_new_tokens`. What a model makes of mask, positions and
    cache shows only in its numbers: the first answer's are compared with those of a plain pass.

    Raises
    ------
    DecodingError : if they differ by more than rounding explains.
    """
    waiting = deque(answers)
    longest = max((len(answer.prompt) for answer in answers), default=0)
    batch = _Batch(model, min(n_at_once, len(answers)), longest + max_new_tokens)
    is_checked = False
    while waiting or batch.n_free < len(batch.places):
        if waiting and (batch.n_free >= _FREE_BEFORE_READING * len(batch.places)):
            batch.enter([waiting.popleft() for _ in range(min(batch.n_free, len(waiting)))])
        elif not waiting and batch.n_free > _FREE_BEFORE_SHRINKING * len(batch.places):
            batch.shrink()
        uniforms = [0.5 if answer is None else answer.stream.random() for answer in batch.places]
        drawn = batch.step(torch.tensor(uniforms), temperature)
        for place, (answer, *token) in enumerate(zip(batch.places, *drawn, strict=True)):
            if answer is None:
                continue
            answer.add(*token)
            if answer.ids[-1] in stop or len(answer.ids) == max_new_tokens:
                batch.places[place] = None
                if not is_checked:
                    _check(model, answer)
                    is_checked = True
                yield answer


def _check(model: torch.nn.Module, answer: Answer) -> None:
    ids = torch.tensor([[*answer.prompt, *answer.ids]], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0, len(answer.prompt) - 1 : -1].float()
    plain = logits.log_softmax(-1).gather(-1, ids[0, len(answer.prompt) :, None]).sum().item()
    error = abs(answer.log_prob - plain) / len(answer.ids) ** 0.5
    tolerance = _TOLERANCE[model.dtype]
    if not error <= tolerance:  # nor does NaN pass
        raise DecodingError(
            f"an answer of {len(answer.ids)} tokens has log-probability {answer.log_prob:.6g} as drawn and {plain:.6g} "
            f"in a plain pass, which is {error:.3g} nats per square root of tokens apart (tolerance {tolerance:g})"
        )


class _Ring(Cache):
    """Keys and values, for each layer of shape (places, heads, slots, width)."""

    def __init__(self, like: DynamicCache, n_places: int, length: int):
        super().__init__(layers=[])
        self.slot = 0
        self.states = [
            tuple(x.new_zeros(n_places, x.shape[1], length, x.shape[3]) for x in (layer.keys, layer.values))
            for layer in like.layers
        ]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        for kept, new in zip(self.states[layer_idx], (key_states, value_states), strict=True):
            kept[:, :, self.slot : self.slot + 1] = new
        return self.states[layer_idx]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.slot

    def copy_in(self, read: DynamicCache, source: torch.Tensor, places: torch.Tensor, slots: torch.Tensor) -> None:
        for layer, own in zip(read.layers, self.states, strict=True):
            for kept, new in zip(own, (layer.keys, layer.values), strict=True):
                kept[places[:, None], :, slots] = new[source].transpose(1, 2)

    def keep(self, places: torch.Tensor) -> None:
        self.states = [tuple(kept[places] for kept in own) for own in self.states]


class _Batch:
    """Answers in their places, each with the token that the model reads next."""

    def __init__(self, model: torch.nn.Module, n_places: int, length: int):
        self.model, self.length, self.n_steps = model, length, 0
        self.places: list[Answer | None] = [None] * n_places
        self.token, self.position = torch.zeros(2, n_places, dtype=torch.long, device=model.device)
        self.ring = self.mask = None

    @property
    def n_free(self) -> int:
        return self.places.count(None)

    def enter(self, answers: list[Answer]) -> None:
        """Read the answers' prompts, but for the last token, into the slots before the next, in free places."""
        prompts = list(dict.fromkeys(tuple(answer.prompt) for answer in answers))
        read, is_token = self._read(prompts)
        if self.ring is None:
            self.ring = _Ring(read, len(self.places), self.length)
            self.hidden = torch.finfo(read.layers[0].keys.dtype).min
            self.mask = read.layers[0].keys.new_full((len(self.places), 1, 1, self.length), self.hidden)
        device = self.mask.device
        free = [place for place, answer in enumerate(self.places) if answer is None][: len(answers)]
        places = torch.tensor(free, device=device)
        source = torch.tensor([prompts.index(tuple(answer.prompt)) for answer in answers], device=device)
        slots = (torch.arange(-is_token.shape[1], 0, device=device) + self.n_steps) % self.length
        self.ring.copy_in(read, source, places, slots)
        self.mask[places] = self.hidden
        self.mask[places[:, None], 0, 0, slots] = torch.where(is_token[source], 0.0, self.hidden).to(self.mask.dtype)
        self.token[places] = torch.tensor([answer.prompt[-1] for answer in answers], device=device)
        self.position[places] = torch.tensor([len(answer.prompt) - 1 for answer in answers], device=device)
        for place, answer in zip(free, answers, strict=True):
            self.places[place] = answer

    def _read(self, prompts: list[tuple[int, ...]]) -> tuple[DynamicCache, torch.Tensor]:
        """Return keys and values of all tokens but the last, padded on the left, and which are tokens, (N, L)."""
        length = max(1, max(map(len, prompts)) - 1)
        ids = torch.tensor([(0,) * (length + 1 - len(prompt)) + prompt[:-1] for prompt in prompts])
        n_tokens = torch.tensor([len(prompt) - 1 for prompt in prompts])
        is_token = (torch.arange(length) >= length - n_tokens[:, None]).to(self.model.device)
        cache = DynamicCache()
        self.model(
            input_ids=ids.to(self.model.device),
            attention_mask=is_token.long(),
            position_ids=(is_token.cumsum(-1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return cache, is_token

    def shrink(self) -> None:
        """Give up the free places."""
        busy = [place for place, answer in enumerate(self.places) if answer is not None]
        self.places = [self.places[place] for place in busy]
        busy = torch.tensor(busy, device=self.mask.device)
        self.ring.keep(busy)
        self.token, self.position, self.mask = self.token[busy], self.position[busy], self.mask[busy]

    def step(self, uniforms: torch.Tensor, temperature: float) -> tuple[list[int], list[float], list[float]]:
        """Draw a token for each place; what is drawn for a free one means nothing."""
        self.ring.slot = self.n_steps % self.length
        self.mask[..., self.ring.slot] = 0.0
        logits = self.model(
            input_ids=self.token[:, None],
            attention_mask=self.mask,
            position_ids=self.position[:, None],
            past_key_values=self.ring,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        self.token, *log_probs = draw(logits, uniforms.to(logits.device), temperature)
        self.position = (self.position + 1).clamp_(max=self.length - 1)  # a free place does not leave the context
        self.n_steps += 1
        return self.token.tolist(), *(x.tolist() for x in log_probs)
