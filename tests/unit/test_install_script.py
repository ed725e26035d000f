"""requirements/install.sh: what it asks of Python and pip, for which a stub stands in."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "requirements" / "install.sh"

# Any Python: notes its arguments, makes an environment of itself, and is without pip where there is no bin/pip.
PYTHON = """#!/bin/sh
here=$(dirname "$0")
echo "$*" >>"$CALLS"
case "$*" in
    --version) echo Python 3.11.0 ;;
    "-m venv "*)
        for folder; do :; done
        mkdir -p "$folder/bin" "$folder/lib/python3.11/site-packages"
        cp "$0" "$folder/bin/python"
        [ ! -e "$here/no-ensurepip" ] || exit 1
        touch "$folder/bin/pip"
        ;;
    "-m pip install"*) [ -e "$here/pip" ] && [ ! -e pip-fails ] ;;
    "-m pip"*) [ -e "$here/pip" ] ;;
esac
"""


class Checkout:
    """A folder with the script, two locks and a stub for Python."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tools = folder / "tools"
        (folder / "requirements").mkdir()
        shutil.copy(SCRIPT, folder / "requirements")
        (folder / "requirements" / "cpu.lock").write_text("torch==2.13.0\nray==2.60.0\n")
        (folder / "requirements" / "dev.lock").write_text("pytest==9.0.0\n")
        (folder / "pyproject.toml").touch()
        self.tools.mkdir()
        (self.tools / "python3").write_text(PYTHON)
        (self.tools / "python3").chmod(0o755)

    def install(self, *arguments: str, code: int = 0) -> list[str]:
        """Run the script; returns what it asked of Python to change, in order."""
        calls = self.folder / "calls"
        calls.write_text("")
        environ = {"PATH": f"{self.tools}{os.pathsep}{os.environ['PATH']}", "KIND": "cpu", "CALLS": str(calls)}
        done = subprocess.run(
            ["bash", str(self.folder / "requirements" / "install.sh"), *arguments],
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
        return [call for call in calls.read_text().splitlines() if call.startswith("-m ") and "--version" not in call]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_a_fresh_checkout_gets_an_environment_with_the_lock(checkout: Checkout) -> None:
    calls = checkout.install()
    assert calls[0].startswith("-m venv ")
    assert any("-r requirements/cpu.lock" in call for call in calls)
    assert any("--editable ." in call for call in calls)
    assert not any("dev.lock" in call for call in calls)


def test_everything_is_compiled_once_after_all_of_it_is_in(checkout: Checkout) -> None:
    *others, last = checkout.install("dev")
    assert last.startswith("-m compileall ")
    assert last.endswith("/site-packages")
    assert all("--no-compile" in call for call in others if call.startswith("-m pip install"))


def test_a_second_setup_does_nothing_whichever_of_the_two_came_before(checkout: Checkout) -> None:
    assert checkout.install()
    assert checkout.install() == []
    assert any("-r requirements/dev.lock" in call for call in checkout.install("dev"))
    assert checkout.install("dev") == checkout.install() == checkout.install("dev") == []


@pytest.mark.parametrize("arguments", [(), ("dev",)])
def test_a_changed_lock_is_installed(checkout: Checkout, arguments: tuple[str, ...]) -> None:
    checkout.install("dev")
    (checkout.folder / "requirements" / "cpu.lock").write_text("torch==2.14.0\n")
    assert any("-r requirements/cpu.lock" in call for call in checkout.install(*arguments))


def test_an_environment_without_pip_is_made_anew(checkout: Checkout) -> None:
    broken = checkout.tools / "no-ensurepip"
    broken.touch()
    assert len(checkout.install(code=1)) == 1
    assert (checkout.folder / ".venv" / "bin" / "python").exists()
    broken.unlink()
    assert checkout.install()[0] == "-m venv --clear .venv"
    assert checkout.install() == []


def test_an_install_that_failed_is_not_taken_for_the_one_before_it(checkout: Checkout) -> None:
    checkout.install()
    lock = checkout.folder / "requirements" / "cpu.lock"
    before = lock.read_text()
    lock.write_text("torch==2.14.0\n")
    (checkout.folder / "pip-fails").touch()
    checkout.install(code=1)
    (checkout.folder / "pip-fails").unlink()
    lock.write_text(before)
    assert checkout.install()
