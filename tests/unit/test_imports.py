"""What importing costs: heavy libraries belong into engine constructors, and Ray not into the client commands."""

from __future__ import annotations

import inspect
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import deployments
import serve_app
from serve_app.app import build_app
from serve_app.config import AppConfig

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "vllm", "sentence_transformers", "transformers", "lancedb", "pyarrow", "openvino")

# Is imported by nothing but the replica that runs vLLM, and is vLLM's subclass: it can't be lighter.
INSIDE_VLLM = {"deployments.vllm_server"}

_PROBE = """
import importlib, json, sys
suspects, blamed = json.loads(sys.argv[1]), {}
for module in sys.argv[2:]:
    importlib.import_module(module)
    for suspect in suspects:
        if suspect in sys.modules:
            blamed.setdefault(suspect, module)
print(json.dumps(blamed))
"""


def _modules() -> list[str]:
    packages = (serve_app, deployments)
    found = [
        info.name for package in packages for info in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
    ]
    return sorted({*found, "serve_app", "deployments"} - INSIDE_VLLM)


def _loaded_by(modules: list[str], suspects: tuple[str, ...]) -> dict[str, str]:
    """The suspects that a fresh interpreter loads when it imports the modules in order, and which one loaded each."""
    command = [sys.executable, "-c", _PROBE, json.dumps(suspects), *modules]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    loaded: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return loaded


def test_the_probe_sees_what_a_module_imports() -> None:
    assert _loaded_by(["json", "pyarrow"], HEAVY) == {"pyarrow": "pyarrow"}


def test_no_module_loads_a_heavy_library_on_import() -> None:
    modules = _modules()
    assert {"deployments.embedder", "deployments.store", "serve_app.app", "serve_app.cli.server"} <= set(modules)
    assert _loaded_by(modules, HEAVY) == {}


def test_client_commands_configuration_and_lane_do_not_load_ray() -> None:
    modules = [
        "serve_app",
        "serve_app.cli.main",
        "serve_app.config",
        "serve_app.pipeline",
        "serve_app.serve_file",
        "serve_app.api.app",
        "deployments.batching",
        "deployments.hop",
        "deployments.ingestion.loaders",
    ]
    assert _loaded_by(modules, ("ray",)) == {}


def test_the_kitchen_does_not_load_the_front_of_house() -> None:
    modules = [module for module in _modules() if module.startswith("deployments")]
    assert _loaded_by(modules, ("serve_app",)) == {}


def test_serve_finds_a_class_in_the_builders_annotation() -> None:
    """A string there would make Serve pass a plain dict."""
    (parameter,) = inspect.signature(build_app).parameters.values()
    assert parameter.annotation is AppConfig


def test_the_package_exports_the_builder_and_nothing_else() -> None:
    assert serve_app.__all__ == ["build_app"]
    assert serve_app.build_app is build_app
