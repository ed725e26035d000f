"""The error tree: what every error of ours must be able to do."""

from __future__ import annotations

import copy
import pickle

import pytest

from deployments.errors import Overloaded, RaglaneError


def tree(root: type[RaglaneError] = RaglaneError) -> list[type[RaglaneError]]:
    return [root, *(descendant for child in root.__subclasses__() for descendant in tree(child))]


ERRORS = sorted({error for error in tree() if error.__module__ == "deployments.errors"}, key=lambda e: e.__name__)


def test_the_whole_tree_is_found() -> None:
    assert len(ERRORS) >= 14


@pytest.mark.parametrize("error", ERRORS)
def test_every_error_says_what_it_means(error: type[RaglaneError]) -> None:
    assert error.__dict__.get("__doc__")


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("again", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy], ids=["pickle", "copy"])
def test_every_error_travels_with_its_message(error: type[RaglaneError], again: object) -> None:
    assert callable(again)
    travelled = again(error("The moon is full; wait."))
    assert type(travelled) is error
    assert travelled.message == str(error("The moon is full; wait.").message) == "The moon is full; wait."


def test_overload_travels_with_the_time_to_wait() -> None:
    travelled = pickle.loads(pickle.dumps(Overloaded("full", retry_after_s=7.5)))
    assert (travelled.message, travelled.retry_after_s) == ("full", 7.5)


@pytest.mark.parametrize("error", ERRORS)
def test_the_text_of_an_error_is_its_message(error: type[RaglaneError]) -> None:
    assert str(error("The moon is full; wait.")) == "The moon is full; wait."
