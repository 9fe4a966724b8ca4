"""Part of `stages.resolve`: servers with their resources, ports and sizes. Their models are in `models`."""

from collections.abc import Mapping, Sequence

from flashgen import naming, sizing
from flashgen.memory_sizes import memory_budget
from flashgen.models import ModelResolver
from flashgen.protocols import TEXT_GENERATION, Protocol
from flashgen.residency import swap_settings, weight_settings
from flashgen.resolved import EngineSettings, ResolvedServer
from flashgen.sizing import ResolvedResources
from flashgen.spec import EngineSpec, ModelSpec, ProjectSpec, ResourcesSpec, ServerSpec
from flashgen.user_text import UserText

_FIRST_RPC_PORT = 6500

# Probes and metrics of a worker lie this far above its other port.
_OPERATIONS_PORT_OFFSET = 3000


def server_name(server: ServerSpec, spec: ProjectSpec) -> str:
    """As written, else the slug of what its first model is called: a DNS label."""
    if server.name is not None:
        return naming.dns_label(server.name)
    return naming.dns_label(naming.last_part(model_of(server, spec).uri))


def model_of(server: ServerSpec, spec: ProjectSpec) -> ModelSpec:
    """The server's first model, looked up in `models:` where the server names it."""
    model = server.models[0]
    return model if isinstance(model, ModelSpec) else spec.models[model.slug]


def resolve_servers(
    spec: ProjectSpec, models: ModelResolver, protocols: Mapping[str, Sequence[Protocol]]
) -> tuple[ResolvedServer, ...]:
    """All servers, in the order of the spec.

    Args:
        protocols: by server name, those of the apis that may reach it.
    """
    return tuple(
        _resolve_server(server, spec, models, protocols, rpc_port=server.rpc_port or _FIRST_RPC_PORT + index)
        for index, server in enumerate(spec.servers)
    )


def _resolve_server(
    server: ServerSpec,
    spec: ProjectSpec,
    models: ModelResolver,
    protocols: Mapping[str, Sequence[Protocol]],
    *,
    rpc_port: int,
) -> ResolvedServer:
    name = server_name(server, spec)
    resources = _resources(server.resources)
    resolved_models = models.of_server(server, name, resources, protocols[name])
    keeps_kv_cache = any(model.task == TEXT_GENERATION for model in resolved_models)
    threads, threads_reason = sizing.threads(resources.cpus)
    startup_seconds, startup_reason = sizing.startup_budget(
        resources, from_hub=any(model.repository is not None for model in resolved_models)
    )
    return ResolvedServer(
        name=name,
        package=naming.python_name(name),
        models=resolved_models,
        resources=resources,
        memory=memory_budget(resources),
        engine=_engine(server.engine),
        sizes=sizing.engine_sizes(
            resources,
            keeps_kv_cache=keeps_kv_cache,
            max_num_seqs=server.engine.max_requests,
            max_num_batched_tokens=server.engine.max_tokens,
            block_size=server.engine.block_size,
            kv_cache_bytes=server.engine.kv_cache_bytes,
        ),
        weights=weight_settings(server.weights),
        swap=swap_settings(server.swap, resolved_models, ids=models.ids(server), resources=resources),
        threads=threads,
        threads_reason=threads_reason,
        rpc_port=rpc_port,
        operations_port=rpc_port + _OPERATIONS_PORT_OFFSET,
        env={key: UserText(value) for key, value in server.container.env.items()},
        secrets=server.container.secrets,
        startup_seconds=startup_seconds,
        startup_reason=startup_reason,
        shutdown=sizing.shutdown(),
    )


def _engine(declared: EngineSpec) -> EngineSettings:
    return EngineSettings(
        batching_mode=declared.batching_mode or "continuous",
        max_wait_seconds=declared.max_wait_seconds or 0.0,
        kv_cache_dtype=declared.kv_cache_dtype or "auto",
        prefix_caching=declared.prefix_caching if declared.prefix_caching is not None else True,
        deterministic=bool(declared.deterministic),
    )


def _resources(declared: ResourcesSpec) -> ResolvedResources:
    return ResolvedResources(
        cpus=declared.cpus if declared.cpus is not None else sizing.DEFAULT_CPUS,
        memory_bytes=declared.memory_bytes if declared.memory_bytes is not None else sizing.DEFAULT_MEMORY_BYTES,
        gpus=declared.gpus or 0,
        gpu_memory_bytes=declared.gpu_memory_bytes,
        gpu_cuda_capability=declared.gpu_cuda_capability,
    )
