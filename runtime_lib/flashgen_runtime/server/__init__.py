"""The API side: routes, streaming, admission, routing. Never imports torch."""

from flashgen_runtime.server.app import create_app
from flashgen_runtime.server.serve import serve
from flashgen_runtime.server.service import Service

__all__ = ["Service", "create_app", "serve"]
