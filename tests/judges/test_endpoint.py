"""The client of chat endpoints: against real servers on loopback, no answer is lost, doubled, or leaks the key."""

import importlib.util
import json
import logging
import os
import random
import socket
import subprocess
import sys
import threading
import time
import traceback
import urllib.request
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from chat_server import good, reply, servers

from sgpo_lib.judges import endpoint as module
from sgpo_lib.judges.endpoint import Endpoint, EndpointError
from sgpo_lib.judges.replies import Reply

KEY = "sk-loopback/0123456789-abcdefghij"


def question(text):
    return [{"role": "user", "content": text}]


def said(asker, conversations, **options):
    return [reply.text for reply in asker.complete(conversations, **options)]


@pytest.fixture
def serve():
    with servers() as start:
        yield start


@pytest.fixture(autouse=True)
def _short_waits_and_no_key(monkeypatch):
    monkeypatch.setattr(module, "_FIRST_WAIT", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def test_answers_come_in_order_and_a_second_call_asks_nothing(serve, tmp_path):
    server = serve()
    asker = Endpoint(server.url, "m", tmp_path, price_per_million=(2.0, 5.0))
    texts = ["one", "two", "three", "one"]
    assert said(asker, [question(text) for text in texts]) == [text[::-1] for text in texts]
    assert {path for _, path, _, _ in server.seen} == {"/v1/chat/completions"}
    assert asker.usage() == {
        "requests": 3, "answers": 3, "unanswered": 0, "cache_hits": 0, "prompt_tokens": 30, "completion_tokens": 6,
        "answers_without_token_counts": 0, "cost": pytest.approx((30 * 2 + 6 * 5) / 1e6),
    }  # fmt: skip

    again = Endpoint(server.url, "m", tmp_path)
    assert said(again, [question("two")]) == ["owt"]
    assert len(server.seen) == 3
    assert (again.usage()["cache_hits"], again.usage()["requests"], again.usage()["cost"]) == (1, 0, None)


def test_another_model_or_sampling_is_another_question_but_another_address_is_not(serve, tmp_path):
    server, moved = serve(), serve()
    Endpoint(server.url, "m", tmp_path).complete([question("a")])
    for other in ({"model": "n"}, {"temperature": 0.5}, {"max_tokens": 7}):
        Endpoint(server.url, **{"model": "m", "cache_dir": tmp_path} | other).complete([question("a")])
    assert len(server.seen) == 4
    Endpoint(moved.url, "m", tmp_path, max_tokens_name="max_completion_tokens").complete([question("a")])
    assert moved.seen == []


def test_no_more_requests_are_under_way_than_allowed(serve, tmp_path):
    def slowly(n, request, headers):
        time.sleep(0.05)
        return 200, good(request), {}

    server = serve(slowly)
    Endpoint(server.url, "m", tmp_path, max_concurrency=3).complete([question(str(i)) for i in range(12)])
    assert server.most_under_way == 3


@pytest.mark.parametrize(
    "bad",
    [
        (200, '{"choices": [{"mess', {}),
        (200, "<html>502</html>", {}),
        (200, "[" * 100_000, {}),
        (200, {"choices": []}, {}),
        (200, {"error": "busy"}, {}),
        (200, ["not", "an", "object"], {}),
        (200, reply(None), {}),
        (200, {"choices": None, "usage": "none"}, {}),
        (429, {"error": "slow down"}, {"Retry-After": "0"}),
        (429, {"error": "slow down"}, {"Retry-After": "soon"}),
        (500, "oops", {}),
        (503, "", {}),
        (None, None, None),
    ],
    ids=lambda bad: f"{bad[0]}-{str(bad[1])[:18]}",
)
def test_what_may_pass_is_asked_again(serve, tmp_path, bad):
    server = serve(lambda n, request, headers: bad if n <= 2 else (200, good(request), {}))
    asker = Endpoint(server.url, "m", tmp_path, retries=2)
    assert said(asker, [question("abc")]) == ["cba"]
    assert asker.usage()["requests"] == len(server.seen) == 3


def test_a_server_slower_than_the_timeout_is_asked_again(serve, tmp_path):
    def slow_at_first(n, request, headers):
        time.sleep(1.0 if n == 1 else 0.0)
        return 200, good(request), {}

    server = serve(slow_at_first)
    assert said(Endpoint(server.url, "m", tmp_path, timeout=0.2), [question("abc")]) == ["cba"]
    assert len(server.seen) == 2


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_honoured(serve, tmp_path, as_date):
    def busy_at_first(n, request, headers):
        wait = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True) if as_date else "1"
        return (429, {"error": "slow down"}, {"Retry-After": wait}) if n == 1 else (200, good(request), {})

    server = serve(busy_at_first)
    start = time.monotonic()
    Endpoint(server.url, "m", tmp_path).complete([question("abc")])
    assert 0.9 < time.monotonic() - start < 5
    assert len(server.seen) == 2


