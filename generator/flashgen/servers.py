"""Part of `stages.resolve`: servers with their resources, ports and sizes. Their models are in `models`."""

from collections.abc import Mapping, Sequence
from math import ceil

from flashgen import naming, sizing
from flashgen.memory_fit import PlacedModel, check_fit
from flashgen.memory_sizes import ModelDemand, memory_budget, volume_size, with_kv_cache
from flashgen.models import ModelResolver
from flashgen.protocols import TEXT_GENERATION, Protocol
from flashgen.residency import file_bytes, swap_settings, weight_settings
from flashgen.resolved import EngineSettings, ResolvedModel, ResolvedServer, SwapSettings
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
    return naming.dns_label(naming.last_part(models_of(server, spec)[0].uri))


def models_of(server: ServerSpec, spec: ProjectSpec) -> list[ModelSpec]:
    """The server's models, looked up in `models:` where the server names them."""
    return [model if isinstance(model, ModelSpec) else spec.models[model.slug] for model in server.models]


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
    resources = _resources(server.resources, models_of(server, spec))
    engine = _engine(server.engine)
    sizes = sizing.engine_sizes(
        resources,
        max_num_seqs=server.engine.max_requests,
        max_num_batched_tokens=server.engine.max_tokens,
        block_size=server.engine.block_size,
    )
    resolved_models = models.of_server(
        server,
        name,
        resources,
        protocols[name],
        kv_cache_dtype=engine.kv_cache_dtype,
        block_size=sizes.block_size,
    )
    swap = swap_settings(server.swap, resolved_models, ids=models.ids(server), resources=resources)
    budget = memory_budget(resources, pool_bytes=server.weights.pool_bytes or 0)
    placed = [
        PlacedModel(model, _demand(model, swap), entry.place)
        for model, entry in zip(resolved_models, server.models, strict=True)
    ]
    declared_kv = server.engine.kv_cache_bytes
    sizes = with_kv_cache(
        sizes,
        resources,
        budget,
        [model.demand for model in placed],
        max_loaded=swap.max_loaded,
        declared=declared_kv,
    )
    models.diagnostics += check_fit(
        placed, engine=sizes, budget=budget, resources=resources, is_kv_cache_declared=declared_kv is not None
    )
    threads, threads_reason = sizing.threads(resources.cpus)
    startup_seconds, startup_reason = _startup_budget(resolved_models, swap, resources)
    return ResolvedServer(
        name=name,
        package=naming.python_name(name),
        models=resolved_models,
        resources=resources,
        memory=budget,
        engine=engine,
        sizes=sizes,
        weights=weight_settings(server.weights),
        swap=swap,
        volume=volume_size(
            resources,
            [each.sizes for model in resolved_models for each in (model, *model.drafts)],
            num_served=len(resolved_models),
            max_loaded=swap.max_loaded,
        ),
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


def _demand(model: ResolvedModel, swap: SwapSettings) -> ModelDemand:
    return ModelDemand(
        keeps_kv_cache=model.task == TEXT_GENERATION,
        sizes=model.sizes,
        has_max_context=model.max_context is not None,
        is_preloaded=model.id in swap.preload,
        drafts=tuple(draft.sizes for draft in model.drafts),
    )


def _startup_budget(
    models: Sequence[ResolvedModel], swap: SwapSettings, resources: ResolvedResources
) -> tuple[int, str]:
    """All models are downloaded at start, those of `preload` are loaded."""
    if any(each.repository is not None for model in models for each in (model, *model.drafts)):
        return sizing.startup_budget(resources, from_hub=True, fillings=ceil(len(models) / swap.max_loaded))
    return sizing.startup_budget(
        resources, from_hub=False, file_bytes=file_bytes([model for model in models if model.id in swap.preload])
    )


def _engine(declared: EngineSpec) -> EngineSettings:
    return EngineSettings(
        batching_mode=declared.batching_mode or "continuous",
        max_wait_seconds=declared.max_wait_seconds or 0.0,
        kv_cache_dtype=declared.kv_cache_dtype or "auto",
        prefix_caching=declared.prefix_caching if declared.prefix_caching is not None else True,
        deterministic=bool(declared.deterministic),
    )


def _resources(declared: ResourcesSpec, models: Sequence[ModelSpec]) -> ResolvedResources:
    return ResolvedResources(
        cpus=declared.cpus if declared.cpus is not None else sizing.DEFAULT_CPUS,
        memory_bytes=declared.memory_bytes if declared.memory_bytes is not None else sizing.DEFAULT_MEMORY_BYTES,
        gpus=declared.gpus if declared.gpus is not None else max(_cards_for(model.device) for model in models),
        gpu_memory_bytes=declared.gpu_memory_bytes,
        gpu_cuda_capability=declared.gpu_cuda_capability,
    )


def _cards_for(device: str | None) -> int:
    """Cards that a server needs for a model's device, where the spec reserves none: `cuda:1` is the second."""
    if device is None or device == "cpu":
        return 0
    return int(device.partition(":")[2] or 0) + 1
