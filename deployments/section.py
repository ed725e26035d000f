"""The base of every config section: frozen, read once, and strict about the names of its keys."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from deployments.errors import ConfigError


class Section(BaseModel):
    """A frozen section. A key that it does not know is refused with the key's name and the nearest valid one."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for key in data:
            if key not in cls.model_fields:
                near = difflib.get_close_matches(str(key), cls.model_fields, n=1, cutoff=0.0)
                raise ValueError(f"unknown key {key!r} in {cls.__name__}; did you mean {near[0]!r}?")
        return data


def load_engine(path: str, *arguments: Any) -> Any:
    """Build the engine named `module:Class` by calling the class with its stage's config and resources.

    Raises ConfigError where the path does not name an importable class; errors of the constructor pass through.
    """
    module_name, _, class_name = path.partition(":")
    if not module_name or not class_name:
        raise ConfigError(f"engine {path!r} is not an import path; write it as 'module:Class'")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise
        raise ConfigError(f"engine {path!r}: there is no module {module_name!r}") from error
    try:
        engine_class = getattr(module, class_name)
    except AttributeError:
        raise ConfigError(f"engine {path!r}: module {module_name!r} has no {class_name!r}") from None
    return engine_class(*arguments)
