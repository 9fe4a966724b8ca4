"""The application around a project's own routes: errors, probes, limits, documentation, start and stop."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse

from flashgen_runtime.operations import Probe
from flashgen_runtime.server.documentation import documentation_page
from flashgen_runtime.server.exception_handlers import add_exception_handlers
from flashgen_runtime.server.middleware import Measured, Paths, RequestContext
from flashgen_runtime.server.request_body import BoundedBody
from flashgen_runtime.server.service import Service


class ServiceApp(FastAPI):
    """A FastAPI application whose description names the errors that it really gives."""

    def openapi(self) -> dict[str, Any]:
        """FastAPI's description without 422, which is 400 here."""
        if self.openapi_schema is None:
            schema = get_openapi(
                title=self.title, version=self.version, description=self.description, routes=self.routes
            )
            self.openapi_schema = _without_validation_errors(schema)
        return self.openapi_schema


def create_app(service: Service, *, title: str, description: str, version: str) -> FastAPI:
    """An application without routes of its own; it starts and stops the service. The caller includes the routers."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.close()

    app = ServiceApp(
        title=title, description=description, version=version, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.state.service = service
    add_exception_handlers(app)
    _add_probes(app, service)
    app.add_api_route("/docs", _documentation(title), include_in_schema=False)
    _add_middleware(app, service)
    return app


def _add_middleware(app: FastAPI, service: Service) -> None:
    """Innermost first."""
    apis: dict[tuple[str, str], str] = {(api.method, api.path): api.name for api in service.config.apis}
    paths = {*(api.path for api in service.config.apis), *_PROBE_PATHS, "/docs", "/openapi.json"}
    app.add_middleware(BoundedBody)
    app.add_middleware(Measured, apis=apis)
    app.add_middleware(Paths, paths=paths)
    app.add_middleware(RequestContext)


_PROBE_PATHS = ("/readyz", "/livez", "/healthz")


def _add_probes(app: FastAPI, service: Service) -> None:
    for path, probe in zip(_PROBE_PATHS, (service.readyz, service.livez, service.livez), strict=True):
        app.add_api_route(path, _probe(probe), include_in_schema=False)


def _probe(probe: Callable[[], Probe]) -> Callable[[], Any]:
    async def answer() -> Response:
        said = probe()
        status = HTTPStatus.OK if said.ok else HTTPStatus.SERVICE_UNAVAILABLE
        retry = {} if said.retry_after_seconds is None else {"Retry-After": str(said.retry_after_seconds)}
        headers = {"Cache-Control": "no-store", **retry}
        return Response(msgspec.json.encode(said.body), status, headers, media_type="application/json")

    return answer


def _documentation(title: str) -> Callable[[], Any]:
    page = documentation_page(title)

    async def answer() -> Response:
        return HTMLResponse(page)

    return answer


def _without_validation_errors(schema: dict[str, Any]) -> dict[str, Any]:
    for operations in schema.get("paths", {}).values():
        for operation in operations.values():
            operation.get("responses", {}).pop("422", None)
    schemas = schema.get("components", {}).get("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    return schema
