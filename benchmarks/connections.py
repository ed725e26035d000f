"""Connections to the server under load, cheap enough not to be what is measured."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

import aiohttp
from yarl import URL

# Shorter than uvicorn's 5 s, so that no request is lost to a connection that the server is just closing.
KEEPALIVE_EXPIRY_S = 2.0

# What else aiohttp would send by itself: a compressed answer would be measured as another one.
_NOT_ASKED_FOR = ("Accept-Encoding", "User-Agent")


def is_loopback(url: str) -> bool:
    """Whether the URL's host is this machine by its very name, without asking a resolver."""
    host = URL(url).host or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Connections:
    """Keep-alive connections to one server: as many as there are requests at a time, the caller's bound.

    With 64 closed-loop clients against a server that answers 8 kB at once, on 2 cores, a request takes 0.08 ms of the
    client's CPU; over httpx it took 0.45 ms, and 7.3 ms through the pool of httpcore 1.0.9. No proxy of the environment
    is used, no redirect followed, no cookie kept, no timeout set.
    """

    def __init__(self, url: str) -> None:
        self._url = URL(url)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_EXPIRY_S),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=_NOT_ASKED_FOR,
            trust_env=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    @asynccontextmanager
    async def request(
        self, method: str, path: str, *, headers: Mapping[str, str], body: bytes
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request and yield its response as soon as the headers are there. Raises aiohttp.ClientError.

        A connection whose answer was not read to its end is closed, never used again.
        """
        if self._session is None:
            raise RuntimeError("connections are made inside `async with`")
        url = self._url.join(URL(path))
        async with self._session.request(
            method, url, headers=headers, data=body or None, allow_redirects=False
        ) as response:
            yield response
