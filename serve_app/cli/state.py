"""The state file: what a running server writes down about itself, so that other commands can find it."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from serve_app.cli.processes import ProcessId


@dataclass(frozen=True, slots=True)
class ServerState:
    """One server. `haproxy_config` is the file that its HAProxy, and no other server's, was started with;
    `processes` are those that it had started when it last wrote, should it die without stopping them."""

    server: ProcessId
    status: Literal["starting", "ready"]
    url: str
    port: int
    profile: str
    version: str
    started_at: float
    haproxy: ProcessId | None = None
    haproxy_config: str = ""
    processes: tuple[ProcessId, ...] = ()


class StateFile:
    """`server.json` in a data directory; written whole or not at all."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.path = data_dir / "server.json"
        self.log_path = data_dir / "server.log"

    def read(self) -> ServerState | None:
        """The state as last written, or None. A file that can't be understood counts as none."""
        try:
            fields = json.loads(self.path.read_text())
            fields["server"] = ProcessId(**fields["server"])
            if fields.get("haproxy") is not None:
                fields["haproxy"] = ProcessId(**fields["haproxy"])
            fields["processes"] = tuple(ProcessId(**process) for process in fields["processes"])
            return ServerState(**fields)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError):
            return None

    def read_running(self) -> ServerState | None:
        """The state, if the process that wrote it is still alive."""
        state = self.read()
        return state if state is not None and state.server.is_alive() else None

    def write(self, state: ServerState) -> None:
        draft = self.path.with_suffix(f".{os.getpid()}.tmp")
        draft.write_text(json.dumps(dataclasses.asdict(state), indent=2) + "\n")
        draft.replace(self.path)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