def test_a_server_that_asks_for_an_hour_is_not_waited_for(serve, tmp_path):
    server = serve(lambda n, request, headers: (429, "quota", {"Retry-After": "3600"}))
    with pytest.raises(EndpointError, match="3600 s"):
        Endpoint(server.url, "m", tmp_path).complete([question("abc")])
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("status", "says"),
    [(401, "OPENAI_API_KEY is not set"), (404, "no such address or model"), (400, "context length"), (302, "HTTP 302")],
)
def test_a_refusal_is_final_and_says_what_to_do(serve, tmp_path, status, says):
    server = serve(lambda n, request, headers: (status, {"error": {"message": "context length"}}, {}))
    with pytest.raises(EndpointError, match=says) as caught:
        Endpoint(server.url, "m", tmp_path, max_concurrency=1).complete([question("a"), question("b")])
    assert len(server.seen) == 1
    assert "0 of 2 answers are safe in" in str(caught.value)


def test_exhausted_tries_name_the_last_failure(serve, tmp_path):
    server = serve(lambda n, request, headers: (200, reply(None), {}))
    with pytest.raises(EndpointError, match=r"3 tries.*holds no text.*\n.*conversation 0"):
        Endpoint(server.url, "m", tmp_path, retries=2).complete([question("a")])
    assert len(server.seen) == 3


def test_a_server_that_dies_midway_and_comes_back_loses_nothing(serve, tmp_path):
    server = serve(lambda n, request, headers: (200, good(request), {}) if n <= 5 else (None, None, None))
    port = server.http.server_port
    conversations = [question(f"question {i}") for i in range(12)]
    asker = Endpoint(server.url, "m", tmp_path, max_concurrency=3, retries=1)
    with pytest.raises(EndpointError, match=r"5 of 12 answers are safe in .*run the same again"):
        asker.complete(conversations)
    server.stop()
    with pytest.raises(EndpointError, match=r"ConnectError.*\n.* 5 of 12"):
        asker.complete(conversations)

    back = serve(port=port)
    assert said(asker, conversations) == [c[0]["content"][::-1] for c in conversations]
    assert len(back.seen) == 7


