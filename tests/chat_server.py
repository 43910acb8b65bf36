"""A chat endpoint on loopback for tests: a real server that answers, or misbehaves on cue."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def good(request):
    """What a well-behaved server answers: the question, backwards."""
    content = request["messages"][-1]["content"][::-1]
    return reply(content) | {"usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}}


def reply(content, **choice):
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": content}, **choice}]}


class Server:
    """A chat endpoint on loopback that behaves as told, request by request."""

    def __init__(self, behave=None, port=0):
        self.behave = behave or (lambda n, request, headers: (200, good(request), {}))
        self.seen, self.under_way, self.most_under_way = [], 0, 0
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server.lock:
                    server.seen.append((time.monotonic(), self.path, request, dict(self.headers)))
                    n = len(server.seen)
                    server.under_way += 1
                    server.most_under_way = max(server.most_under_way, server.under_way)
                try:
                    status, body, headers = server.behave(n, request, self.headers)
                finally:
                    with server.lock:
                        server.under_way -= 1
                if status is None:  # die without a word
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                body = body.encode() if isinstance(body, str) else json.dumps(body).encode()
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.http.daemon_threads = True
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.http.server_port}/v1"

    def stop(self):
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@contextlib.contextmanager
def servers() -> Iterator[Callable[..., Server]]:
    """Give what starts servers; stop all of them in the end."""
    started = []

    def start(behave=None, port=0) -> Server:
        started.append(Server(behave, port))
        return started[-1]

    try:
        yield start
    finally:
        for server in started:
            server.stop()
