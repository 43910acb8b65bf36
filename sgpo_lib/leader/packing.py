"""A prompt once for all its answers: rows in which answers share their prompt's computation, and log-probabilities.

Preference Packing (Cho, 2026, arXiv 2602.24082) and prefix sharing (Wang & Hegde, 2024, arXiv 2410.20305), exact up
to rounding. Knows token ids and causal language models; knows nothing of trainers, references or losses.

A row is the prompt without its last token, and then for each answer the prompt's last token and the answer without
its own last one, which predict precisely the answer's tokens:

    tokens      p0 p1 p2 | p3 a0 a1 | p3 b0 b1 b2          prompt p0..p3, answers a0..a2 and b0..b3
    positions   0  1  2  | 3  4  5  | 3  4  5  6
    branch      0  0  0  | 1  1  1  | 2  2  2  2
    labels      -  -  -  | a0 a1 a2 | b0 b1 b2 b3

A token attends to what stands before it in the shared prompt (branch 0) and in its own branch.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from accelerate.utils import extract_model_from_parallel
from peft import PeftModel

from sgpo_lib.leader import block_attention
from sgpo_lib.leader.label_log_probs import LabelLogProbs, gives_log_probs, head_giving_log_probs

# Layers that mix tokens by attention alone, as transformers names them, and layers that mix none.
_PACKABLE_LAYERS = {"full_attention", "sliding_attention", "chunked_attention", "moe", "sparse", "dense"}

# Attention functions that let each token see what a mask says.
_TAKE_A_MASK = ("eager", "sdpa", block_attention.NAME)

# What packed and plain log-probabilities of n tokens may differ by, over sqrt(n), in nats and quadratic mean over the
# answers. SmolLM2-135M on its own answers: 0.05 in bfloat16, 1e-5 in float32; with a mask that is dropped, boolean
# where it is added, or plainly causal: 4 to 15; with positions that are ignored: 0.18.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.15}


class PackingError(RuntimeError):
    """A model's packed log-probabilities are not its plain ones."""


@dataclass(frozen=True)
class PackedRows:
    """B prompts with all their answers, N answer tokens in total, a row of L tokens per prompt, padded on the right.

    Attributes
    ----------
    input_ids, position_ids : shape (B, L).
    branch : shape (B, L); 0 for the shared prompt, k for the k-th answer from 1, -1 for padding.
    predicting : shape (N,); the places that predict an answer's token, counted through all rows, padding too.
    labels : shape (N,); what they predict.
    answer : shape (N,); which answer each label belongs to, counted through all rows.
    n_answers : of all rows together.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    branch: torch.Tensor
    predicting: torch.Tensor
    labels: torch.Tensor
    answer: torch.Tensor
    n_answers: int

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PackedRows":
        """Return the rows on a device; `accelerate` calls this for what a collator gives."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "n_answers"}
        return replace(self, **{name: t.to(device, non_blocking=non_blocking) for name, t in tensors.items()})

    def attention_mask(self, implementation: str, dtype: torch.dtype) -> torch.Tensor:
        """Return which token attends to which, shape (B, 1, L, L), as an attention implementation takes it.

        No row of it is fully masked, so no softmax is of nothing.

        Parameters
        ----------
        implementation : "sdpa" gets a boolean mask; "eager" and "causal_blocks" (`sgpo_lib.leader.block_attention`) add
            their mask to the scores and get one in `dtype`.

        Raises
        ------
        ValueError : for any other implementation, which would let one answer see another.
        """
        if implementation not in _TAKE_A_MASK:
            raise ValueError(
                f"Packed rows need attention by 'eager' or 'sdpa', not {implementation!r}, which takes no mask of "
                "who sees whom: load the model with another attn_implementation, or train unpacked."
            )
        index = torch.arange(self.branch.shape[1], device=self.branch.device)
        seen, seeing = self.branch[:, None, :], self.branch[:, :, None]
        keep = ((index <= index[:, None]) & ((seen == 0) | (seen == seeing)))[:, None]
        if implementation == "sdpa":
            return keep
        # A boolean mask would be added as 0 and 1, without any error.
        return torch.zeros(keep.shape, dtype=dtype, device=keep.device).masked_fill_(~keep, torch.finfo(dtype).min)


