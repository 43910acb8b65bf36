"""What a language model's reply says: its text without thoughts, or why it is no answer."""

import re
from dataclasses import dataclass
from typing import Any

CUT = ("length", "max_tokens")  # the second is Anthropic's name


BROKEN_OFF = ("error", "abort", "cancelled")  # vLLM's and routers' names for an answer of which a part is missing


_THOUGHTS = r"[<\[](think|thinking|thought|reasoning)[>\]]"


_THOUGHTS_END = r"[<\[]/(think|thinking|thought|reasoning)[>\]]"


@dataclass(frozen=True)
class Reply:
    """What came of one conversation.

    Attributes
    ----------
    text : the answer, without the thoughts that a reasoning model may write before it, and encodable as UTF-8: half
        a surrogate pair has become U+FFFD. None where there is no answer.
    is_cut : whether it ends because `max_tokens` was reached.
    problem : why there is no answer, in words for people; empty where there is one.
    """

    text: str | None
    is_cut: bool = False
    problem: str = ""


def content_of(message: dict) -> Any:
    """Return a message's text: as it is, put together from parts, or a refusal, which is an answer too."""
    content = message.get("content")
    if isinstance(content, list):
        texts = [part["text"] for part in content if part["type"] in ("text", "output_text")]
        content = "".join(texts) if texts else None
    return message.get("refusal") if content is None else content


def without_thoughts(text: str) -> str:
    """Return what follows a reasoning model's thoughts: some open them in the prompt, some never close them."""
    answer = re.split(_THOUGHTS_END, text, flags=re.IGNORECASE)[-1]
    return "" if re.match(rf"\s*{_THOUGHTS}", answer, flags=re.IGNORECASE) else answer


def encodable(text: str) -> str:
    """Return text that UTF-8, and so files and screens, can hold: half a surrogate pair becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
