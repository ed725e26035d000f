"""An application on a real socket of this machine, for clients that are tested over HTTP."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from threading import Thread

import uvicorn
from starlette.applications import Starlette

# Idle connections live for longer than any test: one that is closed under a client that reuses it is a failed request.
KEEP_ALIVE_S = 3600


@asynccontextmanager
async def listening(app: Starlette) -> AsyncIterator[str]:
    """The address of the application while this event loop serves it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = _server(app)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield _address(listener)
        finally:
            server.should_exit = server.force_exit = True
            await task


@contextmanager
def listening_in_thread(app: Starlette) -> Iterator[str]:
    """The address of the application while a thread of its own serves it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = _server(app)
        thread = Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield _address(listener)
        finally:
            server.should_exit = server.force_exit = True
            thread.join()


def _server(app: Starlette) -> uvicorn.Server:
    return uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", timeout_keep_alive=KEEP_ALIVE_S))


def _address(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"
