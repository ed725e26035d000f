"""How a run of the tests begins and ends."""

from __future__ import annotations

import os
import sys

import pytest
from hypothesis import HealthCheck, settings

# How fast an example runs says something of the machine, nothing of what is tested.
settings.register_profile("raglane", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("raglane")

_EXIT_STATUS = pytest.StashKey[int]()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[_EXIT_STATUS] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End without taking the interpreter apart.

    Batchers that tests started have daemon threads in native engines. Tearing those libraries down below them ends in
    a crash now and then, after every test has had its say; a server's replicas are killed and never get there.
    """
    if _EXIT_STATUS in config.stash:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(config.stash[_EXIT_STATUS])