def row_length(prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> int:
    """Return how many tokens a prompt and its answers take in a packed row; to sort by, and to fill batches by."""
    return len(prompt) - 1 + sum(map(len, answers))


def pack(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[Sequence[int]]]) -> PackedRows:
    """Lay out prompts and their answers, a row per prompt.

    Parameters
    ----------
    prompts : B lists of token ids, each of at least one token.
    answers : B lists of answers to the prompt at the same place, each a list of token ids; a preference pair is
        [chosen, rejected].

    Raises
    ------
    ValueError : if a prompt is empty, or has no answer with a token.
    """
    rows, labels, answer, n_answers = [], [], [], 0
    for place, (prompt, own) in enumerate(zip(prompts, answers, strict=True)):
        if not len(prompt) or not any(map(len, own)):
            raise ValueError(
                f"Prompt {place} of {len(prompts)} has {len(prompt)} tokens, and answers of {list(map(len, own))}: "
                "a packed row needs a prompt to go on from and an answer to score; leave such rows out."
            )
        shared = len(prompt) - 1
        tokens, positions, branch = list(prompt[:-1]), list(range(shared)), [0] * shared
        for number, completion in enumerate(own, 1):
            n = len(completion)
            tokens += [prompt[-1], *completion][:n]
            positions += range(shared, shared + n)
            branch += [number] * n
            labels.extend(completion)
            answer += [n_answers] * n
            n_answers += 1
        rows.append((tokens, positions, branch))
    length = max(len(tokens) for tokens, _, _ in rows)
    input_ids, position_ids, branch = (
        torch.tensor([[*row, *[fill] * (length - len(row))] for row in column])
        for column, fill in zip(zip(*rows, strict=True), (0, 0, -1), strict=True)
    )
    predicting = (branch > 0).flatten().nonzero()[:, 0]
    return PackedRows(
        input_ids, position_ids, branch, predicting, torch.tensor(labels), torch.tensor(answer), n_answers
    )


def packed_log_probs(model: torch.nn.Module, rows: PackedRows, temperature: float = 1.0) -> torch.Tensor:
    """Return log pi(y|x) of every answer, summed over its tokens, in nats, shape (n_answers,), float32 or wider.

    Differentiable. Calls the model's own `forward`, so wrappers (PEFT, DDP, FSDP), adapters and what a model does
    to its logits all apply; its head is computed at the N scored positions only. A frozen head gives log-probabilities
    by itself, and no logits are held (`sgpo_lib.leader.label_log_probs`). With dropout, the answers of a row share
    the draw of their prompt.

    Parameters
    ----------
    model : a causal language model for which `why_not_packed` gives None.
    rows : on the model's device.
    temperature : divides the logits.

    Raises
    ------
    ValueError : if the model's attention implementation takes no mask of who sees whom.
    """
    causal_lm = _causal_lm(model)
    implementation = causal_lm.config.get_text_config()._attn_implementation
    inputs = {
        "input_ids": rows.input_ids,
        "attention_mask": rows.attention_mask(implementation, _compute_dtype(model, rows.input_ids.device)),
        "position_ids": rows.position_ids,
        "use_cache": False,
    }
    if gives_log_probs(causal_lm):
        with head_giving_log_probs(causal_lm, rows.predicting, rows.labels, temperature):
            log_probs = model(**inputs).logits
    else:
        logits = model(**inputs, logits_to_keep=rows.branch > 0).logits
        log_probs = LabelLogProbs.apply(logits, rows.labels, temperature)
    return log_probs.new_zeros(rows.n_answers).index_add(0, rows.answer, log_probs)


def has_scoring_head(model: torch.nn.Module) -> bool:
    """Return whether packed log-probabilities are computed without holding all logits (`label_log_probs`)."""
    return gives_log_probs(_causal_lm(model))


