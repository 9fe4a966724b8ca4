"""The project that a spec describes: every default filled, every reference an object, every number computed.

Blueprints see these values and nothing else. Text that a user wrote freely is `UserText`: it reaches a template only
through a quoting filter. Plain `str` fields are proven identifiers, paths or names of our own. Nothing else prints.
"""

from pathlib import Path
from typing import NamedTuple

from flashgen.checkpoint_sizes import CheckpointSizes as CheckpointSizes
from flashgen.memory_sizes import MemoryBudget as MemoryBudget
from flashgen.memory_sizes import VolumeSize as VolumeSize
from flashgen.sizing import EngineSizes as EngineSizes
from flashgen.sizing import ResolvedResources as ResolvedResources
from flashgen.sizing import Shutdown as Shutdown
from flashgen.types import Type
from flashgen.user_text import UserText

# A value from the spec whose texts are wrapped at every depth; filters such as `py` and `yaml` write it.
Value = UserText | bool | int | float | None | list["Value"] | dict[str, "Value"]


class ResolvedSpeculation(NamedTuple):
    """Who guesses the next tokens of a model."""

    # "ngram", "draft", "tree"
    method: str
    num_tokens: int

    # On the device of the model that they guess for.
    drafts: tuple["ResolvedModel", ...]


class ResolvedModel(NamedTuple):
    """One model of one server, or one that guesses for it."""

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

    # For a local model, absolute, for `flashgen run`. No template can print a `Path`.
    path_on_this_machine: Path | None

    # For a model from the hub.
    repository: UserText | None
    revision: UserText | None

    # "auto" keeps the checkpoint's own.
    dtype: str

    # "int8" or "int4"; `None` leaves the weights in `dtype`.
    quantization: str | None
    device: str
    max_context: int | None
    chat_template: UserText | None

    # Where the chat template comes from as far as the compiler can see: "spec", "checkpoint", "none", "unknown" (hub).
    chat_template_source: str
    generation_params: dict[str, Value]

    # Ids of models of the same server.
    prefetch: tuple[UserText, ...]

    speculative: ResolvedSpeculation | None

    # Of this model alone; `None` where the checkpoint cannot be seen.
    sizes: CheckpointSizes | None

    @property
    def drafts(self) -> tuple["ResolvedModel", ...]:
        """The models that guess for it."""
        return self.speculative.drafts if self.speculative is not None else ()


class EngineSettings(NamedTuple):
    """How one worker runs its models, sizes aside."""

    # "continuous", "static"
    batching_mode: str
    max_wait_seconds: float

    # "auto" is the model's dtype.
    kv_cache_dtype: str
    prefix_caching: bool
    deterministic: bool


class WeightSettings(NamedTuple):
    """How weights come from the disk into memory."""

    # The store's folder in the container, the mount of the server's volume; `None` is the image's own.
    path: str | None

    # "auto", "map", "arena"
    loader: str
    threads: int
    threads_reason: str

    # `None` leaves it to the system.
    host_cache_bytes: int | None
    keep_in_ram: bool

    # "none", "size", "sha256"
    verify: str


class SwapSettings(NamedTuple):
    """Which of a worker's models are in memory."""

    max_loaded: int

    # "lru", "lfu", "never"
    evict: str
    idle_timeout_seconds: float | None

    # Ids, in the order in which they are loaded.
    preload: tuple[UserText, ...]
    load_timeout_seconds: int
    load_timeout_reason: str


class ResolvedServer(NamedTuple):
    """A pool of workers."""

    # "mistral-7b-v0-1": a DNS label.
    name: str

    # "mistral_7b_v0_1": the Python package below `workers/`, and in upper case the name in environment variables.
    package: str
    models: tuple[ResolvedModel, ...]
    resources: ResolvedResources

    # For the weights, KV caches and buffers of all loaded models together.
    memory: MemoryBudget
    engine: EngineSettings
    sizes: EngineSizes
    weights: WeightSettings
    swap: SwapSettings
    volume: VolumeSize

    # CPU threads for tensor operations.
    threads: int
    threads_reason: str
    rpc_port: int
    operations_port: int
    env: dict[str, UserText]
    secrets: tuple[str, ...]

    # Numbers of Kubernetes probes and shutdown, from one model of the service in `sizing`.
    startup_seconds: int
    startup_reason: str
    shutdown: Shutdown

    @property
    def all_models(self) -> tuple[ResolvedModel, ...]:
        """Those that callers reach, each followed by those that guess for it."""
        return tuple(each for model in self.models for each in (model, *model.drafts))

    @property
    def local_models(self) -> tuple[ResolvedModel, ...]:
        """One model for each local folder: several may be made of one."""
        by_folder = {model.folder: model for model in reversed(self.all_models) if model.folder is not None}
        return tuple(by_folder.values())[::-1]

    @property
    def volume_folder(self) -> str:
        """Where the server's volume lies in the container."""
        return self.weights.path or "/cache"

    @property
    def store_folder(self) -> str:
        """Where pulled and prepared files lie on the volume."""
        return self.weights.path or "/cache/store"

    @property
    def facts(self) -> frozenset[str]:
        """Words that `when: {has: …}` in a blueprint may ask for."""
        found = {
            "local_models": any(model.folder for model in self.all_models),
            "hub_models": any(model.repository for model in self.all_models),
            "gpu": self.resources.gpus > 0,
            "store": self.weights.path is not None,
            "env": bool(self.env),
            "secrets": bool(self.secrets),
        }
        return frozenset(fact for fact, holds in found.items() if holds)


class ResolvedField(NamedTuple):
    """One declared input or output of an api."""

    name: str
    type: Type
    optional: bool
    has_default: bool
    default: Value
    enum: tuple[Value, ...] | None
    min: float | int | None
    max: float | int | None
    min_length: int | None
    max_length: int | None
    description: UserText | None
    has_example: bool
    example: Value
    location: str | None


class ResolvedApi(NamedTuple):
    """One route."""

    # "chat_completions": module, function and test are called so.
    name: str

    # "ChatCompletions"
    class_name: str
    path: str
    method: str
    protocol: str
    description: UserText

    # Empty where the spec declares none: the protocol supplies them.
    inputs: tuple[ResolvedField, ...]
    outputs: tuple[ResolvedField, ...]
    servers: tuple[ResolvedServer, ...]

    @property
    def model_ids(self) -> tuple[UserText, ...]:
        """Of all models that it reaches, each once."""
        return tuple(dict.fromkeys(model.id for server in self.servers for model in server.models))


class ResolvedProject(NamedTuple):
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

    # Of what the spec says: comments and layout of the file do not change it.
    spec_sha256: str
    runtime_version: str
    runtime_wheel: str
    runtime_wheel_sha256: str

    # Of the API server.
    shutdown: Shutdown

    # What the user should know although nothing is wrong, for the terminal.
    notices: tuple[UserText, ...]

    @property
    def api_drain_seconds(self) -> int:
        """How long the API server waits for open requests."""
        return self.shutdown.drain_seconds

    @property
    def facts(self) -> frozenset[str]:
        """The facts of all servers together."""
        return frozenset(fact for server in self.servers for fact in server.facts)
