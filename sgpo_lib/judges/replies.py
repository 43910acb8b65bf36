"""What a language model's reply says: its text without thoughts, or why it is no answer."""

import contextlib
import email.utils
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
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


def completion_of(body: str) -> dict[str, Any]:
    """Return what is to be kept of a chat completion; None for what it lacks.

    Returns
    -------
    dict : `content` and `finish_reason` (str), `prompt_tokens` and `completion_tokens` (int).

    Raises
    ------
    ValueError, RecursionError : if it is not JSON, or nested without end.
    """
    reply = json.loads(body)
    reply = reply if isinstance(reply, dict) else {}
    tokens = reply.get("usage") if isinstance(reply.get("usage"), dict) else {}
    try:
        choice = reply["choices"][0]
        content, reason = content_of(choice["message"]), choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError):
        content, reason = None, None
    texts = {"content": content, "finish_reason": reason}
    counts = {name: tokens.get(name) for name in ("prompt_tokens", "completion_tokens")}
    return {name: value if isinstance(value, str) else None for name, value in texts.items()} | {
        name: value if isinstance(value, int) else None for name, value in counts.items()
    }


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


def excerpt(body: str, scrub: Callable[[str], str], length: int = 300) -> str:
    """Return the beginning of what a server sent, without the API key, also where it is escaped or masked.

    Parameters
    ----------
    scrub : takes the API key out of a text.
    """
    with contextlib.suppress(ValueError, RecursionError):
        body = json.dumps(json.loads(body), ensure_ascii=False)
    text = re.sub(r"[\w-]*\*{3,}[\w-]*", "[masked]", " ".join(encodable(scrub(body)).split()))
    return text if len(text) <= length else text[:length] + " ..."


def retry_after_seconds(retry_after: str) -> float:
    """Read a Retry-After header, in seconds or as a date; 0 where there is none."""
    with contextlib.suppress(ValueError):
        return max(0.0, float(retry_after))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, (email.utils.parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds())
    return 0.0
