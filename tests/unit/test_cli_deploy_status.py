"""What the command line makes of Serve's status."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from serve_app.cli.deploy_status import (
    cause_and_tail,
    failure_message,
    is_running,
    progress_line,
    unschedulable_message,
)

TRACEBACK = """The deployment failed to start 3 times in a row. Error:
\x1b[36mray::ServeReplica:a:Embedder.initialize_and_get_metadata()\x1b[39m (pid=1, ip=10.0.0.1)
RuntimeError: Traceback (most recent call last):
  File "replica.py", line 1, in initialize
    await wrapper.initialize_callable()
          ^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "embedder.py", line 7, in __init__
    raise ConfigError("there is no model folder /nope")
deployments.errors.ConfigError: there is no model folder /nope
"""


def deployment(status: str, message: str = "", **replicas: int) -> Any:
    return SimpleNamespace(status=status, message=message, replica_states=replicas)


def application(status: str, message: str = "", **deployments: Any) -> Any:
    return SimpleNamespace(status=status, message=message, deployments=deployments)


def test_progress_names_what_is_not_ready_yet() -> None:
    app = application(
        "DEPLOYING",
        Embedder=deployment("UPDATING", STARTING=1, RUNNING=1),
        Retriever=deployment("HEALTHY", RUNNING=1),
        Ingress=deployment("UPDATING"),
    )
    line = progress_line([app])
    assert line == "1/3 deployments ready; starting Embedder (1 running, 1 starting), Ingress (waiting)"


def test_progress_before_any_deployment_says_that_the_application_is_built() -> None:
    assert progress_line([application("DEPLOYING")]) == "building the application"


def test_only_applications_that_all_run_are_running() -> None:
    assert is_running([application("RUNNING")])
    assert not is_running([application("RUNNING"), application("DEPLOYING")])
    assert not is_running([])


def test_a_failed_deployment_is_told_with_its_cause_first() -> None:
    app = application("DEPLOY_FAILED", "Failed to update", Embedder=deployment("DEPLOY_FAILED", TRACEBACK))
    message = failure_message([app])
    assert message is not None
    first, *rest = message.splitlines()
    assert first == "Embedder failed to start: deployments.errors.ConfigError: there is no model folder /nope"
    assert '    File "embedder.py", line 7, in __init__' in rest
    assert "\x1b" not in message
    assert "^^^" not in message


def test_an_application_that_can_not_be_built_is_told_by_its_own_message() -> None:
    app = application("DEPLOY_FAILED", "Deploying failed:\nModuleNotFoundError: No module named 'my_app'")
    message = failure_message([app])
    assert message is not None
    assert message.startswith("the application failed to deploy: ModuleNotFoundError: No module named 'my_app'")


def test_an_application_that_is_still_starting_has_not_failed() -> None:
    app = application("DEPLOYING", Embedder=deployment("UPDATING", "A replica failed to start. Retrying."))
    assert failure_message([app]) is None


def test_a_cause_of_several_lines_is_kept_whole() -> None:
    message = 'Traceback:\n  File "a.py", line 1\nValueError: first line\nsecond line'
    assert cause_and_tail(message).startswith("ValueError: first line\nsecond line")


def test_a_message_without_a_traceback_is_kept() -> None:
    assert cause_and_tail("no room") == "no room"
    assert cause_and_tail("") == "Serve gives no reason"


def test_a_replica_without_room_is_told_apart_from_a_slow_one() -> None:
    scheduling = "Deployment 'E' has 1 replicas that have taken more than 30s to be scheduled. Resources required: GPU"
    slow = "Deployment 'E' has 1 replicas that have taken more than 30s to initialize."
    assert unschedulable_message([application("DEPLOYING", E=deployment("UPDATING", scheduling))]) == scheduling
    assert unschedulable_message([application("DEPLOYING", E=deployment("UPDATING", slow))]) is None
