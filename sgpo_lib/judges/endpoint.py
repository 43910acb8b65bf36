"""Conversations in, answers out: a client of any OpenAI-compatible chat endpoint that loses no answer it was given.

Knows HTTP, retries and a cache on disk; knows nothing of what is asked.
"""

import json
import random
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx2
from tqdm.auto import tqdm

from sgpo_lib.judges.failures import EndpointError, Failure, MayPass, Unanswered
from sgpo_lib.judges.keys import BearerFromEnvironment, api_key, check_key, check_url, is_loopback, without_key
from sgpo_lib.judges.replies import (
    BROKEN_OFF,
    CUT,
    Reply,
    completion_of,
    encodable,
    excerpt,
    retry_after_seconds,
    without_thoughts,
)
from sgpo_lib.params import KEY_VARIABLE
from sgpo_lib.runs.store import replacing, sha256_of

# Seconds: the first wait doubles with every try up to the longest; a server that asks for more than the last
# is better asked again another time.
_FIRST_WAIT = 1.0
_LONGEST_BACK_OFF = 60.0
_LONGEST_RETRY_AFTER = 600.0
_LONGEST_CONNECT = 30.0
# Refusals of what was asked, such as a content filter's or of a context that is too long. Any other 4xx would meet
# every conversation alike.
_REFUSES_CONVERSATION = (400, 403, 413, 422, 451)


