"""Serve config files, read strictly: Ray Serve drops keys that it does not know, raglane refuses them by name."""

from __future__ import annotations

import difflib
import types
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from deployments.errors import ConfigError
from deployments.generator import FALLBACK, has_fallback
from deployments.vllm_generator import VllmConfig
from serve_app.config import AppConfig
from serve_app.lane_config import DEPLOYMENT_OF

# ray.serve is imported where it is needed: the command line sets Ray's environment first, and Ray reads it on import.

_DEPLOYMENTS = ("Ingress", "Embedder", "Retriever", "Indexer", "Reranker", "Generator")

_HOP_OF = {"Embedder": "embed", "Retriever": "search", "Reranker": "rerank"}
_VLLM_OWNS = (
    "ray_actor_options",
    "placement_group_bundles",
    "placement_group_strategy",
    "placement_group_bundle_label_selector",
)
_RAY_RESOURCES = ("CPU", "GPU", "memory")


def load_serve_file(path: Path) -> dict[str, Any]:
    """Read and check a Serve config file. Raises ConfigError that names every mistake with its place in the file."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} can't be read as YAML: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("applications"), list):
        raise ConfigError(f"{path} is not a Serve config file: it has no list of applications")
    try:
        check_serve_document(document)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return document


def check_serve_document(document: Mapping[str, Any]) -> None:
    """Check a Serve config: keys first, then values, then what raglane's stages need of each other.

    Raises ConfigError with one line for each mistake of the first of these kinds that has any.
    """
    from ray.serve.schema import ServeDeploySchema

    for mistakes in (_unknown_keys(document, ServeDeploySchema, ""), _bad_values(document), _broken_rules(document)):
        if found := list(mistakes):
            raise ConfigError("\n".join(found))


def custom_resources(document: Mapping[str, Any]) -> set[str]:
    """The custom Ray resources that the replicas ask for: a machine that is to run all of them has to declare these."""
    names: set[str] = set()
    for application in document["applications"]:
        vllm = _vllm_section(application)
        for options in (*application.get("deployments", []), vllm.get("deployment", {})):
            names.update((options.get("ray_actor_options") or {}).get("resources") or {})
        for bundle in vllm.get("placement_bundles") or []:
            names.update(bundle)
    return names.difference(_RAY_RESOURCES)


def is_raglane(application: Mapping[str, Any]) -> bool:
    """Whether an application of a Serve config file is raglane itself, so that its args are an AppConfig."""
    return str(application.get("import_path", "")).partition(":")[0] in ("serve_app", "serve_app.app")


def _unknown_keys(value: Any, annotation: Any, where: str) -> Iterator[str]:
    """One line for each key under `value` that the pydantic model in `annotation` does not have."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            label = item["name"] if isinstance(item, dict) and "name" in item else index
            for item_type in _item_types(annotation):
                yield from _unknown_keys(item, item_type, f"{where}[{label}]")
    elif isinstance(value, dict):
        for model in _models(annotation):
            yield from _not_in(value, _field_names(model), where)
            for name in value.keys() & model.model_fields:
                yield from _unknown_in_field(model, name, value, _join(where, name))


def _unknown_in_field(model: type[BaseModel], name: str, owner: Mapping[str, Any], where: str) -> Iterator[str]:
    """The same for one field of `owner`, knowing what Serve and ray.serve.llm declare as mere dicts."""
    from ray.runtime_env import RuntimeEnv
    from ray.serve.schema import DeploymentSchema, ServeApplicationSchema

    value = owner[name]
    if name == "runtime_env" and isinstance(value, dict):
        yield from _not_in(value, {key for key in RuntimeEnv.known_fields if not key.startswith("_")}, where)
    elif model is ServeApplicationSchema and name == "args":
        if is_raglane(owner):
            yield from _unknown_keys(value, AppConfig, where)
    elif model is VllmConfig and name == "deployment":
        yield from _unknown_keys(value, DeploymentSchema, where)
    else:
        yield from _unknown_keys(value, model.model_fields[name].annotation, where)


def _not_in(value: Mapping[str, Any], names: Collection[str], where: str) -> Iterator[str]:
    for key in value:
        if key not in names:
            nearest = difflib.get_close_matches(str(key), sorted(names), n=1, cutoff=0.0)[0]
            yield f"{_join(where, key)}: unknown key {key!r}; did you mean {nearest!r}?"


def _field_names(model: type[BaseModel]) -> set[str]:
    aliases = {field.alias for field in model.model_fields.values() if field.alias}
    return set(model.model_fields) | aliases


def _models(annotation: Any) -> list[type[BaseModel]]:
    members = get_args(annotation) if _is_union(annotation) else (annotation,)
    return [member for member in members if isinstance(member, type) and issubclass(member, BaseModel)]


