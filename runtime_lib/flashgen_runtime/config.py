"""`config/service.yaml`: the contract between a generated project and this library.

The compiler writes the file with every setting resolved; nothing is defaulted here. Its schema is
`schemas/v1/service.schema.json` in flashgen's repository, and a test keeps the two equal.
"""

from pathlib import Path
from typing import Literal, TypeVar

import msgspec
import yaml

from flashgen_runtime.errors import ConfigError
from flashgen_runtime.messages import GenerationParams

Protocol = Literal[
    "generate",
    "openai.chat_completions",
    "openai.completions",
    "openai.embeddings",
    "openai.models",
]
Task = Literal["text-generation", "feature-extraction"]
DType = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["int8", "int4"]

# Longest guess: behind so many tokens hardly one more is right.
MAX_SPECULATIVE_TOKENS = 16

# How many draft models each method of speculation takes.
NUM_DRAFTS = {"ngram": range(1), "draft": range(1, 2), "tree": range(2, 5)}


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the file's sections: all fields by name, none unknown."""


class HubSource(_Section, frozen=True, tag_field="kind", tag="hub"):
    """A repository on the hub, fetched into the hub's cache when the worker starts."""

    repository: str
    revision: str | None


class FolderSource(_Section, frozen=True, tag_field="kind", tag="folder"):
    """A folder below `FLASHGEN_MODELS`."""

    folder: str


class DraftConfig(_Section, frozen=True):
    """A model that guesses for another one, on its device."""

    # Its key under `models` of the spec, or its name.
    id: str
    source: HubSource | FolderSource
    dtype: DType
    quantization: Quantization | None

    # As in `ModelConfig`.
    weight_bytes: int | None


class SpeculativeConfig(_Section, frozen=True):
    """How the next tokens of a text are guessed, so that one step verifies several."""

    # "ngram": what followed when the text ended like this before; "draft": by a small model; "tree": by several, whose
    # different guesses are verified beside each other.
    method: Literal["ngram", "draft", "tree"]

    # The longest guess.
    num_tokens: int
    drafts: tuple[DraftConfig, ...]

    def __post_init__(self) -> None:
        if not 1 <= self.num_tokens <= MAX_SPECULATIVE_TOKENS:
            raise ValueError(f"`num_tokens` is from 1 to {MAX_SPECULATIVE_TOKENS}, not {self.num_tokens}")
        if len(self.drafts) not in NUM_DRAFTS[self.method]:
            raise ValueError(f"the method `{self.method}` cannot have {len(self.drafts)} draft models")


class ModelConfig(_Section, frozen=True):
    """One model: where its weights are and how it decodes."""

    # What callers write, besides the aliases.
    id: str
    aliases: tuple[str, ...]
    task: Task
    source: HubSource | FolderSource

    # "auto" keeps the checkpoint's own.
    dtype: DType

    # Format that the weights of linear layers are brought to; `None` leaves them in `dtype`.
    quantization: Quantization | None

    # "cpu", "cuda" or "cuda:N".
    device: str

    # Longest prompt plus completion, in tokens; `None` takes the checkpoint's own limit.
    max_context: int | None
    chat_template: str | None
    generation_params: GenerationParams

    # Ids of models of the same server that are brought into host memory when this one is used.
    prefetch: tuple[str, ...]

    # `None`: nothing is guessed but what a request itself predicts.
    speculative: SpeculativeConfig | None

    # What the compiler counted, which this library's own count must equal: bytes of the weights as they run, and of
    # the KV cache of one sequence of `max_context` tokens. `None` where the compiler could not see the checkpoint.
    weight_bytes: int | None
    sequence_kv_bytes: int | None

    @property
    def drafts(self) -> tuple[DraftConfig, ...]:
        """The models that guess for it."""
        return self.speculative.drafts if self.speculative is not None else ()


