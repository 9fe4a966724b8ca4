"""A service with two servers and the routes that a generated project would have, for the tests of the API side."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Request, Response
from pydantic import BaseModel, Field

from flashgen_runtime.config import ServiceConfig, load_config
from flashgen_runtime.messages import (
    GenerateRequest,
    ModelStatus,
    Reply,
    WorkerState,
    WorkerStatus,
    WorkRequest,
    is_final,
)
from flashgen_runtime.server import Service, create_app, generate, openai
from flashgen_runtime.server.hooks import Generation, Hooks
from flashgen_runtime.server.pool import WorkerPool
from flashgen_runtime.testing import fake_service

CHAT_MODEL = "acme/chat-7b"
EMBED_MODEL = "mini"

# Generous: other tests may have the machine.
TIMEOUT_SECONDS = 20.0

CONFIG = """\
version: 1
name: tested
apis:
  - {name: chat_completions, path: /v1/chat/completions, method: POST, protocol: openai.chat_completions,
     servers: [chat]}
  - {name: completions, path: /v1/completions, method: POST, protocol: openai.completions, servers: [chat]}
  - {name: embeddings, path: /v1/embeddings, method: POST, protocol: openai.embeddings, servers: [embed]}
  - {name: generate, path: /generate/, method: POST, protocol: generate, servers: [chat]}
  - {name: models, path: /v1/models, method: GET, protocol: openai.models, servers: [chat, embed]}
servers:
  - name: chat
    rpc_port: 6500
    operations_port: 9500
    threads: 1
    models:
      - {id: acme/chat-7b, aliases: [chat, default], task: text-generation, source: {kind: folder, folder: chat},
         dtype: float32, quantization: null, device: cpu, max_context: 200, chat_template: null,
         generation_params: {}, prefetch: [], speculative: null, weight_bytes: null, sequence_kv_bytes: null}
    engine: &engine
      {batching_mode: continuous, max_num_seqs: 4, max_num_batched_tokens: 256, max_wait_seconds: 0,
       kv_cache_dtype: auto, block_size: 16, kv_cache_bytes: 1048576, prefix_caching: true, deterministic: false}
    memory_bytes: 1073741824
    weights: &weights
      {path: null, loader: auto, threads: 2, host_cache_bytes: null, keep_in_ram: true, verify: size}
    swap: {max_loaded: 1, evict: lru, idle_timeout_seconds: null, preload: [acme/chat-7b], load_timeout_seconds: 60}
    requirements: {gpus: 0, gpu_memory_bytes: null, gpu_cuda_capability: null}
  - name: embed
    rpc_port: 6501
    operations_port: 9501
    threads: 1
    models:
      - {id: mini, aliases: [], task: feature-extraction, source: {kind: folder, folder: mini},
         dtype: float32, quantization: null, device: cpu, max_context: 200, chat_template: null,
         generation_params: {}, prefetch: [], speculative: null, weight_bytes: null, sequence_kv_bytes: null}
    engine: *engine
    memory_bytes: 1073741824
    weights: *weights
    swap: {max_loaded: 1, evict: lru, idle_timeout_seconds: null, preload: [mini], load_timeout_seconds: 60}
    requirements: {gpus: 0, gpu_memory_bytes: null, gpu_cuda_capability: null}
"""


class RecordingHooks:
    """Lets everything pass and remembers it."""

    def __init__(self) -> None:
        self.requests: list[GenerateRequest] = []
        self.results: list[Generation] = []

    async def before_generate(self, request: GenerateRequest) -> GenerateRequest:
        self.requests.append(request)
        return request

    async def after_generate(self, request: GenerateRequest, result: Generation) -> None:
        assert request in self.requests
        self.results.append(result)


class NarrowChatRequest(openai.ChatCompletionRequest):
    """What a spec with declared inputs makes of the protocol's request."""

    messages: list[dict[str, Any]] | str
    max_tokens: Annotated[int, Field(le=32)] = 5
    temperature: float = 0.5


class Responses(BaseModel):
    """What a spec with declared outputs makes of the answer."""

    responses: list[str]


def config_file(folder: Path) -> Path:
    """The configuration as a file."""
    path = folder / "service.yaml"
    path.write_text(CONFIG)
    return path


def read_config(folder: Path) -> ServiceConfig:
    """The configuration as the service takes it."""
    return load_config(config_file(folder))


def application(service: Service, hooks: Hooks | None = None) -> FastAPI:
    """An application as the generated `api/main.py` builds it."""
    app = create_app(service, title="tested <service>", description="For tests.", version="1")
    app.include_router(_routes(hooks or RecordingHooks()))
    return app


