"""The Serve config files in deploy/: valid for Serve, valid for raglane, and without a key that either would drop."""

from __future__ import annotations

import ast
import copy
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve._private.build_app import build_app as build_serve_app
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ServeDeploySchema

from deployments.errors import ConfigError
from deployments.indexer import MAX_INDEXINGS
from deployments.vllm_generator import to_llm_fields
from serve_app.app import build_app
from serve_app.cli.environment import EVERY_NODE
from serve_app.config import AppConfig
from serve_app.serve_file import check_serve_document, custom_resources, deployments_of, load_serve_file

DEPLOY = Path(__file__).parents[2] / "deploy"
PROFILES = ("local", "cpu-vllm", "gpu")
KUBERAY = yaml.safe_load((DEPLOY / "kuberay.yaml").read_text(encoding="utf-8"))

# Below these the keys are names that users choose (resources) or that vLLM checks when it starts (its arguments).
FREE_NAMES = ("resources", "engine_kwargs", "placement_bundles")

Keys = tuple[str | int, ...]
Document = dict[str, Any]


def _load(profile: str) -> Document:
    return load_serve_file(DEPLOY / f"{profile}.yaml")


def _application(profile: str) -> Document:
    application: Document = _load(profile)["applications"][0]
    return application


def _deployments(profile: str) -> dict[str, Document]:
    return {options["name"]: options for options in _application(profile)["deployments"]}


def _config(profile: str) -> AppConfig:
    return AppConfig.model_validate(_application(profile)["args"])


def _paths(value: Any, path: Keys = ()) -> Iterator[Keys]:
    """The path of every key under `value`, except names that are free."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        if isinstance(key, str):
            yield (*path, key)
        if key not in FREE_NAMES:
            yield from _paths(inner, (*path, key))


def _holder(document: Document, path: Keys) -> Any:
    """What directly holds the last key of `path`."""
    value: Any = document
    for key in path[:-1]:
        value = value[key]
    return value


def _every_key() -> Iterator[Any]:
    for profile in PROFILES:
        document = yaml.safe_load((DEPLOY / f"{profile}.yaml").read_text(encoding="utf-8"))
        for path in _paths(document):
            yield pytest.param(profile, path, id=f"{profile}:{'.'.join(map(str, path))}")


class TestProfiles:
    def test_there_is_a_file_for_every_profile_and_no_other(self) -> None:
        assert {path.stem for path in DEPLOY.glob("*.yaml")} == {*PROFILES, "kuberay"}

    @pytest.mark.parametrize("profile", PROFILES)
    def test_serve_accepts_the_file(self, profile: str) -> None:
        schema = ServeDeploySchema.model_validate(_load(profile))
        assert schema.applications[0].import_path == "serve_app:build_app"

    @pytest.mark.parametrize("profile", PROFILES)
    def test_every_deployment_is_sized_in_the_file(self, profile: str) -> None:
        config = AppConfig.model_validate(_load(profile)["applications"][0]["args"])
        assert set(_deployments(profile)) == set(deployments_of(config))

    def test_the_names_of_the_deployments_are_those_of_the_application(self) -> None:
        built = build_serve_app(build_app(AppConfig()), name="raglane")
        assert {deployment.name for deployment in built.deployments} == set(deployments_of(AppConfig()))
        assert built.ingress_deployment_name == "Ingress"

    @pytest.mark.parametrize("profile", PROFILES)
    def test_the_indexer_is_alone(self, profile: str) -> None:
        indexer = _deployments(profile)["Indexer"]
        assert indexer["num_replicas"] == 1
        assert "autoscaling_config" not in indexer

    @pytest.mark.parametrize("profile", PROFILES)
    def test_the_indexer_answers_other_calls_beside_all_that_it_indexes(self, profile: str) -> None:
        assert _deployments(profile)["Indexer"]["max_ongoing_requests"] >= 2 * MAX_INDEXINGS

    def test_the_indexer_answers_other_calls_beside_all_that_it_indexes_without_a_file(self) -> None:
        built = build_serve_app(build_app(AppConfig()), name="raglane")
        (indexer,) = [deployment for deployment in built.deployments if deployment.name == "Indexer"]
        assert indexer.max_ongoing_requests >= 2 * MAX_INDEXINGS

    def test_the_local_profile_is_the_default_config_with_what_suits_its_machine_and_its_model(self) -> None:
        suited = {
            "lane": {"in_process": ["search", "rerank", "generate"]},
            "embedder": {"max_length_tokens": 512},
            "indexer": {"chunking": {"chunk_tokens": 512}},
        }
        assert _config("local") == AppConfig.model_validate(suited)

    def test_cpu_vllm_is_the_local_profile_with_a_language_model(self) -> None:
        local, vllm = _config("local"), _config("cpu-vllm")
        assert vllm.generator.vllm is not None
        assert vllm.generator.vllm.accelerator == "cpu"
        # Its passages are half as long: a CPU reads a few hundred tokens of a prompt in a second.
        assert vllm.embedder == local.embedder.model_copy(update={"max_length_tokens": None})
        assert vllm.indexer.chunking.chunk_tokens < local.indexer.chunking.chunk_tokens
        assert vllm.reranker == local.reranker

    @pytest.mark.parametrize("profile", ["cpu-vllm", "gpu"])
    def test_sources_question_and_answer_fit_the_language_model(self, profile: str) -> None:
        config = _config(profile)
        assert config.generator.vllm is not None
        max_model_len = config.generator.vllm.engine_kwargs["max_model_len"]
        assert config.context.max_context_tokens <= max_model_len // 2

    def test_gpu_puts_every_model_on_a_gpu(self) -> None:
        config, deployments = _config("gpu"), _deployments("gpu")
        assert config.generator.vllm is not None
        assert config.reranker.method == "cross_encoder"
        for stage in ("Embedder", "Reranker"):
            assert 0 < deployments[stage]["ray_actor_options"]["num_gpus"] < 1
        bundles = to_llm_fields(config.generator.vllm)["placement_group_config"]["bundles"]
        assert all(bundle["GPU"] > 0 for bundle in bundles)

    def test_gpu_fits_one_gpu_at_its_smallest(self) -> None:
        config, deployments = _config("gpu"), _deployments("gpu")
        assert config.generator.vllm is not None
        small = sum(deployments[stage]["ray_actor_options"]["num_gpus"] for stage in ("Embedder", "Reranker"))
        large = sum(bundle["GPU"] for bundle in config.generator.vllm.placement_bundles or [])
        assert small + large <= 1

    def test_stages_behind_coalesced_hops_scale_by_items(self) -> None:
        deployments = _deployments("gpu")
        for stage in ("Embedder", "Retriever", "Reranker"):
            scaling = AutoscalingConfig(**deployments[stage]["autoscaling_config"])
            assert scaling.policy.get_policy().__name__ == "scale_by_items"

    @pytest.mark.parametrize("profile", ["cpu-vllm", "gpu"])
    def test_engine_arguments_are_ones_that_vllm_has(self, profile: str) -> None:
        config = _config(profile)
        assert config.generator.vllm is not None
        assert set(config.generator.vllm.engine_kwargs) - _vllm_argument_names() == set()


def _vllm_argument_names() -> set[str]:
    """The fields of vLLM's argument classes, read from its source: importing it would take half a minute."""
    found = importlib.util.find_spec("vllm")
    if found is None or not found.submodule_search_locations:
        pytest.skip("vLLM is not installed")
    package = Path(found.submodule_search_locations[0])
    files = (package / "engine" / "arg_utils.py", *package.glob("entrypoints/**/cli_args.py"))
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files]
    classes = [node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)]
    return {
        statement.target.id
        for node in classes
        for statement in node.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    }


