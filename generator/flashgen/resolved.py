"""The project that a spec describes: every default filled, every reference an object, every number computed.

Blueprints see these values and nothing else. Text that a user wrote freely is `UserText`: it reaches a template only
through a quoting filter. Plain `str` fields are proven identifiers, paths or names of our own.
"""

from dataclasses import dataclass

from flashgen.spec import FieldSpec, Plain
from flashgen.user_text import UserText


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedModel:
    """One model of one server."""

    # What callers write in `model`.
    id: UserText
    aliases: tuple[UserText, ...]

    # "text-generation" or "feature-extraction"
    task: str

    # Name of the model's folder under FLASHGEN_MODELS, a slug; `None` for a model from the hub.
    folder: str | None

    # For a local model: the path as the spec writes it, and the same relative to the project's folder (an absolute
    # path in the spec stays out of every output and is `None` here).
    local_path: UserText | None
    path_from_project: UserText | None

    # For a model from the hub.
    repository: UserText | None
    revision: UserText | None

    dtype: str
    device: str
    max_context: int | None
    chat_template: UserText | None

    # Where the chat template comes from as far as the compiler can see: "spec", "checkpoint", "none", "unknown" (hub).
    chat_template_source: str
    generation_params: dict[str, Plain]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedResources:
    """What one worker gets; quantities as Kubernetes and compose write them are derived in templates by filters."""

    cpus: float
    memory_bytes: int
    gpus: int
    gpu_memory_bytes: int | None
    gpu_cuda_capability: tuple[int, int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSizes:
    """Limits of one worker's batches, and the reasons that stand beside them as comments."""

    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    kv_cache_bytes: int
    kv_cache_reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedServer:
    """A pool of workers."""

    # "mistral-7b-v0-1": a DNS label.
    name: str

    # "mistral_7b_v0_1": the Python package below `workers/`, and in upper case the name in environment variables.
    package: str
    models: tuple[ResolvedModel, ...]
    resources: ResolvedResources
    engine: EngineSizes

    # CPU threads for tensor operations.
    threads: int
    rpc_port: int
    operations_port: int
    env: dict[str, UserText]
    secrets: tuple[str, ...]

    # Numbers of Kubernetes probes and shutdown, from one model of the service in `sizing`.
    startup_seconds: int
    drain_seconds: int
    termination_grace_seconds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedApi:
    """One route."""

    # "chat_completions": module, function and test are called so.
    name: str

    # "ChatCompletions"
    class_name: str
    path: str
    method: str
    protocol: str
    description: UserText
    inputs: tuple[FieldSpec, ...]
    outputs: tuple[FieldSpec, ...]
    servers: tuple[ResolvedServer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedProject:
    """The whole project."""

    # "chat-service": a DNS label.
    name: str
    description: UserText
    apis: tuple[ResolvedApi, ...]
    servers: tuple[ResolvedServer, ...]

    # "compose", "kubernetes"
    targets: tuple[str, ...]

    # The spec's path relative to the project's folder, with "/" ("flashgen.yaml", "../spec.yaml").
    spec_path: UserText
    spec_sha256: str
    runtime_version: str
    runtime_wheel: str
    runtime_wheel_sha256: str
    api_drain_seconds: int
