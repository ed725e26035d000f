"""The environment of a server, and how progress and durations are shown."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from serve_app.cli.environment import EVERY_NODE, SINGLE_MACHINE, apply_settings, fixed_ports, haproxy_is_enabled
from serve_app.cli.options import data_dir
from serve_app.cli.render import Steps, duration, excerpt


def test_what_the_user_has_set_is_left_alone() -> None:
    environ = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "0", "RAY_SERVE_ENABLE_HA_PROXY": "0"}
    apply_settings(environ)
    assert environ["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "0"
    assert not haproxy_is_enabled(environ)
    assert environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_every_setting_is_named_once_and_says_why() -> None:
    settings = EVERY_NODE + SINGLE_MACHINE
    assert len({setting.name for setting in settings}) == len(settings)
    assert all(setting.reason.endswith(".") for setting in settings)


def test_only_haproxy_occupies_fixed_ports_and_they_can_be_moved() -> None:
    assert fixed_ports({}) == []
    environ = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_HAPROXY_STATS_PORT": "7000"}
    assert [port for _, port, _ in fixed_ports(environ)] == [9101, 7000, 8500]


def test_commands_in_a_checkout_find_the_server_of_make_run_while_it_has_its_state_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAGLANE_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".raglane").mkdir()
    assert data_dir(None) == tmp_path / "home" / ".raglane"
    (tmp_path / ".raglane" / "server.json").write_text("{}")
    assert data_dir(None) == tmp_path / ".raglane"
    monkeypatch.setenv("RAGLANE_DATA", str(tmp_path / "named"))
    assert data_dir(None) == tmp_path / "named"
    assert data_dir(tmp_path / "given") == tmp_path / "given"


def test_progress_without_a_terminal_is_a_plain_line_for_each_change() -> None:
    file = io.StringIO()
    with Steps(console=Console(file=file)) as steps:
        for text in ("starting [Ray]", "starting [Ray]", "ready"):
            steps.update(text)
    assert file.getvalue() == "starting [Ray]\nready\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5.9, "5 s"), (65, "1 min 5 s"), (3 * 3600 + 120, "3 h 2 min"), (2 * 86400 + 3600, "2 d 1 h")],
)
def test_a_duration_is_given_in_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_an_excerpt_is_one_line_of_limited_length() -> None:
    assert excerpt("a\n b\t c") == "a b c"
    assert excerpt("word " * 100, max_chars=12) == "word word w…"
