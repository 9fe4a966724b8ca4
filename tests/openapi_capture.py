"""Captures how FastAPI describes the runtime's protocols; `flashgen.openapi` builds a project's document from that.

The captured files lie in `blueprints/service/openapi/`, one per protocol; `make golden` rewrites them.
"""

import json
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from flashgen_runtime.server import generate, openai
from flashgen_runtime.server.app import ServiceApp

CAPTURES = Path(__file__).parent.parent / "blueprints" / "service" / "openapi"

Models = tuple[type[BaseModel] | None, type[BaseModel], dict[int | str, dict[str, Any]]]

# Request, response and other answers of each protocol, as the templates of its route name them.
PROTOCOLS: dict[str, Models] = {
    "generate": (generate.GenerateBody, generate.Generated, openai.STREAM_RESPONSES),
    "openai.chat_completions": (openai.ChatCompletionRequest, openai.ChatCompletion, openai.STREAM_RESPONSES),
    "openai.completions": (openai.CompletionRequest, openai.Completion, openai.STREAM_RESPONSES),
    "openai.embeddings": (openai.EmbeddingsRequest, openai.EmbeddingList, openai.RESPONSES),
    "openai.models": (None, openai.ModelList, openai.RESPONSES),
}

# What depends on a project, not on the protocol.
_OF_THE_PROJECT = ("summary", "description", "operationId")


def capture(protocol: str) -> str:
    """One protocol's operations and schemas, as JSON."""
    request, response, responses = PROTOCOLS[protocol]
    app = ServiceApp(title="capture", version="1")
    app.include_router(_router(request, response, responses))
    described = app.openapi()
    captured: dict[str, Any] = {
        "request": request.__name__ if request is not None else None,
        "response": response.__name__,
        "operation": _operation(described, "/captured"),
    }
    if request is None:
        captured["operation_by_id"] = _operation(described, "/captured/{model_id}")
    captured["schemas"] = described["components"]["schemas"]
    return json.dumps(captured, indent=2, ensure_ascii=False) + "\n"


def rewrite() -> None:
    """Writes the captures of all protocols."""
    CAPTURES.mkdir(parents=True, exist_ok=True)
    for protocol in PROTOCOLS:
        (CAPTURES / f"{protocol}.json").write_text(capture(protocol), encoding="utf-8")


def _router(
    request: type[BaseModel] | None, response: type[BaseModel], responses: dict[int | str, dict[str, Any]]
) -> APIRouter:
    router = APIRouter()
    if request is None:
        router.add_api_route("/captured", _listing, response_model=response, responses=responses)
        router.add_api_route("/captured/{model_id:path}", _by_id, response_model=openai.Model, responses=responses)
        return router

    async def endpoint(request: Request, body: Any) -> Response:  # noqa: ARG001  # never called
        return Response()

    endpoint.__annotations__["body"] = request
    router.add_api_route("/captured", endpoint, methods=["POST"], response_model=response, responses=responses)
    return router


async def _listing(request: Request) -> Response:  # noqa: ARG001  # never called
    return Response()


async def _by_id(request: Request, model_id: str) -> Response:  # noqa: ARG001  # never called
    return Response()


def _operation(described: dict[str, Any], path: str) -> dict[str, Any]:
    (operation,) = described["paths"][path].values()
    return {key: value for key, value in operation.items() if key not in _OF_THE_PROJECT}
