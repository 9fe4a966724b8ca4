"""Small pieces that the endpoints share: the service behind a request, ids, JSON, headers."""

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from typing import cast

import msgspec
from fastapi import Request, Response

import flashgen_runtime
from flashgen_runtime.server.service import Service

# Changes with the build, as clients expect; equal for equal versions.
SYSTEM_FINGERPRINT = "fp_" + hashlib.sha256(flashgen_runtime.__version__.encode()).hexdigest()[:10]

IGNORED_HEADER = "x-flashgen-ignored"
NOTICE_HEADER = "x-flashgen-notice"


def service_of(request: Request) -> Service:
    """The service that `create_app` put into the application."""
    return cast("Service", request.app.state.service)


def new_id(prefix: str) -> str:
    """An id that no other answer has."""
    return f"{prefix}-{uuid.uuid4().hex}"


def json_response(content: object, headers: Mapping[str, str] | None = None) -> Response:
    """A whole answer; `content` is what `msgspec` encodes."""
    return Response(msgspec.json.encode(content), headers=headers, media_type="application/json")


def ignored_header(names: Sequence[str]) -> dict[str, str]:
    """Tells which fields had no effect."""
    return {IGNORED_HEADER: ", ".join(names)} if names else {}