class TestMistypedKeys:
    @pytest.mark.parametrize(("profile", "path"), list(_every_key()))
    def test_each_key_with_a_letter_too_many_is_refused_by_name(self, profile: str, path: Keys) -> None:
        document = copy.deepcopy(_load(profile))
        holder = _holder(document, path)
        holder[f"{path[-1]}x"] = holder.pop(path[-1])
        with pytest.raises(ConfigError, match=f"unknown key '{path[-1]}x'; did you mean"):
            check_serve_document(document)


class TestKubeRay:
    def test_it_deploys_the_gpu_profile(self) -> None:
        assert yaml.safe_load(KUBERAY["spec"]["serveConfigV2"]) == _load("gpu")

    def test_it_is_a_ray_service(self) -> None:
        assert (KUBERAY["apiVersion"], KUBERAY["kind"]) == ("ray.io/v1", "RayService")

    def test_every_pod_has_the_environment_of_a_node(self) -> None:
        wanted = {setting.name: setting.value for setting in EVERY_NODE}
        for container in _containers():
            assert {entry["name"]: entry["value"] for entry in container["env"]} == wanted

    def test_ray_s_ports_ask_for_a_token_that_is_not_in_the_file(self) -> None:
        assert KUBERAY["spec"]["rayClusterConfig"]["authOptions"] == {"mode": "token"}

    def test_every_pod_runs_the_same_image(self) -> None:
        assert len({container["image"] for container in _containers()}) == 1

    def test_the_workers_offer_the_custom_resources_that_the_stages_ask_for(self) -> None:
        offered = [
            set(yaml.safe_load(yaml.safe_load(group["rayStartParams"]["resources"])))
            for group in KUBERAY["spec"]["rayClusterConfig"]["workerGroupSpecs"]
            if "resources" in group["rayStartParams"]
        ]
        assert set().union(*offered) == custom_resources(_load("gpu"))


def _containers() -> list[Document]:
    cluster = KUBERAY["spec"]["rayClusterConfig"]
    groups = (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
    return [container for group in groups for container in group["template"]["spec"]["containers"]]