def test_a_server_back_within_the_tries_is_not_noticed(serve, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    late = threading.Timer(0.3, lambda: serve(port=port))
    late.start()
    asker = Endpoint(f"http://127.0.0.1:{port}/v1", "m", tmp_path, retries=10)
    assert said(asker, [question("abc")]) == ["cba"]
    late.join()


def test_a_killed_client_resumes(serve, tmp_path):
    server = serve(lambda n, request, headers: (time.sleep(0.1), (200, good(request), {}))[1])
    code = (
        "import sys; from sgpo_lib.judges.endpoint import Endpoint\n"
        "asker = Endpoint(sys.argv[1], 'm', sys.argv[2], max_concurrency=1)\n"
        "asker.complete([[{'role': 'user', 'content': str(i)}] for i in range(100)])"
    )
    client = subprocess.Popen([sys.executable, "-c", code, server.url, str(tmp_path)], stderr=subprocess.DEVNULL)
    while len(server.seen) < 6:
        assert client.poll() is None
        time.sleep(0.01)
    client.kill()
    client.wait()
    n_safe = len(list(tmp_path.rglob("*.json")))
    assert n_safe >= 5
    asker = Endpoint(server.url, "m", tmp_path)
    assert said(asker, [question(str(i)) for i in range(12)]) == [str(i)[::-1] for i in range(12)]
    assert asker.usage()["cache_hits"] == n_safe


def test_a_damaged_cache_file_is_asked_for_again(serve, tmp_path):
    server = serve()
    asker = Endpoint(server.url, "m", tmp_path)
    asker.complete([question("abc")])
    (file,) = tmp_path.rglob("*.json")
    file.write_text(file.read_text()[:20])
    assert said(asker, [question("abc")]) == ["cba"]
    assert json.loads(file.read_text())["content"] == "cba"


def test_texts_of_all_kinds_survive_the_way_and_the_cache(serve, tmp_path):
    server = serve()
    for text in ("", "żółw 🐢", '"quoted"\n\\', "\ufeff marked"):
        assert [said(Endpoint(server.url, "m", tmp_path), [question(text)]) for _ in "ab"] == [[text[::-1]]] * 2


def test_half_a_surrogate_pair_is_made_encodable_where_it_comes_in_and_in_older_caches(serve, tmp_path):
    server = serve(lambda n, request, headers: (200, reply("half \ud83d, whole \ud83d\udc22"), {}))
    asker = Endpoint(server.url, "m", tmp_path)
    assert [said(asker, [question("\ud800")]) for _ in "ab"] == [["half \ufffd, whole 🐢"]] * 2
    refusing = serve(lambda n, request, headers: (400, {"error": "flagged \ud83d"}, {}))
    (refused,) = Endpoint(refusing.url, "m", tmp_path / "other").complete([question("a")], max_unanswered=1)
    assert "flagged \ufffd" in refused.problem


def test_conversations_that_a_server_refuses_are_told_and_the_others_answered(serve, tmp_path):
    def filters(n, request, headers):
        bad = request["messages"][0]["content"] == "bad"
        return (400, {"error": "content_filter"}, {}) if bad else (200, good(request), {})

    server = serve(filters)
    asker = Endpoint(server.url, "m", tmp_path)
    replies = asker.complete([question(text) for text in ("abc", "bad", "def")], max_unanswered=1)
    assert [each.text for each in replies] == ["cba", None, "fed"]
    assert "HTTP 400" in replies[1].problem
    assert (asker.usage()["answers"], asker.usage()["unanswered"]) == (2, 1)
    with pytest.raises(EndpointError, match=r"No more than 1 may stay without an answer\. 2 of 4 answers"):
        Endpoint(serve(lambda n, *_: (400, "no", {})).url, "m", tmp_path).complete(
            [question(text) for text in ("abc", "bad", "def", "worse")], max_unanswered=1
        )


@pytest.mark.parametrize("status", [401, 402, 404])
def test_what_a_server_refuses_to_everyone_is_not_borne(serve, tmp_path, status):
    server = serve(lambda n, request, headers: (status, "no", {}))
    with pytest.raises(EndpointError, match=f"HTTP {status}"):
        Endpoint(server.url, "m", tmp_path, max_concurrency=1).complete(
            [question("a"), question("b")], max_unanswered=2
        )
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("content", "finish_reason", "n_requests"),
    [
        ("", "length", 1),
        (None, "length", 1),
        ("<think>Both are good, so m", "length", 1),
        ("half a text", "content_filter", 1),
        ("half a text", "error", 2),
        ("half a text", "abort", 2),
        (None, "stop", 2),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "m"}]}], "stop", 2),
    ],
)
def test_what_is_no_answer_is_neither_returned_nor_kept(serve, tmp_path, content, finish_reason, n_requests):
    server = serve(lambda n, request, headers: (200, reply(content, finish_reason=finish_reason), {}))
    asker = Endpoint(server.url, "m", tmp_path, retries=1)
    (got,) = asker.complete([question("a")], max_unanswered=1)
    assert got.text is None
    assert got.problem
    assert len(server.seen) == n_requests
    assert not list(tmp_path.rglob("*.json"))


