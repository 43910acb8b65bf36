"""What a prompt is: a conversation that ends with the user, with an id by its content."""

import hashlib
import json
import re
from collections.abc import Sequence

import pandas as pd

LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def user_text(prompt: Sequence[dict]) -> str:
    """Return the last user message of a prompt, for display."""
    return next(message["content"] for message in reversed(prompt) if message["role"] == "user")


def conversation_text(prompt: Sequence[dict]) -> str:
    """Return the user's text, or the whole conversation where there was more than that, for judges of plain text."""
    if len(prompt) == 1:
        return user_text(prompt)
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def prompt_id(prompt: Sequence[dict]) -> str:
    """Return the key of a prompt: 12 hexadecimal digits of the SHA-256 of its roles and contents.

    White space around a message's text does not count: prompts that differ in nothing else share their key, so that
    no split parts them.
    """
    content = json.dumps([[message["role"], message["content"].strip()] for message in prompt], ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def as_user(text: str) -> list[dict]:
    """Return a conversation of one user message."""
    return [{"role": "user", "content": text}]


def with_ids(data: pd.DataFrame) -> pd.DataFrame:
    """Put the column `prompt_id` before a table with `prompt`, in place of any of that name."""
    ids = [prompt_id(prompt) for prompt in data["prompt"]]
    others = data.drop(columns="prompt_id", errors="ignore")
    others.insert(0, "prompt_id", ids)
    return others
