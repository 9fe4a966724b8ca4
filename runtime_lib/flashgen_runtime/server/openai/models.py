"""`/v1/models`: what there is to ask, ready or not."""

from typing import TYPE_CHECKING, Any

from fastapi import Request, Response
from pydantic import BaseModel, Field

from flashgen_runtime.messages import ModelStatus
from flashgen_runtime.server.responses import json_response, service_of
from flashgen_runtime.server.router import Target
from flashgen_runtime.server.service import Service

OWNER = "flashgen"


class Model(BaseModel):
    """One model."""

    id: str
    object: str = "model"
    created: int = Field(description="Unix time in seconds when this API server started.")
    owned_by: str = OWNER
    aliases: list[str]
    task: str
    ready: bool = Field(description="Whether a worker takes requests for it now.")
    residency: str | None = Field(
        None,
        description="Where a worker has it: `unloaded`, `loading`, `loaded`, `unloading` or `failed`; a request for a "
        "model that is not loaded waits until it is.",
    )
    memory_bytes: int | None = Field(None, description="What it takes in memory while it is loaded.")
    problem: str | None = Field(None, description="Why it could not be loaded.")

    # Known once a worker has loaded the model.
    dtype: str | None = None
    quantization: str | None = Field(None, description="`int8` or `int4`; null where weights are in `dtype`.")
    kv_cache_dtype: str | None = None
    path: str | None = Field(None, description="How the model runs: `native`, `paged` or `plain`.")
    path_reason: str | None = Field(None, description="Why it does not take a faster path.")
    kernels: str | None = Field(None, description="Instruction set of the kernels, or `torch`.")
    speculative: str | None = Field(None, description="Who guesses its next tokens: `ngram`, `draft` or `tree`.")
    max_model_len: int | None = Field(None, description="Longest prompt plus completion in tokens.")


if TYPE_CHECKING:
    # A project may declare its outputs more loosely, as in `data: list[dict[str, Any]]`.
    Data = list[Any]
else:
    Data = list[Model]


class ModelList(BaseModel):
    """All models of the service."""

    object: str = "list"
    data: Data


async def list_models(request: Request) -> Response:
    """Lists the models of the service, those that still load among them."""
    service = service_of(request)
    return json_response({"object": "list", "data": [_described(service, target) for target in service.router.models]})


async def get_model(request: Request, model_id: str) -> Response:
    """Describes one model, found by its id, which may hold slashes, or by an alias."""
    service = service_of(request)
    return json_response(_described(service, service.router.model(model_id.rstrip("/"))))


def _described(service: Service, target: Target) -> dict[str, object]:
    known = service.router.status(target)
    status = known or ModelStatus(id=target.model.id)
    return {
        "id": target.model.id,
        "object": "model",
        "created": service.created,
        "owned_by": OWNER,
        "aliases": target.model.aliases,
        "task": target.model.task,
        "ready": service.router.is_ready(target),
        "residency": None if known is None else known.residency,
        "memory_bytes": status.memory_bytes or None,
        "problem": status.problem or None,
        "dtype": status.dtype or None,
        "quantization": status.quantization or None,
        "kv_cache_dtype": status.kv_cache_dtype or None,
        "path": status.path or None,
        "path_reason": status.path_reason or None,
        "kernels": status.kernels or None,
        "speculative": status.speculative or None,
        "max_model_len": status.max_context or None,
    }
