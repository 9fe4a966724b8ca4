"""`/v1/embeddings`: texts as vectors."""

import base64
import sys
from array import array
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Request, Response
from pydantic import BaseModel, Field, field_validator

from flashgen_runtime.errors import RequestError
from flashgen_runtime.messages import EmbedRequest
from flashgen_runtime.server.caller import while_connected
from flashgen_runtime.server.fields import RequestBody, unknown_fields
from flashgen_runtime.server.openai.token_ids import TokenIds, as_list_of_inputs
from flashgen_runtime.server.responses import ignored_header, json_response, new_id, service_of

MAX_INPUTS = 2048
ENCODING_FORMATS = ("float", "base64")

Text = Annotated[str, Field(min_length=1)]


class EmbeddingsRequest(RequestBody):
    """Texts or token ids, one or many."""

    input: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS)]
        | TokenIds
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_INPUTS)]
    ) = Field(description="Text or token ids, or a list of either.")
    encoding_format: str = Field(
        "float",
        description="Numbers, or little-endian 32-bit floats in base64.",
        json_schema_extra={"enum": list(ENCODING_FORMATS)},
    )

    @field_validator("encoding_format", mode="after")
    @classmethod
    def _encoding_format_is_known(cls, value: str) -> str:
        if value not in ENCODING_FORMATS:
            message = f"`encoding_format` must be one of {', '.join(ENCODING_FORMATS)}"
            raise RequestError(message, kind="invalid_request", param="encoding_format")
        return value


class Embedding(BaseModel):
    """The vector of one input."""

    object: str = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingsUsage(BaseModel):
    """Tokens read."""

    prompt_tokens: int
    total_tokens: int


if TYPE_CHECKING:
    # A project may declare its outputs more loosely, as in `data: list[dict[str, Any]]`.
    Data = list[Any]
    AnyUsage = Any
else:
    Data = list[Embedding]
    AnyUsage = EmbeddingsUsage


class EmbeddingList(BaseModel):
    """The whole answer, in the order of the inputs."""

    object: str = "list"
    data: Data
    model: str
    usage: AnyUsage


async def embeddings(request: Request, body: EmbeddingsRequest, *, api: str) -> Response:
    """Turns texts into vectors."""
    service = service_of(request)
    target = service.router.target(api, body.model, task="feature-extraction")
    inputs = as_list_of_inputs(body.input, param="input")
    embed_request = EmbedRequest(request_id=new_id("embd"), model=target.model.id, inputs=inputs)
    answer = await while_connected(request, service.embed(target, embed_request), api=api)
    as_base64 = body.encoding_format == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": _as_base64(vector) if as_base64 else _as_floats(vector)}
        for index, vector in enumerate(answer.vectors)
    ]
    usage = {"prompt_tokens": answer.prompt_tokens, "total_tokens": answer.prompt_tokens}
    content = {"object": "list", "data": data, "model": target.model.id, "usage": usage}
    return json_response(content, ignored_header(unknown_fields(body)))


def _as_base64(vector: bytes) -> str:
    return base64.b64encode(vector).decode("ascii")


def _as_floats(vector: bytes) -> list[float]:
    values = array("f", vector)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tolist()
