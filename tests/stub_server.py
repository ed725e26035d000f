"""A small HTTP server that answers with what a test tells it to, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, dict[str, str], bytes]
Handler = Callable[[Any], Reply]


def json_reply(body: Any, status: int = 200, **headers: str) -> Reply:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, {"content-type": "application/json", **names}, json.dumps(body).encode()


def error_reply(status: int, message: str, **headers: str) -> Reply:
    return json_reply({"error": {"type": "some_error", "message": message, "request_id": "r-1"}}, status, **headers)


@dataclass
class StubServer:
    """Routes are `"POST /v1/search"` and the like; a handler gets the request's JSON body."""

    routes: dict[str, Handler] = field(default_factory=dict)
    requests: list[tuple[str, Any]] = field(default_factory=list)
    url: str = ""

    def __enter__(self) -> StubServer:
        stub = self

        class Answers(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                raw = self.rfile.read(int(self.headers.get("content-length") or 0))
                body = json.loads(raw) if raw else None
                route = f"{self.command} {self.path}"
                stub.requests.append((route, body))
                missing: Handler = lambda _: error_reply(404, f"there is no {route}")  # noqa: E731
                status, headers, payload = stub.routes.get(route, missing)(body)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            do_GET = do_POST = _answer

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