def fake_application(folder: Path, hooks: Hooks | None = None, *, delay_seconds: float = 0.0) -> FastAPI:
    """The same with fake workers that really run."""
    return application(fake_service(config_file(folder), delay_seconds=delay_seconds), hooks)


_STATUSES = (ModelStatus(id=CHAT_MODEL), ModelStatus(id=EMBED_MODEL, task="feature-extraction"))


class ScriptedConnection:
    """A `WorkerConnection` whose worker is the test: it says the status, and gives the replies one by one."""

    def __init__(self, address: str = "scripted:1", *, state: WorkerState | None = "ready") -> None:
        self.address = address
        self.requests: list[WorkRequest] = []
        self.cancelled: list[str] = []
        self.is_started = self.is_closed = False
        self.replies: asyncio.Queue[Reply | Exception] = asyncio.Queue()
        self.asked = asyncio.Event()
        self._callbacks: list[Callable[[], None]] = []
        self._status: WorkerStatus | None = None
        if state is not None:
            self.say(state)

    @property
    def status(self) -> WorkerStatus | None:
        return self._status

    def say(self, state: WorkerState | None, detail: str = "", *, models: tuple[ModelStatus, ...] = _STATUSES) -> None:
        """The worker's state from now on; `None` is a lost connection."""
        said = None if state is None else WorkerStatus(epoch="1", state=state, models=models, detail=detail)
        self._status = said
        for callback in self._callbacks:
            callback()

    def on_change(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)

    async def stream(self, request: WorkRequest) -> AsyncGenerator[Reply, None]:
        self.requests.append(request)
        self.asked.set()
        is_whole = False
        try:
            while not is_whole:
                reply = await self.replies.get()
                if isinstance(reply, Exception):
                    is_whole = True
                    raise reply
                is_whole = is_final(reply)
                yield reply
        finally:
            if not is_whole:
                self.cancelled.append(request.request_id)

    async def start(self) -> None:
        self.is_started = True

    async def close(self) -> None:
        self.is_closed = True


def scripted_service(folder: Path, *connections: ScriptedConnection) -> Service:
    """A service all of whose servers have these workers."""
    return Service(read_config(folder), connect=lambda _server: WorkerPool(connections))


def _routes(hooks: Hooks) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/chat/completions", response_model=openai.ChatCompletion, responses=openai.STREAM_RESPONSES)
    async def chat_completions(request: Request, body: openai.ChatCompletionRequest) -> Response:
        """Continues a conversation."""
        return await openai.chat_completions(request, body, api="chat_completions", hooks=hooks)

    @router.post("/narrow", response_model=openai.ChatCompletion, responses=openai.STREAM_RESPONSES)
    async def narrow(request: Request, body: NarrowChatRequest) -> Response:
        """Continues a conversation within narrower bounds."""
        return await openai.chat_completions(request, body, api="chat_completions", hooks=hooks)

    @router.post("/v1/completions", response_model=openai.Completion, responses=openai.STREAM_RESPONSES)
    async def completions(request: Request, body: openai.CompletionRequest) -> Response:
        """Continues texts."""
        return await openai.completions(request, body, api="completions", hooks=hooks)

    @router.post("/v1/embeddings", response_model=openai.EmbeddingList, responses=openai.RESPONSES)
    async def embeddings(request: Request, body: openai.EmbeddingsRequest) -> Response:
        """Turns texts into vectors."""
        return await openai.embeddings(request, body, api="embeddings")

    @router.post("/generate/", response_model=generate.Generated, responses=openai.STREAM_RESPONSES)
    async def generate_text(request: Request, body: generate.GenerateBody) -> Response:
        """Continues a text."""
        return await generate.generate(request, body, api="generate", hooks=hooks)

    @router.post("/several", response_model=Responses, responses=openai.STREAM_RESPONSES)
    async def several(request: Request, body: generate.GenerateBody) -> Response:
        """Continues a text in several ways."""
        return await generate.generate(request, body, api="generate", hooks=hooks, outputs=Responses)

    @router.get("/v1/models", response_model=openai.ModelList, responses=openai.RESPONSES)
    async def models(request: Request) -> Response:
        """Lists the models."""
        return await openai.list_models(request)

    @router.get("/v1/models/{model_id:path}", response_model=openai.Model, responses=openai.RESPONSES)
    async def model(request: Request, model_id: str) -> Response:
        """Describes a model."""
        return await openai.get_model(request, model_id)

    @router.get("/bug")
    async def bug() -> Response:
        """Fails."""
        raise RuntimeError("a secret of the implementation")

    return router
