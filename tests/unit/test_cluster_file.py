"""cluster.yaml: valid for `ray up`, the same environment on every node, and room for what deploy/gpu.yaml asks for."""

from __future__ import annotations

import copy
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError  # type: ignore[import-untyped]
from ray.autoscaler._private.util import prepare_config, validate_config

from deployments.vllm_generator import VllmConfig, to_llm_fields
from serve_app.cli.environment import EVERY_NODE
from serve_app.serve_file import custom_resources, load_serve_file

ROOT = Path(__file__).parents[2]
CLUSTER: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
HEAD_TYPE: str = CLUSTER["head_node_type"]
NODE_TYPES: dict[str, Any] = CLUSTER["available_node_types"]
GPU_PROFILE = load_serve_file(ROOT / "deploy" / "gpu.yaml")["applications"][0]
START_COMMANDS = ("head_start_ray_commands", "worker_start_ray_commands")


def _as_ray_up_does(cluster: dict[str, Any]) -> dict[str, Any]:
    prepared: dict[str, Any] = prepare_config(copy.deepcopy(cluster))
    validate_config(prepared)
    return prepared


def _start_command(kind: str) -> list[str]:
    (command,) = [command for command in CLUSTER[kind] if "ray start" in command]
    return shlex.split(command)


def _replicas(options: dict[str, Any]) -> tuple[int, int]:
    """The fewest and the most replicas of a deployment."""
    scaling = options.get("autoscaling_config")
    if scaling is None:
        return options["num_replicas"], options["num_replicas"]
    return scaling["min_replicas"], scaling["max_replicas"]


def _bundles(options: dict[str, Any]) -> list[dict[str, float]]:
    """What one replica asks of Ray, as the bundles of resources that are placed one by one."""
    if options["name"] == "Generator":
        fields = to_llm_fields(VllmConfig.model_validate(GPU_PROFILE["args"]["generator"]["vllm"]))
        actor = fields["deployment_config"]["ray_actor_options"]
        first, *others = fields["placement_group_config"]["bundles"]
        first = {**first, "CPU": first["CPU"] + actor["num_cpus"], **actor["resources"]}
        return [first, *others]
    actor = options["ray_actor_options"]
    return [{"CPU": actor["num_cpus"], "GPU": actor.get("num_gpus", 0), **actor.get("resources", {})}]


def _takes(node: dict[str, float], bundle: dict[str, float]) -> bool:
    return all(node.get(name, 0) >= amount for name, amount in bundle.items())


def _place(replicas_of: int, nodes_of: str) -> list[str]:
    """Replicas (`replicas_of`: 0 the fewest, 1 the most) that find no room on the head and `nodes_of` workers.

    Bundles with GPUs first, each on the first node with room, the head before the workers.
    """
    nodes = [dict(NODE_TYPES[HEAD_TYPE]["resources"])]
    for name, node_type in NODE_TYPES.items():
        if name != HEAD_TYPE:
            nodes += [dict(node_type["resources"]) for _ in range(node_type[nodes_of])]
    wanted = [
        (options["name"], bundle)
        for options in GPU_PROFILE["deployments"]
        for _ in range(_replicas(options)[replicas_of])
        for bundle in _bundles(options)
    ]
    homeless = []
    for name, bundle in sorted(wanted, key=lambda item: -item[1].get("GPU", 0)):
        node = next((node for node in nodes if _takes(node, bundle)), None)
        if node is None:
            homeless.append(name)
            continue
        for resource, amount in bundle.items():
            node[resource] = node.get(resource, 0) - amount
    return homeless


class TestRayUp:
    def test_it_is_valid_as_ray_up_checks_it(self) -> None:
        prepared = _as_ray_up_does(CLUSTER)
        assert prepared["head_node_type"] == "head"

    @pytest.mark.parametrize("key", sorted(CLUSTER))
    def test_a_key_with_a_letter_too_many_is_refused(self, key: str) -> None:
        cluster = copy.deepcopy(CLUSTER)
        cluster[f"{key}x"] = cluster[key]
        with pytest.raises(ValidationError, match=f"'{key}x' was unexpected"):
            _as_ray_up_does(cluster)

    @pytest.mark.parametrize("node_type", sorted(NODE_TYPES))
    @pytest.mark.parametrize("key", ["resources", "node_config", "max_workers"])
    def test_a_mistyped_key_of_a_node_type_is_refused(self, node_type: str, key: str) -> None:
        cluster = copy.deepcopy(CLUSTER)
        cluster["available_node_types"][node_type][f"{key}x"] = 1
        with pytest.raises(ValidationError):
            _as_ray_up_does(cluster)

    def test_the_launcher_adds_no_command_of_its_own(self) -> None:
        prepared = _as_ray_up_does(CLUSTER)
        for kind in ("head_setup_commands", "worker_setup_commands", *START_COMMANDS):
            assert prepared[kind] == CLUSTER[kind]


