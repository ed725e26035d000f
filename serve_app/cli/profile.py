"""Serve config files: where the profiles are, and what the command line's options change in one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from serve_app.cli.exits import ExitCode, Failure
from serve_app.config import AppConfig
from serve_app.serve_file import is_raglane

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8000

# In a checkout the files stand in deploy/ at its root; an installation may carry them inside the package.
_PROFILE_FOLDERS = (Path(__file__).parents[2] / "deploy", Path(__file__).parents[1] / "deploy")

Document = dict[str, Any]


def find_profile(name: str) -> Path:
    """The Serve config file of a profile."""
    for folder in _PROFILE_FOLDERS:
        if (path := folder / f"{name}.yaml").is_file():
            return path
    known = sorted({path.stem for folder in _PROFILE_FOLDERS for path in folder.glob("*.yaml") if _is_serve_file(path)})
    raise Failure(
        f"there is no profile {name!r}.",
        f"Choose one of {', '.join(known) or 'none found'}, or give your own file with --config.",
        ExitCode.USAGE,
    )


def _is_serve_file(path: Path) -> bool:
    document = yaml.safe_load(path.read_text())
    return isinstance(document, dict) and "applications" in document


def read_config(path: Path) -> Document:
    """Read a Serve config file with at least one application."""
    try:
        document = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise Failure(f"there is no config file {path}.", code=ExitCode.USAGE) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise Failure(f"{path} can't be read as YAML: {error}", code=ExitCode.USAGE) from error
    if not isinstance(document, dict) or not isinstance(document.get("applications"), list):
        raise Failure(f"{path} is not a Serve config file: it has no list of `applications`.", code=ExitCode.USAGE)
    return document


def with_options(document: Document, host: str | None, port: int | None) -> Document:
    """The document with the HTTP address that the options name; what they leave open comes from the file.

    A file without a host listens on this machine only, where Serve's own default is every interface.
    """
    document = copy.deepcopy(document)
    http = document.setdefault("http_options", {}) or {}
    document["http_options"] = http
    http["host"] = host or http.get("host") or DEFAULT_HOST
    http["port"] = port or http.get("port") or DEFAULT_PORT
    return document


def with_store(document: Document, data_dir: Path) -> Document:
    """The document with raglane's own applications keeping their store in `data_dir`."""
    document = copy.deepcopy(document)
    for application in _raglane_applications(document):
        # An empty `args:` or `store:` in YAML is null; whatever else is no mapping is for the checks to name.
        arguments = application["args"] = application.get("args") or {}
        if isinstance(arguments, dict) and isinstance(store := arguments.get("store") or {}, dict):
            arguments["store"] = {**store, "uri": str(data_dir.absolute() / "lancedb")}
    return document


def check_arguments(document: Document) -> None:
    """Refuse arguments that raglane's configuration does not take, before anything is started."""
    for application in _raglane_applications(document):
        try:
            AppConfig.model_validate(application.get("args") or {})
        except ValidationError as error:
            problems = "".join(f"\n  {line}" for line in readable_errors(error))
            raise Failure(f"the config file has invalid args:{problems}") from error


def readable_errors(error: ValidationError) -> list[str]:
    """One line for each thing that is wrong, led by the key it is about."""
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or "args"
        lines.append(f"{key}: {item['msg'].removeprefix('Value error, ')}")
    return lines


def _raglane_applications(document: Document) -> list[Document]:
    return [item for item in document["applications"] if isinstance(item, dict) and is_raglane(item)]
