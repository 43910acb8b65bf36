"""Is this a chat model that can be trained? Tokenizer, template and tensors, asked once, with one message each."""

import difflib
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sgpo_lib.params.schema import ModelParams


def check_complete(report: dict[str, Any], source: str | Path) -> None:
    """Refuse a checkpoint that lacks tensors of the model, and warn of one with tensors that it has no place for.

    Parameters
    ----------
    report : `missing_keys` and `unexpected_keys`, as transformers reports them.
    source : folder or hub id, for the message.

    Raises
    ------
    ValueError : if tensors are missing.
    """
    missing, unexpected = (sorted(report[f"{kind}_keys"]) for kind in ("missing", "unexpected"))
    if missing:
        raise ValueError(
            f"{str(source)!r} lacks {len(missing)} tensors of its model ({', '.join(missing[:3])}, ...), which would "
            "be random. Check that it was saved whole, and as a model of the kind that it is loaded as."
        )
    if unexpected:
        warnings.warn(
            f"{str(source)!r} holds {len(unexpected)} tensors that its model has no place for and that are left out: "
            f"{', '.join(unexpected[:3])}, ...",
            stacklevel=2,
        )


def check_finite(model: torch.nn.Module, source: str | Path) -> None:
    """Refuse weights that are not finite, naming one."""
    for name, weights in model.named_parameters():
        if not weights.isfinite().all():
            raise FloatingPointError(
                f"{name} in {str(source)!r} has {int((~weights.isfinite()).sum())} values that are not finite: the "
                "file is damaged, or the training that made it diverged."
            )


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse a tokenizer or chat template that cannot serve, saying what it lacks."""
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"The tokenizer of {name!r} has no end-of-sequence token, so no answer would end: set eos_token in its "
            "tokenizer_config.json."
        )
    if tokenizer.chat_template is None:
        raise ValueError(
            f"The tokenizer of {name!r} has no chat template: name a model that was made to converse, or add the "
            "template that it was trained with (chat_template.jinja)."
        )
    turns = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes."}]
    text = rendered(tokenizer, name, turns)
    if "Hello?" not in text or "Yes." not in text:
        raise ValueError(
            f"The chat template of {name!r} leaves out what is said: of a question 'Hello?' and its answer 'Yes.' it "
            f"makes {text!r}. Give the model another chat template."
        )


def check_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, params: ModelParams) -> None:
    """Refuse a model whose embedding or adapter targets do not fit, saying which."""
    n_rows, last = model.get_input_embeddings().weight.shape[0], max(tokenizer.get_vocab().values())
    if last >= n_rows:
        raise ValueError(
            f"The tokenizer of {params.name_or_path!r} has token ids up to {last}, but the model embeds {n_rows} "
            "tokens only: take the tokenizer that belongs to the model, or resize the model's embedding."
        )
    if params.lora is None or params.lora.target_modules == "all-linear":
        return
    targets, names = params.lora.target_modules, [name for name, _ in model.named_modules()]
    if isinstance(targets, str):
        unknown = [] if any(re.fullmatch(targets, name) for name in names) else [targets]
    else:
        unknown = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in names)]
    if unknown:
        linear = {n.rpartition(".")[2] for n, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
        near = [name for target in unknown for name in difflib.get_close_matches(target, linear, 1)]
        raise ValueError(
            f"model.lora.target_modules names {', '.join(unknown)}, which {params.name_or_path!r} does not have"
            + (f"; did you mean {', '.join(near)}? " if near else ". ")
            + f"Its linear modules are {', '.join(sorted(linear))}."
        )


def rendered(tokenizer: PreTrainedTokenizerBase, name: str, messages: Sequence[dict], **options: Any) -> str:
    """Return a conversation as the chat template writes it, or say which conversation it does not take."""
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, **options)
    except jinja2.TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ValueError(
            f"The chat template of {name!r} does not take a conversation of {roles}: {error}. It starts "
            f"{str(messages[0]['content'])[:80]!r}. Bring prompts without what it refuses, or another chat template."
        ) from error
    for message in messages:
        if message["role"] == "system" and message["content"].strip() not in text:
            raise ValueError(
                f"The chat template of {name!r} leaves out system messages, such as {message['content'][:80]!r}: move "
                "them into the first user message, or give the model another chat template."
            )
    return text
