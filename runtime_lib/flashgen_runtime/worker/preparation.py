"""Encodes requests beside the event loop, and short ones on it: there a thread's two wake-ups would cost more."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from flashgen_runtime.messages import EmbedRequest, WorkRequest
from flashgen_runtime.models.base import ServedModel

# Tokenizers let go of the interpreter while they work, so two threads are of use.
NUM_THREADS = 2

# About a quarter of a millisecond of tokenizing, in characters or token ids.
MAX_SHORT_LENGTH = 1000


class Preparation:
    """Calls `ServedModel.prepare`, in a thread of its own where that takes long."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="prepare")

    async def prepare(self, model: ServedModel, request: WorkRequest) -> Any:
        """What `model.add` takes; raises as `model.prepare` does. Cancelled, it ends when the thread is through."""
        if _is_short(request):
            return model.prepare(request)
        running = self._threads.submit(model.prepare, request)
        result = asyncio.wrap_future(running)
        try:
            return await asyncio.shield(result)
        except asyncio.CancelledError:
            # Whoever called has a lease of the model, which must last as long as the thread uses it.
            if not running.cancel():
                await asyncio.wait([result])
            raise

    def close(self) -> None:
        """Drops what waits; what runs ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _is_short(request: WorkRequest) -> bool:
    if isinstance(request, EmbedRequest):
        return sum(len(text) for text in request.inputs) <= MAX_SHORT_LENGTH
    if len(request.prediction or "") > MAX_SHORT_LENGTH:
        return False
    if request.messages is None:
        return len(request.prompt or ()) <= MAX_SHORT_LENGTH
    # Contents may be nested, and templates read other fields too: the repr is as long as all of it.
    return len(request.messages) < MAX_SHORT_LENGTH // 10 and len(repr(request.messages)) <= MAX_SHORT_LENGTH