class TestNodes:
    @pytest.mark.parametrize("kind", START_COMMANDS)
    def test_ray_starts_with_the_environment_of_every_node(self, kind: str) -> None:
        words = _start_command(kind)
        program = next(index for index, word in enumerate(words) if "=" not in word)
        assert dict(word.split("=", 1) for word in words[:program]) == {
            **{setting.name: setting.value for setting in EVERY_NODE},
            "RAY_AUTH_MODE": "token",
        }

    def test_the_token_is_a_file_of_the_operator_that_lies_where_ray_looks_for_it(self) -> None:
        assert CLUSTER["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"

    def test_the_head_starts_as_head_and_workers_join_it(self) -> None:
        head, worker = (_start_command(kind) for kind in START_COMMANDS)
        assert "--head" in head
        assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head
        assert "--address=$RAY_HEAD_IP:6379" in worker
        assert "--port=6379" in head

    @pytest.mark.parametrize("kind", ["head", "worker"])
    def test_packages_come_from_a_lock(self, kind: str) -> None:
        command, *others = CLUSTER[f"{kind}_setup_commands"]
        assert len(others) == (kind == "head")
        script = re.search(r"KIND=(\w+) (\S+)", command)
        assert script is not None
        lock_kind, installer = script.groups()
        assert (ROOT / installer).is_file()
        assert (ROOT / "requirements" / f"{lock_kind}.lock").is_file()

    def test_the_head_s_autoscaler_finds_the_cloud_s_library(self) -> None:
        assert CLUSTER["provider"]["type"] == "aws"
        pip, install, *arguments = shlex.split(CLUSTER["head_setup_commands"][-1])
        ray = next(word for word in _start_command("head_start_ray_commands") if word.endswith("/ray"))
        assert (pip, install) == (ray.removesuffix("ray") + "pip", "install")
        assert any(re.fullmatch(r"boto3==[\d.]+", argument) for argument in arguments)

    def test_the_image_has_the_ray_of_the_lock(self) -> None:
        (version,) = re.findall(r"^ray==([\d.]+)|^ray\[.*\]==([\d.]+)", _lock("gpu"), flags=re.M)
        for image in ("head_image", "worker_image"):
            assert f":{''.join(version)}-" in CLUSTER["docker"][image]


class TestPlaces:
    def test_the_workers_offer_the_custom_resources_that_the_stages_ask_for(self) -> None:
        offered = {name for node_type in NODE_TYPES.values() for name in node_type["resources"]} - {"CPU", "GPU"}
        assert offered == custom_resources({"applications": [GPU_PROFILE]})

    def test_the_smallest_cluster_holds_every_stage_at_its_smallest(self) -> None:
        assert _place(0, "min_workers") == []

    def test_the_largest_cluster_holds_every_stage_at_its_largest(self) -> None:
        assert _place(1, "max_workers") == []

    def test_each_gpu_stage_fits_one_kind_of_node_only(self) -> None:
        homes = {
            options["name"]: [
                name
                for name, node_type in NODE_TYPES.items()
                if all(_takes(node_type["resources"], bundle) for bundle in _bundles(options))
            ]
            for options in GPU_PROFILE["deployments"]
        }
        assert homes["Embedder"] == homes["Reranker"] == ["gpu_small"]
        assert homes["Generator"] == ["gpu_llm"]
        assert all("head" in homes[stage] for stage in ("Ingress", "Retriever", "Indexer"))

    def test_a_gpu_never_holds_two_language_models(self) -> None:
        generator = next(options for options in GPU_PROFILE["deployments"] if options["name"] == "Generator")
        marker = _bundles(generator)[0]["gpu_llm"]
        assert 2 * marker > NODE_TYPES["gpu_llm"]["resources"]["gpu_llm"]

    def test_the_limit_on_all_workers_is_the_sum_of_the_limits_of_their_types(self) -> None:
        assert CLUSTER["max_workers"] == sum(t["max_workers"] for n, t in NODE_TYPES.items() if n != HEAD_TYPE)


def _lock(kind: str) -> str:
    return (ROOT / "requirements" / f"{kind}.lock").read_text(encoding="utf-8")
