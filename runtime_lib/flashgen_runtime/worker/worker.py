"""The worker's event loop: takes messages from API servers, carries requests to the engine and replies back.

Every request that arrives is answered: with its replies, or with one `RequestFailure`. One whose model is not loaded
waits for it. The worker's state goes from "loading" to
"ready", then to "draining" or "failed", never back.
"""

import asyncio
import logging
import uuid
from collections import defaultdict
from functools import partial
from typing import Any

import msgspec

from flashgen_runtime import timings
from flashgen_runtime.errors import RequestError
from flashgen_runtime.logs import fields
from flashgen_runtime.messages import (
    Cancel,
    EmbedRequest,
    GenerateRequest,
    Hello,
    Reply,
    StepOutputs,
    WorkerState,
    WorkerStatus,
    WorkRequest,
    is_final,
)
from flashgen_runtime.models.base import ServedModel
from flashgen_runtime.transport.base import Envelope, WorkerEndpoint
from flashgen_runtime.worker.accounting import TokenCount
from flashgen_runtime.worker.engine_loop import EngineLoop, Step, failure_of
from flashgen_runtime.worker.model_manager import ModelManager
from flashgen_runtime.worker.open_requests import OpenRequest, OpenRequests
from flashgen_runtime.worker.preparation import Preparation
from flashgen_runtime.worker.threads import run_in_daemon_thread

log = logging.getLogger(__name__)

# API servers admit far fewer; this bounds the memory of a worker that many of them share.
MAX_OPEN_REQUESTS = 4096

# How long `close` waits for the step that runs.
STOP_SECONDS = 1.0


