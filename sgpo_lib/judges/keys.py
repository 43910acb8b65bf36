"""API keys: read from the environment when needed, sent where they are safe, never shown."""

import contextlib
import ipaddress
import os
import re
from collections.abc import Generator

import httpx2

# Servers without accounts are given words such as EMPTY for a key, which an answer may well contain.
_SHORTEST_SECRET = 8


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


def check_url(url: str, variable: str) -> None:
    """Refuse what is not the plain base url of an endpoint, or holds a secret, which is not repeated.

    Raises
    ------
    ValueError
    """
    try:
        address = httpx2.URL(url)
    except httpx2.InvalidURL:
        address = httpx2.URL("")
    if address.userinfo:
        raise ValueError(
            "The endpoint's url holds a user name or password, which would end up in records: put the API key into the "
            f"environment variable {variable}."
        )
    if address.scheme not in ("http", "https") or not address.host or address.query or address.fragment:
        raise ValueError(f"{url!r} is not the base url of an endpoint, such as 'http://localhost:8000/v1'.")


def check_key(variable: str, url: str) -> None:
    """Refuse a key that is none, or that would go to `url` unencrypted; never repeats it.

    Raises
    ------
    ValueError : naming the variable.
    """
    if not re.fullmatch(r"[!#-\[\]-~]*", api_key(variable)):
        raise ValueError(
            f"The environment variable {variable} does not hold an API key: there are spaces, line breaks, quotes, "
            "backslashes or letters outside ASCII in it."
        )
    address = httpx2.URL(url)
    if api_key(variable) and address.scheme != "https" and not is_loopback(address.host):
        raise ValueError(
            f"The API key in {variable} would go to {url} unencrypted: use an https address or a tunnel to localhost. "
            "For a server that takes no key, let api_key_variable name a variable that is not set, such as NO_API_KEY."
        )


def without_key(text: str, variable: str) -> str:
    """Return a text with the API key in it, if any, made unreadable."""
    if len(api_key(variable)) < _SHORTEST_SECRET:
        return text
    return text.replace(api_key(variable), "[API key]")