def _item_types(annotation: Any) -> list[Any]:
    members = get_args(annotation) if _is_union(annotation) else (annotation,)
    return [get_args(member)[0] for member in members if get_origin(member) is list]


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


def _bad_values(document: Mapping[str, Any]) -> Iterator[str]:
    from ray.serve.config import AutoscalingConfig
    from ray.serve.schema import ServeDeploySchema

    if found := list(_invalid(document, ServeDeploySchema, "")):
        yield from found
        return
    for application in document["applications"]:
        where = f"applications[{application.get('name', 'default')}]"
        if is_raglane(application):
            yield from _invalid(application.get("args") or {}, AppConfig, f"{where}.args")
        for options in application.get("deployments") or []:
            if options.get("autoscaling_config"):
                place = f"{where}.deployments[{options['name']}].autoscaling_config"
                yield from _invalid(options["autoscaling_config"], AutoscalingConfig, place)


def _invalid(value: Any, model: type[BaseModel], where: str) -> Iterator[str]:
    try:
        model.model_validate(value)
    except ValidationError as error:
        for item in error.errors():
            place = ".".join((where, *map(str, item["loc"]))).strip(".")
            yield f"{place or 'file'}: {item['msg'].removeprefix('Value error, ')}"


def _broken_rules(document: Mapping[str, Any]) -> Iterator[str]:
    for application in filter(is_raglane, document["applications"]):
        where = f"applications[{application.get('name', 'default')}].deployments"
        config = AppConfig.model_validate(application.get("args") or {})
        seen: set[str] = set()
        for options in application.get("deployments") or []:
            name, place = options["name"], f"{where}[{options['name']}]"
            known = deployments_of(config)
            if name not in known:
                if name in _DEPLOYMENTS:
                    yield f"{place}: lane.in_process runs this stage inside the ingress; remove the entry"
                    continue
                nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
                yield f"{place}: there is no deployment {name!r}; did you mean {nearest!r}?"
            if name in seen:
                yield f"{place}: stands here twice; Serve would take the last one"
            seen.add(name)
            if name == "Indexer":
                yield from _more_than_one_writer(options, place)
            if name in _HOP_OF:
                yield from _less_than_a_hop_sends(options, config, place)
        yield from _vllm_conflicts(application, where)


def deployments_of(config: AppConfig) -> tuple[str, ...]:
    """The names of the deployments that the application has under this config."""
    inside = {DEPLOYMENT_OF[stage] for stage in config.lane.in_process}
    fallback = (FALLBACK,) if has_fallback(config.generator) else ()
    return (*(name for name in _DEPLOYMENTS if name not in inside), *fallback)


def _more_than_one_writer(options: Mapping[str, Any], place: str) -> Iterator[str]:
    if options.get("num_replicas", 1) != 1 or options.get("autoscaling_config") is not None:
        yield f"{place}: a table has one writer; set num_replicas to 1 and remove autoscaling_config"
    if options.get("max_surge_percent"):
        yield f"{place}.max_surge_percent: would start a second writer during an update; remove it"


def _less_than_a_hop_sends(options: Mapping[str, Any], config: AppConfig, place: str) -> Iterator[str]:
    hop = _HOP_OF[options["name"]]
    calls, source = getattr(config.hops, hop).max_calls_in_flight, f"hops.{hop}.max_calls_in_flight"
    if options["name"] == "Embedder" and config.indexer.embed_calls_in_flight > calls:
        calls, source = config.indexer.embed_calls_in_flight, "indexer.embed_calls_in_flight"
    for limit in ("max_ongoing_requests", "max_queued_requests"):
        # -1 is Serve's word for no limit.
        if limit in options and options[limit] not in (None, -1) and options[limit] < calls:
            yield f"{place}.{limit}: {options[limit]} is below {source}, {calls}; one caller alone sends that many"


def _vllm_conflicts(application: Mapping[str, Any], where: str) -> Iterator[str]:
    in_args = _vllm_section(application).get("deployment") or {}
    if not _vllm_section(application):
        return
    args = "args.generator.vllm"
    for key in ("name", *_VLLM_OWNS[1:]):
        if key in in_args:
            yield f"{args}.deployment.{key}: is not yours to set; use {args}.placement_bundles for resources"
    for options in application.get("deployments") or []:
        if options["name"] != "Generator":
            continue
        for key in options.keys() & set(_VLLM_OWNS):
            yield (
                f"{where}[Generator].{key}: would replace what vLLM is given; "
                f"use {args}.deployment.ray_actor_options or {args}.placement_bundles"
            )
        for key in (options.keys() & in_args.keys()).difference(_VLLM_OWNS):
            yield f"{where}[Generator].{key}: is also set in {args}.deployment; keep one of the two"


def _vllm_section(application: Mapping[str, Any]) -> Mapping[str, Any]:
    if not is_raglane(application):
        return {}
    arguments = application.get("args") or {}
    return (arguments.get("generator") or {}).get("vllm") or {}
