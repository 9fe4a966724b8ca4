"""The spec as written: frozen, checked against the schema, nothing filled in.

`None` means that the user did not say. Every node keeps its `Place`, so that later stages can point at it.
"""

from pathlib import Path
from typing import NamedTuple

from flashgen.document import Place
from flashgen.types import Type

Scalar = str | int | float | bool | None
Plain = Scalar | list["Plain"] | dict[str, "Plain"]


class FieldSpec(NamedTuple):
    """One declared input or output."""

    name: str
    type: Type
    place: Place
    optional: bool = False
    has_default: bool = False
    default: Plain = None
    enum: tuple[Scalar, ...] | None = None
    min: float | int | None = None
    max: float | int | None = None
    min_length: int | None = None
    max_length: int | None = None
    description: str | None = None
    has_example: bool = False
    example: Plain = None
    location: str | None = None


class ApiSpec(NamedTuple):
    """What callers see at one path."""

    path: str
    place: Place
    method: str | None = None
    name: str | None = None
    description: str | None = None
    protocol: str | None = None

    # `None`: the spec has no such key.
    inputs: tuple[FieldSpec, ...] | None = None
    outputs: tuple[FieldSpec, ...] | None = None
    servers: tuple[str, ...] | None = None


class ModelReference(NamedTuple):
    """A slug of `models:` where a server or another model names it."""

    slug: str
    place: Place


class SpeculativeSpec(NamedTuple):
    """Who guesses the next tokens of a model."""

    # "ngram", "draft", "tree"
    method: str
    models: tuple[ModelReference, ...] = ()
    tokens: int | None = None


class ModelSpec(NamedTuple):
    """Weights and how to decode them."""

    uri: str

    # By canonical name: `max_new_tokens` is `max_tokens`, `do_sample: false` is `temperature: 0`.
    generation_params: dict[str, Plain]
    place: Place
    type: str | None = None
    revision: str | None = None
    name: str | None = None
    aliases: tuple[str, ...] = ()
    dtype: str | None = None
    quantization: str | None = None
    device: str | None = None
    max_context: int | None = None
    chat_template: str | None = None

    # Names of other models, as the server's list or their `name` says them.
    prefetch: tuple[str, ...] = ()
    speculative: SpeculativeSpec | None = None


class ResourcesSpec(NamedTuple):
    """What one worker needs; sizes in bytes."""

    cpus: float | None = None
    memory_bytes: int | None = None
    gpus: int | None = None
    gpu_memory_bytes: int | None = None

    # (major, minor)
    gpu_cuda_capability: tuple[int, int] | None = None


class ContainerSpec(NamedTuple):
    """What the worker's container gets from outside."""

    env: dict[str, str]

    # Names only; values never pass through flashgen.
    secrets: tuple[str, ...] = ()


class EngineSpec(NamedTuple):
    """How one worker runs its models."""

    batching_mode: str | None = None
    max_requests: int | None = None
    max_tokens: int | None = None
    max_wait_seconds: float | None = None
    kv_cache_dtype: str | None = None
    block_size: int | None = None
    prefix_caching: bool | None = None
    kv_cache_bytes: int | None = None
    deterministic: bool | None = None


class WeightsSpec(NamedTuple):
    """How weights come into memory; sizes in bytes."""

    path: str | None = None
    loader: str | None = None
    threads: int | None = None
    pool_bytes: int | None = None
    keep_in_ram: bool | None = None
    verify: str | None = None


class SwapSpec(NamedTuple):
    """Which of a worker's models are in memory."""

    max_loaded: int | None = None
    evict: str | None = None
    idle_timeout_seconds: float | None = None

    # Names, as in `prefetch`; none at all is not the same as an empty list.
    preload: tuple[str, ...] | None = None


class ServerSpec(NamedTuple):
    """A pool of workers."""

    models: tuple[ModelSpec | ModelReference, ...]
    resources: ResourcesSpec
    engine: EngineSpec
    weights: WeightsSpec
    swap: SwapSpec
    container: ContainerSpec
    place: Place

    name: str | None = None
    rpc_port: int | None = None


class ProjectSpec(NamedTuple):
    """The whole file."""

    path: Path
    apis: tuple[ApiSpec, ...]

    # By slug.
    models: dict[str, ModelSpec]
    servers: tuple[ServerSpec, ...]

    # Of the file: later diagnostics quote it (`SpecError(…, path=spec.path, text=spec.text)`).
    text: str = ""
    name: str | None = None
    description: str | None = None
    targets: tuple[str, ...] | None = None
