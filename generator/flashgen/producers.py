"""Outputs that are made by Python code instead of a template, by the name that `produce` gives in a blueprint."""

from collections.abc import Callable

from flashgen.resolved import ResolvedProject


def produce(name: str, project: ResolvedProject) -> bytes:
    """The content of one output; texts are UTF-8 with LF."""
    return PRODUCERS[name](project)


def _wheel(_: ResolvedProject) -> bytes:
    from flashgen.runtime_wheel import runtime_wheel  # reads all of the runtime's sources

    return runtime_wheel().content


def _openapi(project: ResolvedProject) -> bytes:
    from flashgen.openapi import openapi_document  # needed by one output only

    return openapi_document(project).encode()


PRODUCERS: dict[str, Callable[[ResolvedProject], bytes]] = {"wheel": _wheel, "openapi": _openapi}

# Outputs that are no text: the build record keeps their hash instead of a copy.
BINARY = frozenset({"wheel"})
