"""Serve config files as the command line reads and changes them."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, Field, ValidationError

from serve_app.cli.exits import ExitCode, Failure
from serve_app.cli.profile import (
    Document,
    check_arguments,
    find_profile,
    read_config,
    readable_errors,
    with_options,
    with_store,
)

OURS = {"name": "raglane", "import_path": "serve_app:build_app", "args": {"store": {"uri": "x", "other": 1}}}
THEIRS = {"name": "other", "import_path": "my_app:app"}


def test_options_win_over_the_file_and_the_file_over_the_defaults() -> None:
    document = {"applications": [], "http_options": {"host": "0.0.0.0", "port": 9000, "root_path": "/r"}}
    assert with_options(document, None, None)["http_options"] == {"host": "0.0.0.0", "port": 9000, "root_path": "/r"}
    assert with_options(document, "::", 1)["http_options"] == {"host": "::", "port": 1, "root_path": "/r"}
    assert with_options({"applications": []}, None, None)["http_options"] == {"host": "127.0.0.1", "port": 8000}
    assert document["http_options"] == {"host": "0.0.0.0", "port": 9000, "root_path": "/r"}


def test_only_raglanes_own_application_gets_the_store(tmp_path: Path) -> None:
    document = with_store({"applications": [OURS, THEIRS]}, tmp_path)
    ours, theirs = document["applications"]
    assert ours["args"] == {"store": {"uri": str(tmp_path / "lancedb"), "other": 1}}
    assert theirs == THEIRS


@pytest.mark.parametrize("application", [{"args": None}, {"args": {"store": None}}, {"args": {}}, {}])
def test_an_application_whose_arguments_are_left_empty_gets_the_store(application: Document, tmp_path: Path) -> None:
    document = with_store({"applications": [{"import_path": "serve_app:build_app", **application}]}, tmp_path)
    assert document["applications"][0]["args"] == {"store": {"uri": str(tmp_path / "lancedb")}}


@pytest.mark.parametrize("arguments", ["words", ["a", "list"], {"store": "words"}])
def test_arguments_of_the_wrong_shape_are_refused_rather_than_changed(arguments: object, tmp_path: Path) -> None:
    document = with_store({"applications": [OURS | {"args": arguments}]}, tmp_path)
    with pytest.raises(Failure, match="invalid args"):
        check_arguments(document)


def test_the_builder_counts_as_raglanes_own_under_both_of_its_names(tmp_path: Path) -> None:
    document = with_store({"applications": [{"import_path": "serve_app.app:build_app"}]}, tmp_path)
    assert document["applications"][0]["args"]["store"]["uri"] == str(tmp_path / "lancedb")


def test_the_store_of_a_relative_data_directory_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    document = with_store({"applications": [{"import_path": "serve_app:build_app"}]}, Path("data"))
    assert document["applications"][0]["args"]["store"]["uri"] == str(tmp_path / "data" / "lancedb")


@pytest.mark.parametrize("content", ["", "a: b", "applications: no", "[", "- 1"])
def test_a_file_that_is_no_serve_config_is_wrong_usage(tmp_path: Path, content: str) -> None:
    path = tmp_path / "app.yaml"
    path.write_text(content)
    with pytest.raises(Failure) as failure:
        read_config(path)
    assert failure.value.code is ExitCode.USAGE
    assert str(path) in failure.value.message


def test_an_unknown_profile_is_answered_with_the_known_ones() -> None:
    with pytest.raises(Failure) as failure:
        find_profile("lokal")
    assert "local" in failure.value.remedy


def test_the_local_profile_has_valid_arguments(tmp_path: Path) -> None:
    check_arguments(with_store(read_config(find_profile("local")), tmp_path))


def test_a_mistyped_argument_is_refused_with_its_key_and_the_nearest_one() -> None:
    application = OURS | {"args": {"store": {"urii": "x"}}}
    with pytest.raises(Failure) as failure:
        check_arguments({"applications": [application]})
    assert "\n  store: unknown key 'urii'" in failure.value.message
    assert "did you mean 'uri'" in failure.value.message


def test_arguments_of_other_applications_are_their_own_business() -> None:
    check_arguments({"applications": [THEIRS | {"args": {"anything": 1}}]})


def test_errors_are_lines_led_by_their_key() -> None:
    class Inner(BaseModel):
        size: int = Field(gt=0)

    class Outer(BaseModel):
        inner: Inner

    with pytest.raises(ValidationError) as error:
        Outer.model_validate({"inner": {"size": 0}})
    assert readable_errors(error.value) == ["inner.size: Input should be greater than 0"]
