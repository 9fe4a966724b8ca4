"""What an operator may do with a worker's models, over its operations port."""

import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus

import msgspec

from flashgen_runtime.errors import RequestError
from flashgen_runtime.messages import FailureKind
from flashgen_runtime.operations import ModelAnswer
from flashgen_runtime.worker.model_manager import ModelManager
from flashgen_runtime.worker.worker import Worker

# The others say that it failed, or took too long.
_STATUS_OF: dict[FailureKind, HTTPStatus] = {
    "unknown_model": HTTPStatus.NOT_FOUND,
    # In use, or no room and nothing that may go.
    "overloaded": HTTPStatus.CONFLICT,
    # It can never fit.
    "invalid_request": HTTPStatus.CONFLICT,
}


class WorkerModels:
    """`operations.ModelOperations` of one worker."""

    def __init__(self, worker: Worker, manager: ModelManager) -> None:
        self._worker = worker
        self._manager = manager

    def list_models(self) -> list[dict[str, object]]:
        return [msgspec.structs.asdict(status) for status in self._manager.statuses]

    async def load_model(self, name: str) -> ModelAnswer:
        return await self._after(self._manager.load, name)

    async def unload_model(self, name: str) -> ModelAnswer:
        return await self._after(self._manager.unload, name)

    async def _after(self, act: Callable[[str], Awaitable[None]], name: str) -> ModelAnswer:
        began = time.monotonic()
        try:
            # Before anything else, so that an unknown name is one in every state.
            self._manager.status(name)
            if self._worker.state != "ready":
                return _refusal(HTTPStatus.SERVICE_UNAVAILABLE, f"the worker's state is {self._worker.state}")
            await act(name)
        except RequestError as error:
            return _refusal(_STATUS_OF.get(error.kind, HTTPStatus.SERVICE_UNAVAILABLE), error.message)
        status = self._manager.status(name)
        body: dict[str, object] = {
            "id": status.id,
            "residency": status.residency,
            "memory_bytes": status.memory_bytes if status.residency == "loaded" else 0,
            "seconds": round(time.monotonic() - began, 3),
        }
        return ModelAnswer(HTTPStatus.OK, body)


def _refusal(status: HTTPStatus, message: str) -> ModelAnswer:
    return ModelAnswer(status, {"error": message})
