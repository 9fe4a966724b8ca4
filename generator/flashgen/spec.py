"""The spec as written: frozen, checked against the schema, nothing filled in.

`None` means that the user did not say. Every node keeps its `Place`, so that later stages can point at it.
"""

from dataclasses import dataclass
from pathlib import Path

from flashgen.document import Place
from flashgen.types import Type

Scalar = str | int | float | bool | None
Plain = Scalar | list["Plain"] | dict[str, "Plain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldSpec:
    """One declared input or output."""

    name: str
    type: Type
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
    place: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSpec:
    """What callers see at one path."""

    path: str
    method: str | None = None
    name: str | None = None
    description: str | None = None
    protocol: str | None = None

    # `None`: the spec has no such key.
    inputs: tuple[FieldSpec, ...] | None = None
    outputs: tuple[FieldSpec, ...] | None = None
    servers: tuple[str, ...] | None = None
    place: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """Weights and how to decode them."""

    uri: str
    type: str | None = None
    revision: str | None = None
    name: str | None = None
    aliases: tuple[str, ...] = ()
    dtype: str | None = None
    device: str | None = None
    max_context: int | None = None
    chat_template: str | None = None

    # By canonical name: `max_new_tokens` is `max_tokens`, `do_sample: false` is `temperature: 0`.
    generation_params: dict[str, Plain]
    place: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReference:
    """A slug of `models:`, a bare uri, where a server names its model."""

    slug: str
    place: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourcesSpec:
    """What one worker needs; sizes in bytes."""

    cpus: float | None = None
    memory_bytes: int | None = None
    gpus: int | None = None
    gpu_memory_bytes: int | None = None

    # (major, minor)
    gpu_cuda_capability: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """What the worker's container gets from outside."""

    env: dict[str, str]

    # Names only; values never pass through flashgen.
    secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSpec:
    """A pool of workers."""

    name: str | None = None
    models: tuple[ModelSpec | ModelReference, ...]
    resources: ResourcesSpec
    rpc_port: int | None = None
    container: ContainerSpec
    place: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectSpec:
    """The whole file."""

    path: Path

    # Of the file: later diagnostics quote it (`SpecError(…, path=spec.path, text=spec.text)`).
    text: str = ""
    name: str | None = None
    description: str | None = None
    apis: tuple[ApiSpec, ...]

    # By slug.
    models: dict[str, ModelSpec]
    servers: tuple[ServerSpec, ...]
    targets: tuple[str, ...] | None = None