class Worker:
    """Serves the models of one process until it is drained, closed, or an engine crashes.

    Args:
        endpoint: the line to the API servers; closed by `close`.
        manager: the models; started by `run`, ended by `close`.
        epoch: names this life of the worker, different from every other's.
        drain_seconds: how long open requests may take to finish.
    """

    def __init__(
        self,
        endpoint: WorkerEndpoint,
        manager: ModelManager,
        *,
        epoch: str | None = None,
        drain_seconds: float = 30.0,
    ) -> None:
        self._endpoint = endpoint
        self._manager = manager
        self._epoch = epoch or uuid.uuid4().hex
        self._drain_seconds = drain_seconds
        self._status = WorkerStatus(epoch=self._epoch, state="starting")
        self._open = OpenRequests()
        self._preparation = Preparation()
        self.engine_loop = EngineLoop(on_steps=self._send_steps, on_crash=self._end_after_crash)
        self._receiving: asyncio.Task[None] | None = None

        # Why `run` ends with an exception, and the drain on the way there.
        self._crash: BaseException | None = None
        self._ending: asyncio.Task[None] | None = None
        self._is_done = asyncio.Event()
        self._has_listener = asyncio.Event()
        endpoint.on_server_lost(self._abort_server)

    @property
    def state(self) -> WorkerState:
        return self._status.state

    async def run(self) -> None:
        """Loads the preloaded models and serves all of them; returns after `drain` or `close`.

        Raises:
            ServingError: a preloaded model cannot be loaded, or one can never fit. The state is "failed", and requests
                are refused until `close`.
            Exception: an engine crashed. Its requests have failed, those of other models were finished before.
        """
        self.engine_loop.start()
        self._receiving = asyncio.create_task(self._receive())
        self._receiving.add_done_callback(self._end_after_receiving)
        self._publish("loading")
        if await self._load():
            self._publish("ready")
            timings.current().ready()
        await self._is_done.wait()
        if self._crash is not None:
            raise self._crash

    async def drain(self) -> None:
        """Refuses new requests, finishes open ones within `drain_seconds`, fails the others, and ends `run`."""
        if self.state != "failed":
            self._publish("draining")
        tasks = [request.task for request in self._open if request.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=self._drain_seconds)
        for request in self._open:
            self._fail(request, RequestError("the worker ended before the answer was complete", kind="unavailable"))
        self._is_done.set()

    def stop(self) -> None:
        """Ends `run` at once, whatever is open."""
        self._is_done.set()

    async def wait_for_listener(self, seconds: float) -> None:
        """Waits until an API server has heard the state, `stop` or `drain` was called, or `seconds` have passed."""
        if self._endpoint.connected_servers:
            return
        self._has_listener.clear()
        waits = [asyncio.ensure_future(event.wait()) for event in (self._has_listener, self._is_done)]
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    async def close(self) -> None:
        """Ends everything at once; requests that are open fail on the API servers' side."""
        self._is_done.set()
        tasks = [self._receiving, self._ending, *(request.task for request in self._open)]
        for task in tasks:
            if task is not None:
                task.cancel()
        await asyncio.gather(*filter(None, tasks), return_exceptions=True)
        await self._manager.close()
        self.engine_loop.stop()
        # A step that takes longer goes on in its daemon thread, and nobody reads its outputs.
        await run_in_daemon_thread(partial(self.engine_loop.join, STOP_SECONDS), name="join")
        self._preparation.close()
        await self._endpoint.close()

    def _publish(self, state: WorkerState, *, detail: str = "") -> None:
        log.info("state", extra=fields(state=state, **({"detail": detail} if detail else {})))
        self._status = WorkerStatus(epoch=self._epoch, state=state, models=self._manager.statuses, detail=detail)
        self._endpoint.publish(self._status)

    def _publish_models(self) -> None:
        """Where the models are now, in the state as it is."""
        self._status = msgspec.structs.replace(self._status, models=self._manager.statuses)
        self._endpoint.publish(self._status)

    async def _load(self) -> bool:
        """Loads the preloaded models beside the event loop; `False` when `drain` or `close` came first."""
        start = self._manager.start(retire=self.engine_loop.remove, on_change=self._publish_models)
        loading = asyncio.ensure_future(start)
        done = asyncio.ensure_future(self._is_done.wait())
        await asyncio.wait([loading, done], return_when=asyncio.FIRST_COMPLETED)
        done.cancel()
        if not loading.done():
            loading.cancel()
            return False
        error = loading.exception()
        if error is not None:
            self._publish("failed", detail=str(error))
            raise error
        return self.state == "loading"

    async def _receive(self) -> None:
        while True:
            self._handle(await self._endpoint.receive())

    def _handle(self, envelope: Envelope) -> None:
        server_id, message = envelope
        match message:
            case GenerateRequest() | EmbedRequest():
                self._accept(server_id, message)
            case Cancel():
                self._cancel(server_id, message.request_id)
            case Hello():
                # A new connection, which has the status; whatever the server had open before, it has given up.
                self._has_listener.set()
                self._abort_server(server_id)

    def _accept(self, server_id: bytes, request: WorkRequest) -> None:
        refusal = self._refusal(request)
        if refusal is not None:
            self._send_failure(server_id, request.request_id, refusal)
            return
        open_request = OpenRequest(request.request_id, server_id)
        self._open.add(open_request)
        task = open_request.task = asyncio.create_task(self._serve(open_request, request))
        # Not at the end of the task: one that is cancelled before it begins never gets there.
        task.add_done_callback(lambda _: self._open.remove(open_request))

    def _refusal(self, request: WorkRequest) -> RequestError | None:
        """Why the worker as a whole does not take a request."""
        if self.state != "ready":
            detail = f": {self._status.detail}" if self._status.detail else ""
            return RequestError(
                f"the worker does not take requests, its state is {self.state}{detail}", kind="unavailable"
            )
        if len(self._open) >= MAX_OPEN_REQUESTS:
            return RequestError(f"the worker has {MAX_OPEN_REQUESTS} requests open", kind="overloaded")
        if request.request_id in self._open:
            return RequestError(f"request id `{request.request_id}` is in use", kind="invalid_request")
        return None

    async def _serve(self, open_request: OpenRequest, request: WorkRequest) -> None:
        """One request from its arrival to its final reply, or to its cancellation."""
        try:
            async with self._manager.lease(request.model) as model:
                prepared = await self._preparation.prepare(model, request)
                await self._generate(open_request, model, prepared)
        except RequestError as error:
            self._send_failure(open_request.server_id, request.request_id, error)
        except Exception:
            log.exception("request %s failed", request.request_id)
            internal = RequestError("internal error", kind="internal")
            self._send_failure(open_request.server_id, request.request_id, internal)

    async def _generate(self, open_request: OpenRequest, model: ServedModel, prepared: Any) -> None:
        """Leaves the request to the engine until its final reply has passed."""
        open_request.model = model
        self.engine_loop.add(model, open_request.request_id, prepared)
        try:
            await open_request.finished
        except asyncio.CancelledError:
            self.engine_loop.abort(model, open_request.request_id)
            raise

    def _send_steps(self, steps: list[Step]) -> None:
        """Sends what the engines brought: one message to each API server."""
        by_server: defaultdict[bytes, list[Reply]] = defaultdict(list)
        for step in steps:
            tokens = TokenCount()
            for reply in step.replies:
                open_request = self._open.get(reply.request_id)
                if open_request is None:
                    continue  # cancelled while the step ran
                by_server[open_request.server_id].append(reply)
                tokens.add(open_request, reply)
                if is_final(reply):
                    self._open.remove(open_request)
                    open_request.finish()
            tokens.publish(step.model.status.id)
        for server_id, replies in by_server.items():
            self._send(server_id, replies)

    def _send_failure(self, server_id: bytes, request_id: str, error: RequestError) -> None:
        self._send(server_id, [failure_of(request_id, error)])

    def _fail(self, open_request: OpenRequest, error: RequestError) -> None:
        """Ends a request that was accepted with a failure."""
        self._open.remove(open_request)
        self._send_failure(open_request.server_id, open_request.request_id, error)
        open_request.cancel()

    def _send(self, server_id: bytes, replies: list[Reply]) -> None:
        if not self._endpoint.send(server_id, StepOutputs(epoch=self._epoch, replies=replies)):
            self._abort_server(server_id)

    def _cancel(self, server_id: bytes, request_id: str) -> None:
        open_request = self._open.get(request_id)
        if open_request is not None and open_request.server_id == server_id:
            open_request.cancel()

    def _abort_server(self, server_id: bytes) -> None:
        for open_request in self._open.of_server(server_id):
            open_request.cancel()

    def _end_after_crash(self, model: ServedModel, error: Exception) -> None:
        """Fails the model's requests, finishes those of other models, then ends: a fresh process is whole again."""
        for open_request in self._open.of_model(model):
            self._fail(open_request, RequestError("the engine has crashed", kind="internal"))
        if self._crash is None:
            self._crash = error
            self._publish("failed", detail=f"the engine of `{model.status.id}` crashed: {error}")
            self._ending = asyncio.create_task(self.drain())

    def _end_after_receiving(self, receiving: "asyncio.Task[None]") -> None:
        """Without its receiver the worker is deaf, so it ends."""
        if not receiving.cancelled():
            self._crash = receiving.exception()
            self._is_done.set()
