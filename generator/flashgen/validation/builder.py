"""A checked document as a `ProjectSpec`; nothing here can fail."""

from typing import Any

from flashgen.document import Document
from flashgen.protocols import canonical_task
from flashgen.spec import (
    ApiSpec,
    ContainerSpec,
    EngineSpec,
    FieldSpec,
    ModelReference,
    ModelSpec,
    Plain,
    ProjectSpec,
    ResourcesSpec,
    ServerSpec,
    SpeculativeSpec,
    SwapSpec,
    WeightsSpec,
)
from flashgen.types import parse_type
from flashgen.units import parse_bytes, parse_cuda_capability, parse_duration
from flashgen.validation.facts import Facts, ModelEntry, ModelFacts, ServerFacts, draft_references
from flashgen.validation.nodes import Node
from flashgen.validation.problems import Problems
from flashgen.validation.server_rules import secret_name


def build_spec(facts: Facts, problems: Problems) -> ProjectSpec:
    """The spec of a document that no rule complained about."""
    return _Builder(facts, problems).project()


class _Builder:
    def __init__(self, facts: Facts, problems: Problems) -> None:
        self.facts = facts
        self.problems = problems
        self.document: Document = problems.document

    def project(self) -> ProjectSpec:
        root = self.facts.root
        deploy = root.node("deploy", self.problems)
        targets = deploy.get("targets") if deploy else None
        return ProjectSpec(
            path=self.document.path,
            text=self.document.text,
            name=root.get("name"),
            description=root.get("description"),
            apis=tuple(self.api(node) for node in root.nodes("apis", self.problems)),
            models={slug: self.model(model) for slug, model in self.facts.models.items()},
            servers=tuple(self.server(server) for server in self.facts.servers),
            targets=tuple(targets) if targets is not None else None,
        )

    def api(self, node: Node) -> ApiSpec:
        servers = tuple(text for _, text in node.texts("server"))
        protocol = node.get("protocol")
        return ApiSpec(
            path=node.get("path"),
            method=node.get("method"),
            name=node.get("name"),
            description=node.get("description"),
            protocol=None if protocol == "auto" else protocol,
            inputs=self.fields(node, "inputs"),
            outputs=self.fields(node, "outputs"),
            servers=servers or None,
            place=self.problems.value_place(node.path),
        )

    def fields(self, api: Node, key: str) -> tuple[FieldSpec, ...] | None:
        fields = api.node(key, self.problems)
        if fields is None:
            return None
        return tuple(self.field(name, Node(fields.data[name], fields.at(name), self.problems)) for name in fields.data)

    def field(self, name: str, node: Node) -> FieldSpec:
        enum = node.get("enum")
        return FieldSpec(
            name=name,
            type=parse_type(node.get("type")),
            optional=bool(node.get("optional")),
            has_default="default" in node.data,
            default=node.get("default"),
            enum=tuple(enum) if enum is not None else None,
            min=node.get("min"),
            max=node.get("max"),
            min_length=_integer(node.get("min_length")),
            max_length=_integer(node.get("max_length")),
            description=node.get("description"),
            has_example="example" in node.data,
            example=node.get("example"),
            location=node.get("in"),
            place=self.problems.key_place(node.path),
        )

    def model(self, model: ModelFacts) -> ModelSpec:
        assert model.uri is not None, "the schema requires it"
        node = model.node or Node({}, model.path, self.problems)
        declared = node.get("type")
        return ModelSpec(
            uri=f"./{model.uri}" if _is_bare(model.uri) else model.uri,
            type=canonical_task(declared) if declared is not None else None,
            revision=node.get("revision"),
            name=node.get("name"),
            aliases=tuple(node.get("aliases") or ()),
            dtype=node.get("dtype"),
            quantization=node.get("quantization"),
            device=node.get("device"),
            max_context=_integer(node.get("max_context")),
            chat_template=node.get("chat_template"),
            prefetch=tuple(node.get("prefetch") or ()),
            speculative=self.speculative(model),
            generation_params=_generation_params(node.get("generation_params") or {}),
            place=self.problems.value_place(model.uri_path),
        )

    def speculative(self, model: ModelFacts) -> SpeculativeSpec | None:
        written = model.node.get("speculative") if model.node else None
        if written is None:
            return None
        if isinstance(written, str):
            return SpeculativeSpec(written)
        return SpeculativeSpec(
            method=written["method"],
            models=tuple(
                ModelReference(slug=name, place=self.problems.value_place(path))
                for path, name in draft_references(model, self.problems)
            ),
            tokens=_integer(written.get("tokens")),
        )

    def entry(self, entry: ModelEntry) -> ModelReference | ModelSpec:
        if entry.model.slug is None:
            return self.model(entry.model)
        return ModelReference(slug=entry.model.slug, place=self.problems.value_place(entry.path))

    def server(self, server: ServerFacts) -> ServerSpec:
        node = server.node
        return ServerSpec(
            name=node.get("name"),
            models=tuple(self.entry(entry) for entry in server.entries),
            resources=_resources(node.get("resources") or {}),
            engine=_engine(node.get("engine") or {}),
            weights=_weights(node.get("weights") or {}),
            swap=_swap(node.get("swap") or {}),
            rpc_port=_integer(node.get("rpc_port")),
            container=_container(node.get("container") or {}),
            place=self.problems.value_place(node.path),
        )


