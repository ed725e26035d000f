"""Reading a Serve config file: which mistakes are refused, and how the message names them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from deployments.errors import ConfigError
from serve_app.config import AppConfig
from serve_app.serve_file import check_serve_document, custom_resources, deployments_of, load_serve_file

DEPLOY = Path(__file__).parents[2] / "deploy"

Document = dict[str, Any]


def _load(profile: str) -> Document:
    return load_serve_file(DEPLOY / f"{profile}.yaml")


def _find(document: Document, name: str) -> Document:
    options: Document = next(o for o in document["applications"][0]["deployments"] if o["name"] == name)
    return options


def _local_with(path: tuple[str | int, ...], value: Any) -> Document:
    """The local profile with one value set, and the sections around it where there are none."""
    document = copy.deepcopy(_load("local"))
    holder: Any = document
    for key in path[:-1]:
        holder = holder[key] if isinstance(key, int) else holder.setdefault(key, {})
    holder[path[-1]] = value
    return document


class TestMistypedKeys:
    @pytest.mark.parametrize(
        ("path", "nearest"),
        [
            (("http_options", "prot"), "port"),
            (("logging_config", "log_levl"), "log_level"),
            (("grpc_options", "prot"), "port"),
            (("applications", 0, "rout_prefix"), "route_prefix"),
            (("applications", 0, "runtime_env", "env_var"), "env_vars"),
            (("applications", 0, "args", "hops", "embed", "max_call_in_flight"), "max_calls_in_flight"),
            (("applications", 0, "deployments", 1, "max_ongoing_request"), "max_ongoing_requests"),
            (("applications", 0, "deployments", 1, "ray_actor_options", "num_cpu"), "num_cpus"),
            (("applications", 0, "deployments", 1, "autoscaling_config", "min_replica"), "min_replicas"),
            (("applications", 0, "deployments", 1, "autoscaling_config", "policy", "policy_kwarg"), "policy_kwargs"),
            (("applications", 0, "deployments", 1, "ray_actor_options", "runtime_env", "env_vrs"), "env_vars"),
        ],
    )
    def test_the_message_gives_the_nearest_valid_key(self, path: tuple[str | int, ...], nearest: str) -> None:
        with pytest.raises(ConfigError, match=f"unknown key '{path[-1]}'; did you mean '{nearest}'"):
            check_serve_document(_local_with(path, 1))

    def test_the_message_gives_the_place_in_the_file(self) -> None:
        document = _local_with(("applications", 0, "deployments", 1, "ray_actor_options", "num_cpu"), 1)
        with pytest.raises(ConfigError, match=r"^applications\[raglane\]\.deployments\[Embedder\]\.ray_actor_options"):
            check_serve_document(document)

    def test_every_mistake_is_named_at_once(self) -> None:
        document = _local_with(("htp_options",), {})
        document["applications"][0]["args"]["embeder"] = {}
        with pytest.raises(ConfigError, match=r"(?s)htp_options.*embeder"):
            check_serve_document(document)

    def test_arguments_of_an_application_that_is_not_raglane_are_its_own_business(self) -> None:
        document = _load("local")
        document["applications"].append(
            {"name": "other", "route_prefix": "/other", "import_path": "other:app", "args": {"anything": 1}}
        )
        check_serve_document(document)


class TestRules:
    @pytest.mark.parametrize(
        ("name", "options", "complaint"),
        [
            ("Embeder", {}, "no deployment 'Embeder'; did you mean 'Embedder'"),
            ("Embedder", {}, "stands here twice"),
        ],
    )
    def test_a_deployment_is_named_as_in_the_application_and_once(
        self, name: str, options: Document, complaint: str
    ) -> None:
        document = _load("local")
        document["applications"][0]["deployments"].append({"name": name, **options})
        with pytest.raises(ConfigError, match=complaint):
            check_serve_document(document)

    @pytest.mark.parametrize(
        "options",
        [
            {"num_replicas": 2},
            {"num_replicas": "auto"},
            {"num_replicas": None, "autoscaling_config": {"max_replicas": 1}},
            {"max_surge_percent": 100},
        ],
    )
    def test_a_second_writer_is_refused(self, options: Document) -> None:
        document = _load("local")
        _find(document, "Indexer").update(options)
        with pytest.raises(ConfigError, match=r"deployments\[Indexer\].* writer"):
            check_serve_document(document)

    @pytest.mark.parametrize("stage", ["Embedder", "Retriever", "Reranker"])
    @pytest.mark.parametrize("limit", ["max_ongoing_requests", "max_queued_requests"])
    def test_a_stage_takes_the_calls_that_one_caller_makes(self, stage: str, limit: str) -> None:
        document = _load("gpu")
        _find(document, stage)[limit] = 3
        with pytest.raises(ConfigError, match=f"{limit}: 3 is below .*in_flight, 4"):
            check_serve_document(document)

    def test_an_unlimited_queue_is_no_small_queue(self) -> None:
        document = _load("local")
        _find(document, "Embedder")["max_queued_requests"] = -1
        check_serve_document(document)

    @pytest.mark.parametrize("key", ["ray_actor_options", "placement_group_bundles"])
    def test_what_vllm_runs_on_is_not_replaced(self, key: str) -> None:
        document = _load("cpu-vllm")
        _find(document, "Generator")[key] = {"num_cpus": 2} if key == "ray_actor_options" else [{"CPU": 1}]
        with pytest.raises(ConfigError, match=f"{key}: would replace what vLLM is given"):
            check_serve_document(document)

    def test_an_option_of_the_generator_stands_in_one_place(self) -> None:
        document = _load("cpu-vllm")
        document["applications"][0]["args"]["generator"]["vllm"]["deployment"] = {"num_replicas": 2}
        with pytest.raises(ConfigError, match=r"num_replicas: is also set in args\.generator\.vllm\.deployment"):
            check_serve_document(document)

    def test_values_that_serve_or_raglane_refuse_are_named_with_their_place(self) -> None:
        document = _load("local")
        _find(document, "Embedder")["max_ongoing_requests"] = 0
        with pytest.raises(ConfigError, match=r"max_ongoing_requests: .*greater than 0"):
            check_serve_document(document)
        with pytest.raises(ConfigError, match=r"applications\[raglane\]\.args\.embedder\.num_threads"):
            check_serve_document(_local_with(("applications", 0, "args", "embedder", "num_threads"), 0))

    def test_an_autoscaling_range_that_is_empty_is_refused(self) -> None:
        document = _load("gpu")
        _find(document, "Embedder")["autoscaling_config"].update(min_replicas=5, max_replicas=2)
        with pytest.raises(ConfigError, match=r"deployments\[Embedder\]\.autoscaling_config|replicas"):
            check_serve_document(document)


class TestReading:
    @pytest.mark.parametrize(
        ("text", "complaint"),
        [
            ("applications: [", "can't be read as YAML"),
            ("- a\n- b\n", "no list of applications"),
            ("http_options: {}\n", "no list of applications"),
            ("applications:\n  - 3\n", "applications"),
            ("applications:\n  - {name: a, deployments: [{num_replicas: 1}]}\n", "Field required"),
            ("applications:\n  - {import_path: 'serve_app:build_app', args: {generator: 3}}\n", "generator"),
        ],
    )
    def test_a_file_that_is_no_serve_config_is_a_config_error(self, tmp_path: Path, text: str, complaint: str) -> None:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        with pytest.raises(ConfigError, match=complaint) as caught:
            load_serve_file(path)
        assert str(path) in str(caught.value)

    def test_a_missing_file_is_a_config_error(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"none\.yaml"):
            load_serve_file(tmp_path / "none.yaml")

    def test_a_file_without_arguments_or_deployments_is_complete(self, tmp_path: Path) -> None:
        path = tmp_path / "least.yaml"
        path.write_text("applications:\n  - import_path: serve_app:build_app\n")
        assert load_serve_file(path)["applications"][0]["import_path"] == "serve_app:build_app"

    def test_an_entry_for_a_stage_inside_the_ingress_is_refused(self) -> None:
        document = _load("local")
        check_serve_document(document)
        document["applications"][0]["deployments"].append({"name": "Retriever"})
        with pytest.raises(ConfigError, match=r"\[Retriever\].*lane.in_process"):
            check_serve_document(document)
        document["applications"][0]["args"]["lane"]["in_process"].remove("search")
        check_serve_document(document)

    def test_another_applications_arguments_are_its_own_affair(self) -> None:
        document = {"applications": [{"import_path": "other:app", "args": {"generator": "a string"}}]}
        assert custom_resources(document) == set()

    def test_the_custom_resources_of_a_file_are_those_its_replicas_ask_for(self) -> None:
        assert custom_resources(_load("gpu")) == {"gpu_small", "gpu_llm"}
        assert custom_resources(_load("local")) == set()


@pytest.mark.parametrize(("fallback", "extra"), [(True, {"FallbackGenerator"}), (False, set())])
def test_a_language_model_has_a_fallback_beside_it_unless_it_is_switched_off(fallback: bool, extra: set[str]) -> None:
    alone = set(deployments_of(AppConfig()))
    generator = {"vllm": {"model_id": "m"}, "fallback": fallback}
    assert set(deployments_of(AppConfig.model_validate({"generator": generator}))) == alone | extra