class EngineConfig(_Section, frozen=True):
    """How one worker batches, and the limits of its batches and memory."""

    # "static": a batch runs to its end before the next one starts.
    batching_mode: Literal["continuous", "static"]

    # Requests that decode together.
    max_num_seqs: int

    # Tokens of one forward pass, prefill and decode together.
    max_num_batched_tokens: int

    # How long a batch of embeddings that is not full waits for company.
    max_wait_seconds: float

    # "auto": the model's dtype.
    kv_cache_dtype: Literal["auto", "int8"]

    # Tokens of one block of the KV cache.
    block_size: int

    # Of each loaded model.
    kv_cache_bytes: int

    # Whether requests share the blocks of equal beginnings.
    prefix_caching: bool

    # Whether a model whose results depend on its company in a batch is refused.
    deterministic: bool


class WeightsConfig(_Section, frozen=True):
    """How weights come from the disk into memory."""

    # The store's folder; `None` takes `FLASHGEN_STORE`, else the user's cache.
    path: str | None

    # "auto": files of the store are mapped, all others read into private memory.
    loader: Literal["auto", "map", "arena"]

    # Threads that read.
    threads: int

    # Bytes of weights of unloaded models that stay in host memory; `None` leaves it to the system.
    host_cache_bytes: int | None

    # Whether the weights of a model that is unloaded stay in host memory at all.
    keep_in_ram: bool

    # What is checked before weights are used, beside their headers.
    verify: Literal["none", "size", "sha256"]


class SwapConfig(_Section, frozen=True):
    """Which of a worker's models are in memory."""

    # At the same time.
    max_loaded: int

    # Which idle model goes first when another needs its place; "never": none does.
    evict: Literal["lru", "lfu", "never"]

    # How long a model that nobody uses stays loaded; `None`: until its place is needed.
    idle_timeout_seconds: float | None

    # Ids of models that are loaded at start, in this order, and evicted after all others.
    preload: tuple[str, ...]

    # How long a request waits for its model to be loaded.
    load_timeout_seconds: float


class DeviceRequirements(_Section, frozen=True):
    """What the card must offer at least; checked when a worker starts."""

    gpus: int
    gpu_memory_bytes: int | None

    # "9.0"
    gpu_cuda_capability: str | None


class ServerConfig(_Section, frozen=True):
    """A pool of equal workers."""

    name: str
    rpc_port: int
    operations_port: int

    # CPU threads for tensor operations.
    threads: int
    models: tuple[ModelConfig, ...]

    # For the weights, KV caches and buffers of all loaded models together: of the card, or of the host without one.
    memory_bytes: int
    engine: EngineConfig
    weights: WeightsConfig
    swap: SwapConfig
    requirements: DeviceRequirements


class ApiConfig(_Section, frozen=True):
    """One route: what it speaks and who answers."""

    name: str
    path: str
    method: Literal["GET", "POST"]
    protocol: Protocol
    servers: tuple[str, ...]


class ServiceConfig(_Section, frozen=True):
    """The whole file."""

    version: Literal[1]
    name: str
    apis: tuple[ApiConfig, ...]
    servers: tuple[ServerConfig, ...]

    def api(self, name: str) -> ApiConfig:
        """The api called `name`; raises `KeyError`."""
        return _by_name(self.apis, name)

    def server(self, name: str) -> ServerConfig:
        """The server called `name`; raises `KeyError`."""
        return _by_name(self.servers, name)


_Named = TypeVar("_Named", ApiConfig, ServerConfig)


def load_config(path: Path) -> ServiceConfig:
    """Reads and checks a configuration file; raises `ConfigError` that says where it is wrong."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(path, "no such file") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(path, f"cannot be read: {error}") from error
    try:
        return msgspec.convert(tree, ServiceConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(path, str(error)) from error


def _by_name(sections: tuple[_Named, ...], name: str) -> _Named:
    for section in sections:
        if section.name == name:
            return section
    raise KeyError(name)