def why_not_packed(model: torch.nn.Module, longest: int) -> str | None:
    """Return why a model's packed log-probabilities would not be its plain ones, or None if nothing is known against.

    What a model does with a mask shows only in its numbers: `check_packed` compares them.

    Parameters
    ----------
    longest : tokens of the longest prompt with one answer.
    """
    adapter = extract_model_from_parallel(model)
    if isinstance(adapter, PeftModel) and adapter.active_peft_config.is_prompt_learning:
        return f"its {adapter.active_peft_config.peft_type.value} adapter puts virtual tokens before the prompt"
    causal_lm = _causal_lm(model)
    config = causal_lm.config.get_text_config()
    layers = getattr(config, "layer_types", None)
    other_layers = sorted(set(layers or []) - _PACKABLE_LAYERS)
    if other_layers or getattr(causal_lm, "_is_stateful", False):
        named = ", ".join(other_layers) or "recurrent"
        return f"its layers ({named}) pass on more from token to token than a mask of who sees whom can stop"
    takes = inspect.signature(type(causal_lm).forward).parameters
    missing = [name for name in ("attention_mask", "position_ids", "logits_to_keep") if name not in takes]
    if missing:
        return f"{type(causal_lm).__name__} takes no {' and no '.join(missing)}"
    if config._attn_implementation not in _TAKE_A_MASK:
        return f"its attention implementation, {config._attn_implementation!r}, takes no mask of who sees whom"
    for name, kind in (("sliding_window", "sliding_attention"), ("attention_chunk_size", "chunked_attention")):
        window = getattr(config, name, None)
        if window is not None and window < longest and (layers is None or kind in layers):
            return f"its {name} of {window} tokens is shorter than the longest prompt with its answer, {longest}"
    return None


@torch.no_grad()
def check_packed(
    model: torch.nn.Module, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[Sequence[int]]]
) -> None:
    """Compare packed log-probabilities with those of each prompt and answer read alone, without dropout.

    To be called once, on a first batch, in the precision that training or scoring will have.

    Raises
    ------
    PackingError : if they differ by more than rounding explains: the model does not honour mask or positions.
    """
    device = _causal_lm(model).device
    alone = [(prompt, answer) for prompt, own in zip(prompts, answers, strict=True) for answer in own]
    was_training = model.training
    model.eval()
    try:
        packed = packed_log_probs(model, pack(prompts, answers).to(device)).cpu().double()
        plain = torch.zeros_like(packed)
        for place, (prompt, answer) in enumerate(alone):
            ids = torch.tensor([[*prompt, *answer]], device=device)
            logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
            plain[place] = logits.cpu().double().log_softmax(-1)[range(len(answer)), answer].sum()
    finally:
        model.train(was_training)
    n_tokens = torch.tensor([max(1, len(answer)) for _, answer in alone])
    error = ((packed - plain).square() / n_tokens).mean().sqrt().item()
    tolerance = _TOLERANCE[_compute_dtype(model, device)]
    if not error <= tolerance:  # nor does NaN pass
        worst = int((packed - plain).abs().argmax())
        raise PackingError(
            f"{type(_causal_lm(model)).__name__} cannot be packed: its packed log-probabilities are off by {error:.3g} "
            f"nats per square root of tokens (tolerance {tolerance:g}). Answer {worst} of {len(alone)} has "
            f"{packed[worst]:.6g} in its packed row and {plain[worst]:.6g} alone. The model does not honour the mask "
            "or the positions of packed rows; train and score it unpacked."
        )


def _causal_lm(model: torch.nn.Module) -> torch.nn.Module:
    """Return the transformers model inside what PEFT, DDP or FSDP have wrapped around it."""
    model = extract_model_from_parallel(model)
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _compute_dtype(model: torch.nn.Module, device: torch.device) -> torch.dtype:
    """Return the type that attention scores have: autocast's if it is on, else the model's."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return _causal_lm(model).dtype
