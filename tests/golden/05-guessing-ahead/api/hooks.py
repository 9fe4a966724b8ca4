# Owned by you: flashgen wrote this once and will not touch it again.
"""Your code around every generated text: check or change the request, see the answer."""

from flashgen_runtime.messages import GenerateRequest
from flashgen_runtime.server.hooks import Generation


async def before_generate(request: GenerateRequest) -> GenerateRequest:
    """Gives the request to serve: this one, a changed copy, or a refusal by raising `RequestError`."""
    return request


async def after_generate(request: GenerateRequest, result: Generation) -> None:
    """Sees each complete answer once, whole or streamed."""
