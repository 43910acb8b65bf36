"""Conversations in, answers out: a client of any OpenAI-compatible chat endpoint that loses no answer it was given.

Knows HTTP, retries and a cache on disk; knows nothing of what is asked.
"""

import contextlib
import email.utils
import hashlib
import json
import os
import random
import re
import threading
from collections import Counter
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import httpx2
from tqdm.auto import tqdm

# Seconds: the first wait doubles with every try up to the longest; a server that asks for more than the last
# is better asked again another time.
_FIRST_WAIT = 1.0
_LONGEST_BACK_OFF = 60.0
_LONGEST_RETRY_AFTER = 600.0
_LONGEST_CONNECT = 30.0

# Servers without accounts are given words such as EMPTY for a key, which an answer may well contain.
_SHORTEST_SECRET = 8


class EndpointError(RuntimeError):
    """The endpoint does not answer; says why, and how many answers are safe in the cache."""


class _Failure(Exception):
    """What went wrong with the conversation `key`, in words for people."""

    key: str


@dataclass(frozen=True)
class Endpoint:
    """A model behind `POST {url}/chat/completions`.

    Every answer is a file of its own in `cache_dir` the moment it arrives, under the SHA-256 of model, messages
    and sampling params. So a killed run resumes, and what was asked once costs nothing again. The address is no
    part of that hash: a server that moves to another port is still the same model.

    Attributes
    ----------
    url : such as "https://api.openai.com/v1" or "http://localhost:8000/v1".
    model : as the server calls it.
    max_concurrency : requests under way at once.
    max_tokens : longest answer.
    timeout : seconds without a byte from the server before a try is given up. Generous, because a server that is
        merely slow goes on with what it was asked, and a second request for the same makes it slower.
    retries : further tries after a first one that failed for a reason that may pass.
    api_key_variable : environment variable of the API key, read with each request and kept nowhere; where it is
        not set, requests carry no key.
    price_per_million : of prompt and completion tokens, in the currency that `usage` shall be in.
    temperature : None leaves it to the server; OpenAI's reasoning models want that.
    max_tokens_name : what the server calls `max_tokens`; OpenAI's reasoning models want the second name.
    """

    url: str
    model: str
    cache_dir: Path
    max_concurrency: int = 8
    temperature: float | None = 0.0
    max_tokens: int = 512
    timeout: float = 600.0
    retries: int = 6
    api_key_variable: str = "OPENAI_API_KEY"
    price_per_million: tuple[float, float] | None = None
    max_tokens_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    _counts: Counter = field(default_factory=Counter, init=False, repr=False, compare=False)
    _lock: Any = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    def __post_init__(self):  # noqa: D105
        try:
            url = httpx2.URL(self.url)
        except httpx2.InvalidURL:
            url = httpx2.URL("")
        if url.userinfo:
            raise ValueError("The endpoint's url holds a user name or password, which would end up in records: "
                             f"put the API key into the environment variable {self.api_key_variable}.")  # fmt: skip
        if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
            raise ValueError(f"{self.url!r} is not the base url of an endpoint, such as 'http://localhost:8000/v1'.")
        for name, least in {"max_concurrency": 1, "max_tokens": 1, "retries": 0, "temperature": 0}.items():
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least {least}.")
        object.__setattr__(self, "cache_dir", Path(self.cache_dir))

    def complete(self, conversations: Sequence[list[dict]]) -> list[str]:
        """Return the answer to each conversation, from the cache or the server.

        Parameters
        ----------
        conversations : N lists of chat messages `{"role", "content"}`; equal ones are asked once.

        Raises
        ------
        EndpointError : if the server refuses, or fails a conversation in all its tries. Answers that had come,
            and those under way, are in the cache.
        ValueError : if the API key cannot be one.
        """
        if not re.fullmatch(r"[!#-\[\]-~]*", _api_key(self.api_key_variable)):
            raise ValueError(
                f"The environment variable {self.api_key_variable} does not hold an API key: there are spaces, line "
                "breaks, quotes, backslashes or letters outside ASCII in it."
            )
        requests = [self._request(list(messages)) for messages in conversations]
        keys = [_key(request) for request in requests]
        distinct = dict(zip(keys, requests, strict=True))
        answers = {key: answer for key in distinct if (answer := self._read(key)) is not None}
        self._count(cache_hits=len(answers))
        missing = {key: request for key, request in distinct.items() if key not in answers}
        if missing:
            reason = None
            try:
                answers |= self._ask_all(missing, n_known=len(answers))
            except _Failure as failure:
                reason = f"{failure}\nThat was conversation {keys.index(failure.key)}, counted from 0."
            if reason:  # raised out here, so that the error drags no chain of others behind it
                n_safe = sum(self._read(key) is not None for key in distinct)
                raise EndpointError(
                    f"{self.url} (model {self.model!r}) {reason} {n_safe} of {len(distinct)} answers are safe in "
                    f"{self.cache_dir}; run the same again, and only the missing ones are asked for."
                )
        return [answers[key] for key in keys]

    def usage(self) -> dict[str, Any]:
        """Return what this object has used: `requests` sent, `answers` got, `cache_hits`, tokens, and `cost`.

        `answers_without_token_counts` are those whose tokens the server did not tell, which no sum contains;
        `cost` is None without prices. Answers from the cache cost nothing and add no tokens.
        """
        names = ("requests", "answers", "cache_hits", "prompt_tokens", "completion_tokens")
        with self._lock:
            used: dict[str, Any] = {name: self._counts[name] for name in (*names, "answers_without_token_counts")}
        used["cost"] = None
        if self.price_per_million is not None:
            tokens = (used["prompt_tokens"], used["completion_tokens"])
            used["cost"] = sum(n * price / 1e6 for n, price in zip(tokens, self.price_per_million, strict=True))
        return used

    def _request(self, messages: list[dict]) -> dict[str, Any]:
        request = {"model": self.model, "messages": messages, "max_tokens": self.max_tokens}
        return request if self.temperature is None else request | {"temperature": self.temperature}

    def _ask_all(self, missing: dict[str, dict], n_known: int) -> dict[str, str]:
        answers = {}
        stop = threading.Event()
        client = httpx2.Client(
            auth=_BearerFromEnvironment(self.api_key_variable),
            timeout=httpx2.Timeout(self.timeout, connect=min(self.timeout, _LONGEST_CONNECT), pool=None),
            limits=httpx2.Limits(max_connections=self.max_concurrency),
        )
        bar = tqdm(total=n_known + len(missing), initial=n_known, desc="ask", unit="answer")
        with client, ThreadPoolExecutor(self.max_concurrency) as pool, bar as progress:
            asked = {pool.submit(self._ask, client, key, missing[key], stop): key for key in missing}
            try:
                for done in as_completed(asked):
                    answer = done.result()
                    if answer is not None:
                        answers[asked[done]] = answer
                        progress.update()
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)  # what is under way is paid for: wait for it
                raise
        return answers

    def _ask(self, client: httpx2.Client, key: str, request: dict, stop: threading.Event) -> str | None:
        """Ask until there is an answer, store and return it; None if stopped, as a failure stops all others."""
        try:
            return self._try(client, key, request, stop)
        except _Failure as failure:
            failure.key = key
            stop.set()
            raise

    def _try(self, client: httpx2.Client, key: str, request: dict, stop: threading.Event) -> str | None:
        wait = 0.0
        for attempt in range(self.retries + 1):
            if stop.wait(wait):
                return None
            reply, problem, retry_after = self._post(client, request)
            if reply is not None:
                self._write(key, {"request": request, **reply})
                return reply["content"]
            if retry_after > _LONGEST_RETRY_AFTER:
                raise _Failure(f"asks to be left alone for {retry_after:.0f} s: {problem}")
            wait = min(_LONGEST_BACK_OFF, _FIRST_WAIT * 2**attempt) * random.uniform(0.5, 1.0)
            wait = max(wait, retry_after * random.uniform(1.0, 1.1))
        raise _Failure(f"gave no answer in {self.retries + 1} tries. The last one: {problem}")

    def _post(self, client: httpx2.Client, request: dict) -> tuple[dict[str, Any] | None, str, float]:
        """Send one request; return the reply, or None with what is wrong and the seconds the server asks for."""
        sent = {self.max_tokens_name if name == "max_tokens" else name: value for name, value in request.items()}
        self._count(requests=1)
        try:
            response = client.post(
                f"{self.url.rstrip('/')}/chat/completions",
                content=json.dumps(sent).encode(),
                headers={"Content-Type": "application/json"},
            )
        except httpx2.TimeoutException:
            return None, f"nothing came for {self.timeout:g} s (timeout).", 0.0
        except httpx2.RequestError as error:
            return None, self._scrub(f"{type(error).__name__}: {error}"), 0.0

        if response.status_code == 200:
            reply, problem = self._parse(response.text)
            return reply, problem, 0.0
        problem = f"HTTP {response.status_code}: {self._excerpt(response.text)}"
        if response.status_code in (408, 409, 425, 429) or response.status_code >= 500:
            return None, problem, _seconds(response.headers.get("Retry-After", ""))
        raise _Failure(self._explain(response.status_code, problem))

    def _parse(self, body: str) -> tuple[dict[str, Any] | None, str]:
        """Return the reply's parts, or None with what is wrong."""
        try:
            reply = json.loads(body)
        except ValueError:
            return None, f"the reply is not JSON: {self._excerpt(body)}"
        reply = reply if isinstance(reply, dict) else {}
        tokens = reply.get("usage") if isinstance(reply.get("usage"), dict) else {}
        counts = {name: tokens.get(name) for name in ("prompt_tokens", "completion_tokens")}
        known = {name: number for name, number in counts.items() if isinstance(number, int)}
        try:
            choice = reply["choices"][0]
            message, finish_reason = choice["message"], choice.get("finish_reason")
            content = message.get("content")
            content = message.get("refusal") if content is None else content  # a refusal is an answer too
        except (KeyError, IndexError, TypeError, AttributeError):
            content, finish_reason = None, None
        finish_reason = self._scrub(finish_reason) if isinstance(finish_reason, str) else None
        if not isinstance(content, str):
            self._count(**known)
            reason = f" (finish_reason {finish_reason!r}; 'length' asks for more max_tokens)" if finish_reason else ""
            return None, f"the reply holds no text{reason}: {self._excerpt(body)}"
        self._count(answers=1, answers_without_token_counts=int(len(known) < len(counts)), **known)
        return {"content": self._scrub(content), "finish_reason": finish_reason, **counts}, ""

    def _explain(self, status: int, problem: str) -> str:
        if status in (401, 403):
            present = bool(_api_key(self.api_key_variable))
            state = "holds a key that it does not take" if present else "is not set"
            return f"refuses the request: the environment variable {self.api_key_variable} {state}. {problem}"
        if status == 404:
            return f"has no such address or model; most urls end in /v1. {problem}"
        return f"refuses the request. {problem}"

    def _excerpt(self, body: str, length: int = 300) -> str:
        """Return the beginning of what a server sent, without the API key, also where it is escaped or masked."""
        with contextlib.suppress(ValueError):
            body = json.dumps(json.loads(body), ensure_ascii=False)
        text = re.sub(r"[\w-]*\*{3,}[\w-]*", "[masked]", " ".join(self._scrub(body).split()))
        return text if len(text) <= length else text[:length] + " ..."

    def _scrub(self, text: str) -> str:
        if len(_api_key(self.api_key_variable)) < _SHORTEST_SECRET:
            return text
        return text.replace(_api_key(self.api_key_variable), "[API key]")

    def _count(self, **numbers: int) -> None:
        with self._lock:
            self._counts.update(numbers)

    def _file(self, key: str) -> Path:
        return self.cache_dir / key[:2] / f"{key}.json"

    def _read(self, key: str) -> str | None:
        try:
            content = json.loads(self._file(key).read_text())["content"]
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
        ):  # a file damaged by a crash of the machine is asked for again
            return None
        return content if isinstance(content, str) else None

    def _write(self, key: str, record: dict) -> None:
        file = self._file(key)
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{key}.{os.getpid()}.{threading.get_ident()}.tmp")
        try:
            temporary.write_text(json.dumps(record, indent=1) + "\n")
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)


class _BearerFromEnvironment(httpx2.Auth):
    """Puts the API key into a request's header as it is sent."""

    def __init__(self, variable: str):
        self.variable = variable

    def auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        if _api_key(self.variable):
            request.headers["Authorization"] = f"Bearer {_api_key(self.variable)}"
        yield request


def _api_key(variable: str) -> str:
    # Never bound to a name: tracebacks can be asked to show the variables of every frame.
    return os.environ.get(variable, "").strip()


def _key(request: dict) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def _seconds(retry_after: str) -> float:
    """Read a Retry-After header, in seconds or as a date; 0 where there is none."""
    with contextlib.suppress(ValueError):
        return max(0.0, float(retry_after))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, (email.utils.parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds())
    return 0.0
