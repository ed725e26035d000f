"""Counts tokens as the generator will, with the `tokenizers` library alone: light enough for the ingress."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deployments.errors import ConfigError

if TYPE_CHECKING:
    from jinja2 import Template
    from tokenizers import Tokenizer

# Where a model has no chat template that we can render: role names and turn markers take about six tokens, and the
# longest preamble of a common template (a knowledge cut-off date and a default system prompt) about fifty.
MESSAGE_OVERHEAD_TOKENS = 8
CONVERSATION_OVERHEAD_TOKENS = 64

_SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


class TokenCounter:
    """Token counts of one model's tokenizer, remembered for the texts seen last.

    `source` is a folder or a hub id; `chat_template` replaces the model's own and is a path or the template itself.
    """

    def __init__(
        self,
        source: str,
        chat_template: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        cache_size: int = 4096,
    ) -> None:
        find = _file_finder(source)
        self._tokenizer = _load_tokenizer(source, find)
        config = _read_json(find("tokenizer_config.json"))
        self._template = _compile(_template_text(chat_template, find, config))
        self._variables = {**_special_tokens(config), **(template_kwargs or {})}
        self._cached_count = lru_cache(cache_size)(self._encoded_length)

    def count(self, text: str) -> int:
        """Tokens of `text` alone, without what a tokenizer may add at its ends."""
        return self._cached_count(text)

    def count_messages(self, messages: Sequence[Mapping[str, str]]) -> int:
        """Tokens of the whole prompt: exact where the chat template can be rendered here, else an upper bound."""
        prompt = self._render(messages)
        if prompt is not None:
            return self._encoded_length(prompt)
        contents = sum(self.count(message["content"]) for message in messages)
        return contents + MESSAGE_OVERHEAD_TOKENS * len(messages) + CONVERSATION_OVERHEAD_TOKENS

    def _encoded_length(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _render(self, messages: Sequence[Mapping[str, str]]) -> str | None:
        from jinja2 import TemplateError

        if self._template is None:
            return None
        try:
            return self._template.render(
                messages=[dict(message) for message in messages], add_generation_prompt=True, **self._variables
            )
        except (TemplateError, TypeError, ValueError):  # a template may need what only transformers passes
            return None


def _file_finder(source: str) -> Callable[[str], Path | None]:
    """How to get a file of the model by name: from its folder, or from the hub and its local cache."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return lambda name: path if (path := folder / name).is_file() else None

    def from_hub(name: str) -> Path | None:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

        try:
            return Path(hf_hub_download(source, name))
        except LocalEntryNotFoundError as error:
            raise ConfigError(f"no tokenizer at {source!r}: not a folder, and the hub is out of reach") from error
        except EntryNotFoundError:
            return None
        except (HFValidationError, OSError) as error:
            raise ConfigError(f"no tokenizer at {source!r}: not a folder, and the hub says {error}") from error

    return from_hub


def _load_tokenizer(source: str, find: Callable[[str], Path | None]) -> Tokenizer:
    from tokenizers import Tokenizer

    path = find("tokenizer.json")
    if path is None:
        raise ConfigError(f"no tokenizer.json at {source!r}; set tokenizer_source to a place that has one")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _template_text(given: str | None, find: Callable[[str], Path | None], config: Mapping[str, Any]) -> str | None:
    if given is not None:
        # A template holds braces, a path does not: the same rule as vLLM's.
        return given if "{" in given else Path(given).expanduser().read_text(encoding="utf-8")
    path = find("chat_template.jinja")
    if path is not None:
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several named templates
        template = next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    return template


def _compile(text: str | None) -> Template | None:
    """Prepare a Hugging Face chat template in the environment that such templates are written for."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    if text is None:
        return None

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    try:
        return environment.from_string(text)
    except jinja2.TemplateError:
        return None


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens that templates refer to; older files write them as objects."""
    tokens = {name: config.get(name) for name in _SPECIAL_TOKENS}
    return {name: token["content"] if isinstance(token, dict) else token for name, token in tokens.items() if token}


def _read_json(path: Path | None) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path else {}
    return content