def _is_bare(uri: str) -> bool:
    """A folder beside the spec by its name alone, which later stages see as `./name`."""
    return "/" not in uri and not uri.startswith("file:")


_WHOLE_PARAMS = frozenset({"max_tokens", "max_new_tokens", "top_k", "seed", "n", "num_beams"})


def _generation_params(params: dict[str, Any]) -> dict[str, Plain]:
    """By canonical name; `do_sample` becomes the temperature that it means."""
    canonical: dict[str, Plain] = {}
    for key, value in params.items():
        if key.startswith("x-") or key == "do_sample":
            continue
        if key == "stop":
            canonical[key] = [value] if isinstance(value, str) else list(value)
        elif key == "logit_bias":
            canonical[key] = {token: float(bias) for token, bias in value.items()}
        elif key in _WHOLE_PARAMS:
            canonical["max_tokens" if key == "max_new_tokens" else key] = int(value)
        else:
            canonical[key] = float(value)
    if "do_sample" in params:
        canonical.setdefault("temperature", 1.0 if params["do_sample"] else 0.0)
    return canonical


def _resources(resources: dict[str, Any]) -> ResourcesSpec:
    capability = resources.get("gpu_cuda_capability")
    return ResourcesSpec(
        cpus=float(resources["cpus"]) if "cpus" in resources else None,
        memory_bytes=_bytes(resources.get("memory")),
        gpus=_integer(resources.get("gpus")),
        gpu_memory_bytes=_bytes(resources.get("gpu_memory")),
        gpu_cuda_capability=parse_cuda_capability(capability) if capability is not None else None,
    )


def _engine(engine: dict[str, Any]) -> EngineSpec:
    batching, kv_cache = engine.get("batching") or {}, engine.get("kv_cache") or {}
    max_wait = batching.get("max_wait")
    return EngineSpec(
        batching_mode=batching.get("mode"),
        max_requests=_integer(batching.get("max_requests")),
        max_tokens=_integer(batching.get("max_tokens")),
        max_wait_seconds=parse_duration(max_wait) if max_wait is not None else None,
        kv_cache_dtype=kv_cache.get("dtype"),
        block_size=_integer(kv_cache.get("block_size")),
        prefix_caching=kv_cache.get("prefix_caching"),
        kv_cache_bytes=_bytes(kv_cache.get("memory")),
        deterministic=engine.get("deterministic"),
    )


def _weights(weights: dict[str, Any]) -> WeightsSpec:
    return WeightsSpec(
        path=weights.get("path"),
        loader=weights.get("loader"),
        threads=_integer(weights.get("threads")),
        pool_bytes=_bytes(weights.get("pool")),
        keep_in_ram=weights.get("keep_in_ram"),
        verify=weights.get("verify"),
    )


def _swap(swap: dict[str, Any]) -> SwapSpec:
    idle_timeout, preload = swap.get("idle_timeout"), swap.get("preload")
    return SwapSpec(
        max_loaded=_integer(swap.get("max_loaded")),
        evict=swap.get("evict"),
        idle_timeout_seconds=parse_duration(idle_timeout) if idle_timeout is not None else None,
        preload=tuple(preload) if preload is not None else None,
    )


def _container(container: dict[str, Any]) -> ContainerSpec:
    return ContainerSpec(
        env=dict(container.get("env") or {}),
        secrets=tuple(secret_name(secret) for secret in container.get("secrets") or ()),
    )


def _bytes(value: str | float | None) -> int | None:
    if value is None:
        return None
    return parse_bytes(value) if isinstance(value, str) else int(value)


def _integer(value: float | None) -> int | None:
    """JSON Schema takes 2.0 for an integer."""
    return None if value is None else int(value)
