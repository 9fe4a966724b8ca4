"""Apis: one route each, a protocol that is known and built, a server that can answer."""

from flashgen.diagnostics import in_words, quote
from flashgen.document import NodePath
from flashgen.protocols import PROTOCOLS, protocol_of_path
from flashgen.validation.facts import ApiFacts, Facts, ServerFacts
from flashgen.validation.problems import Problems

# Paths that the API server answers itself.
_RESERVED_PATHS = frozenset(
    {"/readyz", "/livez", "/healthz", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"}
)


def check_apis(facts: Facts, problems: Problems) -> None:
    """Reports apis that clash, that have no protocol, or that no server can answer."""
    _check_routes(facts, problems)
    for api in facts.apis:
        if api.protocol is None:
            _report_no_protocol(api, problems)
            continue
        _check_method(api, problems)
        _check_servers(api, facts, problems)
    _check_tasks(facts, problems)


def _check_routes(facts: Facts, problems: Problems) -> None:
    first: dict[tuple[str, str], NodePath] = {}
    for api in facts.apis:
        if api.path is None:
            continue
        path = api.node.at("path")
        if (api.path.rstrip("/") or "/") in _RESERVED_PATHS:
            problems.at_value(path, "FG201", f"{quote(api.path)} is answered by the API server itself")
        method = api.node.get("method") or (api.protocol.method if api.protocol else "POST")
        route = (method, api.path.rstrip("/"))
        if route in first:
            message = f"two apis answer `{method}` {quote(api.path)}"
            problems.at_value(path, "FG201", message, other=(first[route], "the first one"))
        first.setdefault(route, path)


def _report_no_protocol(api: ApiFacts, problems: Problems) -> None:
    is_broken = api.path is None or api.node.at("protocol") in problems.broken
    if is_broken or api.node.data.keys() & {"prompt", "steps", "handler"}:
        return  # the other mistake comes first
    assert api.path is not None, "checked above"
    implied = protocol_of_path(api.path)
    if implied is not None:
        message = f"the protocol `{implied}` of {quote(api.path)} is not supported yet"
        problems.at_value(api.node.at("path"), "FG108", message)
        return
    message = f"nothing says what {quote(api.path)} speaks"
    hint = f"add `protocol:` with one of {in_words(PROTOCOLS, last='or')}"
    problems.at_value(api.node.at("path"), "FG204", message, hint=hint)


def _check_method(api: ApiFacts, problems: Problems) -> None:
    method = api.node.get("method")
    assert api.protocol is not None, "callers skip apis without protocol"
    if method is not None and method != api.protocol.method:
        message = f"`{api.protocol.name}` is called with {api.protocol.method}, not {method}"
        hint = f"write `method: {api.protocol.method}`, or leave it out"
        problems.at_value(api.node.at("method"), "FG205", message, hint=hint)


def _check_servers(api: ApiFacts, facts: Facts, problems: Problems) -> None:
    if api.servers is not None or len(facts.servers) < 2 or api.protocol is None:
        return
    if any(server.has_mistakes for server in facts.servers):
        return  # without them the answer may be clear
    place = api.node.at("path")
    fitting = [server for server in facts.servers if server.tasks & {api.protocol.task, None}]
    if not fitting:
        problems.at_value(
            place, "FG205", f"no server has a model for {api.protocol.task}, which `{api.protocol.name}` needs"
        )
        return
    names = [server.name for server in fitting]
    message = (
        f"{len(fitting)} servers could answer {quote(api.path)}"
        if len(fitting) > 1
        else (f"it is not certain which server answers {quote(api.path)}")
    )
    problems.at_value(place, "FG203", message, hint=f"add `server:` with {in_words(names, last='or')}")


def _check_tasks(facts: Facts, problems: Problems) -> None:
    """An api needs a model of its protocol's task; models without `type` get the first task that no other has."""
    settled: dict[int, ApiFacts] = {}
    for api in facts.apis:
        if api.protocol is None or api.protocol.task is None:
            continue
        for server in api.servers or ():
            if api.protocol.task in server.tasks:
                continue
            if None in server.tasks:
                server.settled_task = api.protocol.task
                settled[server.index] = api
            else:
                _report_task(api, server, settled.get(server.index), problems)


def _report_task(api: ApiFacts, server: ServerFacts, settled_by: ApiFacts | None, problems: Problems) -> None:
    assert api.protocol is not None, "callers skip apis without protocol"
    path = api.node.at("server") if "server" in api.node.data else api.node.at("path")
    needed = f"`{api.protocol.name}` needs a model for {api.protocol.task}"
    tasks = " and ".join(sorted(task for task in server.tasks if task))
    message = (
        f"{needed}; server {quote(server.name)} has {'one' if len(server.models) == 1 else 'only ones'} for {tasks}"
    )
    if settled_by is not None:
        other = (settled_by.node.at("path"), f"this api makes it {server.settled_task}")
    elif len(server.models) == 1 and (node := server.models[0].node):
        other = (node.at("type"), "its model's type")
    else:
        other = (server.entries[0].path[: len(server.node.path) + 1], "its models")
    problems.at_value(path, "FG205", message, other=other)
