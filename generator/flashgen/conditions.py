"""The words that `when` in a blueprint may ask for.

`when: {target: kubernetes, protocol: [generate, openai.completions]}` holds when, for every key, one of the wanted
words is among the words that the key has for this output: those of its api or server, else those of the whole project.
"""

from collections.abc import Callable, Iterable
from typing import Any

from flashgen.errors import InternalError
from flashgen.resolved import ResolvedApi, ResolvedProject, ResolvedServer


def holds(when: dict[str, Any], project: ResolvedProject, context: dict[str, object]) -> bool:
    """Whether an output with the loop variables `context` is wanted."""
    return all(_wanted(value) & _words(key, project, context) for key, value in when.items())


def _wanted(value: str | list[str]) -> set[str]:
    return {value} if isinstance(value, str) else set(value)


def _words(key: str, project: ResolvedProject, context: dict[str, object]) -> set[str]:
    if key not in _CONDITIONS:
        raise InternalError(f"`when` knows {', '.join(sorted(_CONDITIONS))}, not `{key}`")
    return _CONDITIONS[key](project, context)


def _targets(project: ResolvedProject, _: dict[str, object]) -> set[str]:
    return set(project.targets)


def _protocols(project: ResolvedProject, context: dict[str, object]) -> set[str]:
    api = context.get("api")
    return {api.protocol} if isinstance(api, ResolvedApi) else {api.protocol for api in project.apis}


def _tasks(project: ResolvedProject, context: dict[str, object]) -> set[str]:
    return {model.task for server in _servers(project, context) for model in server.models}


def _facts(project: ResolvedProject, context: dict[str, object]) -> set[str]:
    return {fact for server in _servers(project, context) for fact in server.facts}


def _servers(project: ResolvedProject, context: dict[str, object]) -> Iterable[ResolvedServer]:
    server, api = context.get("server"), context.get("api")
    if isinstance(server, ResolvedServer):
        return (server,)
    return api.servers if isinstance(api, ResolvedApi) else project.servers


_CONDITIONS: dict[str, Callable[[ResolvedProject, dict[str, object]], set[str]]] = {
    "target": _targets,
    "protocol": _protocols,
    "task": _tasks,
    "has": _facts,
}