def test_what_an_older_cache_kept_though_it_is_no_answer_is_asked_for_again(serve, tmp_path):
    asker = Endpoint(serve().url, "m", tmp_path)
    asker.complete([question("abc")])
    (file,) = tmp_path.rglob("*.json")
    file.write_text(json.dumps({"content": "", "finish_reason": "length"}))
    assert said(asker, [question("abc")]) == ["cba"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("<think>m is better</think>M", "M"),
        ("the opener was in the prompt: m</think>\n\nM", "M"),
        ("<think>a</think>m<think>\nno, </think>M", "M"),
        ("[THINK]m[/THINK]M", "M"),
        ("Output (a) has a stray <think> tag.\nM", "Output (a) has a stray <think> tag.\nM"),
        ("<think>never closed, m", ""),
        ([{"type": "thinking", "thinking": "m"}, {"type": "text", "text": "M"}], "M"),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab"),
    ],
)
def test_an_answer_is_what_follows_the_thoughts(serve, tmp_path, content, text):
    server = serve(lambda n, request, headers: (200, reply(content, finish_reason="stop"), {}))
    (got,) = Endpoint(server.url, "m", tmp_path).complete([question("a")])
    assert (got.text.strip(), got.is_cut) == (text, False)


def test_whatever_json_a_server_sends_is_an_encodable_answer_or_a_problem_in_words(serve, tmp_path):
    draws = random.Random(0)
    odd = [None, True, -1, 2**100, float("nan"), "", "m", "\ud800", "<think>", "length", "error", [], {}, [[]], [{}]]
    odd += [[{"type": "text"}], [{"type": "text", "text": 3}], [{"type": [], "text": "a"}]]

    def mutated(value):
        if draws.random() < 0.15:
            return draws.choice(odd)
        if isinstance(value, dict):
            return {key: mutated(each) for key, each in value.items() if draws.random() > 0.05}
        return [mutated(each) for each in value] if isinstance(value, list) else value

    usual = reply("M", finish_reason="stop") | {"usage": {"prompt_tokens": 1, "completion_tokens": 2}}
    bodies = [json.dumps(mutated(usual)) for _ in range(300)]
    server = serve(lambda n, request, headers: (200, bodies[int(request["messages"][0]["content"])], {}))
    asker = Endpoint(server.url, "m", tmp_path, retries=0)
    replies = asker.complete([question(str(i)) for i in range(300)], max_unanswered=300)
    assert 50 < sum(each.text is None for each in replies) < 250
    assert all((each.text or each.problem).encode() for each in replies if each.text != "")


def test_a_single_token_that_fills_the_longest_answer_is_one(serve, tmp_path):
    server = serve(lambda n, request, headers: (200, reply("M", finish_reason="length"), {}))
    assert Endpoint(server.url, "m", tmp_path, max_tokens=1).complete([question("a")]) == [Reply("M", is_cut=True)]


