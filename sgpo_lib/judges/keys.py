"""API keys: read from the environment when needed, sent where they are safe, never shown."""

import contextlib
import ipaddress
import os
from collections.abc import Generator

import httpx2

# Servers without accounts are given words such as EMPTY for a key, which an answer may well contain.
SHORTEST_SECRET = 8


class BearerFromEnvironment(httpx2.Auth):
    """Puts the API key into a request's header as it is sent."""

    def __init__(self, variable: str):
        """Take the environment variable's name."""
        self.variable = variable

    def auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        """Put the key, as it is now, into a request's header."""
        if api_key(self.variable):
            request.headers["Authorization"] = f"Bearer {api_key(self.variable)}"
        yield request


def api_key(variable: str) -> str:
    """Return the key that the environment variable holds, empty where there is none."""
    # Never bound to a name: tracebacks can be asked to show the variables of every frame.
    return os.environ.get(variable, "").strip()


def is_loopback(host: str) -> bool:
    """Say whether a url names this machine."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