@dataclass(frozen=True)
class Endpoint:
    """A model behind `POST {url}/chat/completions`.

    Every answer is a file of its own in `cache_dir` the moment it arrives, under the SHA-256 of model, messages
    and sampling params. So a killed run resumes, and what was asked once costs nothing again. The address is no
    part of that hash: a server that moves to another port is still the same model. What is no answer is not kept: a
    text broken off by an error or a content filter, or thoughts that left no room for an answer.

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
        not set, requests carry no key. Its name ends in `_API_KEY` or `_TOKEN`, so that a params file from elsewhere
        cannot send any other variable away; and the key goes to https and loopback addresses only.
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
        if not KEY_VARIABLE.fullmatch(self.api_key_variable):
            raise ValueError(
                "api_key_variable must name an environment variable that ends in _API_KEY or _TOKEN, such as "
                "OPENAI_API_KEY. What it is now is not shown, because it may be a key."
            )
        check_url(self.url, self.api_key_variable)
        for name, least in {"max_concurrency": 1, "max_tokens": 1, "retries": 0, "temperature": 0}.items():
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least {least}.")
        object.__setattr__(self, "cache_dir", Path(self.cache_dir))

    def complete(self, conversations: Sequence[list[dict]], max_unanswered: int = 0) -> list[Reply]:
        """Return the reply to each conversation, from the cache or the server.

        Parameters
        ----------
        conversations : N lists of chat messages `{"role", "content"}`; equal ones are asked once.
        max_unanswered : how many different ones may stay without an answer for a reason of their own: refused by a
            content filter or as too long, or empty in all tries. These are asked for again by the next call.

        Raises
        ------
        EndpointError : if the server refuses, or fails a conversation in all its tries, and that is not the
            conversation's own fault or the fault of more than `max_unanswered`. Answers that had come, and those
            under way, are in the cache.
        ValueError : if the API key cannot be one, or would leave this machine unencrypted.
        """
        check_key(self.api_key_variable, self.url)
        requests = [self._request(list(messages)) for messages in conversations]
        keys = [sha256_of(json.dumps(request, sort_keys=True).encode()) for request in requests]
        distinct = dict(zip(keys, requests, strict=True))
        replies = {key: reply for key in distinct if (reply := self._read(key)) is not None}
        self._count(cache_hits=len(replies))
        missing = {key: request for key, request in distinct.items() if key not in replies}
        if missing:
            reason = None
            try:
                replies |= self._ask_all(missing, len(replies), max_unanswered)
            except Failure as failure:
                reason = f"{failure}\nThat was conversation {keys.index(failure.key)}, counted from 0."
                if isinstance(failure, Unanswered) and max_unanswered:
                    reason += f" No more than {max_unanswered} may stay without an answer."
            if reason:  # raised out here, so that the error drags no chain of others behind it
                n_safe = sum(self._read(key) is not None for key in distinct)
                raise EndpointError(
                    f"{self.url} (model {self.model!r}) {reason} {n_safe} of {len(distinct)} answers are safe in "
                    f"{self.cache_dir}; run the same again, and only the missing ones are asked for."
                )
        return [replies[key] for key in keys]

    def usage(self) -> dict[str, Any]:
        """Return what this object has used: `requests` sent, `answers` got, `cache_hits`, tokens, and `cost`.

        `unanswered` counts conversations that stayed without an answer, `answers_without_token_counts` those answers
        whose tokens the server did not tell, which no sum contains; `cost` is None without prices. Answers from the
        cache cost nothing and add no tokens.
        """
        names = ("requests", "answers", "unanswered", "cache_hits", "prompt_tokens", "completion_tokens")
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

    def _ask_all(self, missing: dict[str, dict], n_known: int, max_unanswered: int) -> dict[str, Reply]:
        replies = {}
        stop, spare = threading.Event(), threading.Semaphore(max_unanswered)
        client = httpx2.Client(
            auth=BearerFromEnvironment(self.api_key_variable),
            timeout=httpx2.Timeout(self.timeout, connect=min(self.timeout, _LONGEST_CONNECT), pool=None),
            limits=httpx2.Limits(max_connections=self.max_concurrency),
            trust_env=not is_loopback(httpx2.URL(self.url).host),  # or a proxy would get the key of a local server
        )
        bar = tqdm(total=n_known + len(missing), initial=n_known, desc="ask", unit="answer")
        with client, ThreadPoolExecutor(self.max_concurrency) as pool, bar as progress:
            asked = {pool.submit(self._ask, client, key, missing[key], stop, spare): key for key in missing}
            try:
                for done in as_completed(asked):
                    reply = done.result()
                    if reply is not None:
                        replies[asked[done]] = reply
                        progress.update()
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)  # what is under way is paid for: wait for it
                raise
        return replies

    def _ask(
        self, client: httpx2.Client, key: str, request: dict, stop: threading.Event, spare: threading.Semaphore
    ) -> Reply | None:
        """Ask until there is an answer, store and return it; None if stopped, as a failure stops all others."""
        try:
            return self._try(client, key, request, stop)
        except Failure as failure:
            if isinstance(failure, Unanswered) and spare.acquire(blocking=False):
                self._count(unanswered=1)
                return Reply(None, problem=str(failure))
            failure.key = key
            stop.set()
            raise

    def _try(self, client: httpx2.Client, key: str, request: dict, stop: threading.Event) -> Reply | None:
        wait = 0.0
        for attempt in range(self.retries + 1):
            if stop.wait(wait):
                return None
            try:
                record = self._post(client, request)
            except MayPass as failure:
                last = failure
            else:
                self._write(key, {"request": request, **record})
                return self._reply(record)
            if last.retry_after > _LONGEST_RETRY_AFTER:
                raise Failure(f"asks to be left alone for {last.retry_after:.0f} s: {last}")
            wait = min(_LONGEST_BACK_OFF, _FIRST_WAIT * 2**attempt) * random.uniform(0.5, 1.0)
            wait = max(wait, last.retry_after * random.uniform(1.0, 1.1))
        raise last.kind(f"gave no answer in {self.retries + 1} tries. The last one: {last}")

    def _post(self, client: httpx2.Client, request: dict) -> dict[str, Any]:
        """Send one request; return what is to be kept of the answer."""
        sent = {self.max_tokens_name if name == "max_tokens" else name: value for name, value in request.items()}
        self._count(requests=1)
        try:
            response = client.post(
                f"{self.url.rstrip('/')}/chat/completions",
                content=json.dumps(sent).encode(),
                headers={"Content-Type": "application/json"},
            )
        except httpx2.TimeoutException:
            raise MayPass(f"nothing came for {self.timeout:g} s (timeout).") from None
        except httpx2.RequestError as error:
            raise MayPass(self._scrub(f"{type(error).__name__}: {error}")) from None

        if response.status_code == 200:
            return self._parse(response.text)
        problem = f"HTTP {response.status_code}: {self._excerpt(response.text)}"
        if response.status_code in (408, 409, 425, 429) or response.status_code >= 500:
            raise MayPass(problem, retry_after_seconds(response.headers.get("Retry-After", "")))
        kind = Unanswered if response.status_code in _REFUSES_CONVERSATION else Failure
        raise kind(self._explain(response.status_code, problem))

    def _parse(self, body: str) -> dict[str, Any]:
        """Return what is to be kept of the answer that the reply holds."""
        try:
            said = completion_of(body)
        except (ValueError, RecursionError):
            raise MayPass(f"the reply is not JSON: {self._excerpt(body)}") from None
        known = {name: said[name] for name in ("prompt_tokens", "completion_tokens") if said[name] is not None}
        self._count(**known)
        record = {
            name: self._scrub(value) if name in ("content", "finish_reason") and isinstance(value, str) else value
            for name, value in said.items()
        }
        answer = self._reply(record)
        if answer.text is None:
            problem = f"{answer.problem}: {self._excerpt(body)}"
            if record["finish_reason"] in CUT or str(record["finish_reason"]).startswith("content_filter"):
                raise Unanswered(problem)  # the same again would end the same
            raise MayPass(problem, kind=Unanswered)
        self._count(answers=1, answers_without_token_counts=int(len(known) < 2))
        return record

    def _reply(self, record: dict[str, Any]) -> Reply:
        """Read what was kept, or is to be."""
        content, reason = record["content"], record["finish_reason"]
        text = None if content is None else without_thoughts(encodable(content))
        if reason in CUT and not (text or "").strip():
            return Reply(None, True, f"there is no answer within max_tokens = {self.max_tokens}, so allow more")
        if reason in BROKEN_OFF or str(reason).startswith("content_filter"):
            return Reply(None, problem=f"the answer was broken off (finish_reason {reason!r})")
        if text is None:
            return Reply(None, problem=f"the reply holds no text (finish_reason {reason!r})")
        return Reply(text, reason in CUT)

    def _explain(self, status: int, problem: str) -> str:
        if status in (401, 403):
            present = bool(api_key(self.api_key_variable))
            state = "holds a key that it does not take" if present else "is not set"
            return f"refuses the request: the environment variable {self.api_key_variable} {state}. {problem}"
        if status == 404:
            return f"has no such address or model; most urls end in /v1. {problem}"
        return f"refuses the request. {problem}"

    def _excerpt(self, body: str) -> str:
        return excerpt(body, self._scrub)

    def _scrub(self, text: str) -> str:
        return without_key(text, self.api_key_variable)

    def _count(self, **numbers: int) -> None:
        with self._lock:
            self._counts.update(numbers)

    def _file(self, key: str) -> Path:
        return self.cache_dir / key[:2] / f"{key}.json"

    def _read(self, key: str) -> Reply | None:
        try:
            record = json.loads(self._file(key).read_text())
            reply = self._reply({"content": record["content"], "finish_reason": record.get("finish_reason")})
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None  # not there, or damaged by a crash of the machine: it is asked for again
        return reply if reply.text is not None else None

    def _write(self, key: str, record: dict) -> None:
        with replacing(self._file(key)) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n")
