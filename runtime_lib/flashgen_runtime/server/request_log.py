"""What the log says about requests: refusals in a line, bugs with their traceback, each with the request's id."""

import logging
from contextvars import ContextVar

from flashgen_runtime.logs import fields
from flashgen_runtime.server.errors import Refusal

log = logging.getLogger("flashgen_runtime.server")

# Set for each request by the outermost middleware.
request_id: ContextVar[str] = ContextVar("request_id", default="-")


def log_refusal(refusal: Refusal) -> None:
    """A request that ended in an error which says all there is to say."""
    level = logging.WARNING if refusal.status >= 500 else logging.INFO
    about = fields(request_id=request_id.get(), status=refusal.status, param=refusal.param, code=refusal.code)
    log.log(level, "request refused: %s", refusal.message, extra=about)


def log_bug(what: str) -> None:
    """A request that ended in an exception nobody expected; called while that is handled."""
    log.exception("%s", what, extra=fields(request_id=request_id.get()))