def test_the_key_is_sent_but_found_nowhere_else(serve, tmp_path, monkeypatch, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("JUDGE_API_KEY", f" {KEY}\n")

    def tells_all(n, request, headers):
        sent = headers["Authorization"]
        escaped = json.dumps({"error": sent}).replace("/", "\\/").replace("-", "\\u002d")
        kinds = {
            "echo": (200, reply(f"you sent {sent}"), {}),
            "refuse": (401, {"error": f"bad {sent}"}, {}),
            "mask": (401, f"Incorrect key {sent[7:15]}***{sent[-4:]}", {}),
            "escape": (400, escaped, {}),
            "fail": (500, f"x {sent} y", {}),
            "reason": (200, reply(None, finish_reason=sent), {}),
            "garble": (200, f"not json {'.' * 270} {sent}", {}),
        }
        return kinds[request["messages"][0]["content"]]

    server = serve(tells_all)
    asker = Endpoint(server.url, "m", tmp_path, api_key_variable="JUDGE_API_KEY", retries=1)
    told = [*said(asker, [question("echo")]), repr(asker), str(asker.usage())]
    for kind in ("refuse", "fail", "mask", "escape", "reason", "garble"):
        with pytest.raises(EndpointError) as caught:
            asker.complete([question(kind)])
        frames = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
        told += [str(caught.value), repr(caught.value), *frames.format()]
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None
    assert all(headers["Authorization"] == f"Bearer {KEY}" for *_, headers in server.seen)
    assert "[API key]" in told[0]

    told += [record.getMessage() for record in caplog.records] + list(capfd.readouterr())
    told += [file.read_text() + file.name for file in tmp_path.rglob("*") if file.is_file()]
    assert any("chat/completions" in text for text in told)
    told = [text.replace("\\u002d", "-").replace("\\/", "/") for text in told]
    assert [text for text in told if KEY[5:-5] in text or KEY[:8] in text or KEY[-6:] in text] == []


@pytest.mark.parametrize("secret", ["two words", "line\nbreak", "zażółć-gęślą-jaźń", 'quo"ted-0123456789'])
def test_a_key_that_cannot_be_one_is_refused_without_being_shown(tmp_path, monkeypatch, secret):
    monkeypatch.setenv("OPENAI_API_KEY", secret)
    with pytest.raises(ValueError, match="OPENAI_API_KEY does not hold an API key") as caught:
        Endpoint("http://127.0.0.1:9/v1", "m", tmp_path).complete([question("a")])
    assert secret not in str(caught.value)


@pytest.mark.parametrize("name", ["HOME", "AWS_SECRET_ACCESS_KEY", "_API_KEY", KEY, "OPENAI_API_KEY\n"])
def test_only_variables_that_look_like_keys_are_read_and_what_is_there_instead_is_not_shown(tmp_path, name):
    with pytest.raises(ValueError, match="ends in _API_KEY or _TOKEN") as refused:
        Endpoint("http://me:hidden@127.0.0.1:9/v1", "m", tmp_path, api_key_variable=name)
    assert KEY not in str(refused.value)


@pytest.mark.parametrize("host", ["judge.example", "10.0.0.7", "127.0.0.1.example", "localhost.example"])
def test_a_key_goes_unencrypted_to_loopback_only(tmp_path, monkeypatch, host):
    monkeypatch.setenv("JUDGE_TOKEN", KEY)
    with pytest.raises(ValueError, match=rf"JUDGE_TOKEN would go to http://{host}/v1 unencrypted") as refused:
        Endpoint(f"http://{host}/v1", "m", tmp_path, api_key_variable="JUDGE_TOKEN").complete([question("a")])
    assert KEY not in str(refused.value)


def test_the_key_of_a_local_server_goes_to_no_proxy(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server, proxy = serve(), serve()
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy.url.removesuffix("/v1"))
    assert said(Endpoint(server.url, "m", tmp_path), [question("abc")]) == ["cba"]
    assert proxy.seen == []


def test_without_a_key_none_is_sent(serve, tmp_path):
    server = serve()
    Endpoint(server.url, "m", tmp_path).complete([question("a")])
    assert "Authorization" not in server.seen[0][3]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"url": "localhost:8000/v1"}, "not the base url"),
        ({"url": "http://"}, "not the base url"),
        ({"url": "http://host/v1?key=1"}, "not the base url"),
        ({"url": "http://me:hidden@host/v1"}, "user name or password"),
        ({"max_concurrency": 0}, "max_concurrency is 0"),
        ({"retries": -1}, "retries is -1"),
    ],
)
def test_an_endpoint_that_cannot_be_is_refused(tmp_path, options, says):
    with pytest.raises(ValueError, match=says) as caught:
        Endpoint(**{"url": "http://host/v1", "model": "m", "cache_dir": tmp_path} | options)
    assert "hidden" not in str(caught.value)


def healthy(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def transformers_server(tiny_model):
    """Serve the tiny model with `transformers serve`; give the base url."""
    missing = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"`transformers serve` needs {' and '.join(missing)}: pip install 'transformers[serving]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve", str(tiny_model)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment) as server:
        try:
            while not healthy(port):
                if server.poll() is not None:
                    pytest.fail(server.stdout.read().decode()[-2000:])
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.kill()


def test_transformers_serve_answers(transformers_server, tiny_model, tmp_path):
    asker = Endpoint(transformers_server, str(tiny_model), tmp_path, max_concurrency=2, max_tokens=6)
    conversations = [question("Hello"), question("What is a table?")]
    answers = said(asker, conversations)
    assert all(isinstance(answer, str) for answer in answers)
    used = asker.usage()
    assert used["requests"] == used["answers"] == 2
    assert used["prompt_tokens"] > 0
    assert 0 < used["completion_tokens"] <= 12
    assert said(asker, conversations) == answers
    assert asker.usage()["requests"] == 2
