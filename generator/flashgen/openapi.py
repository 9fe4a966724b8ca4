"""The OpenAPI document of a project: what the generated application serves at `/openapi.json`, without running it.

What the runtime's protocols say comes from `blueprints/service/openapi/`, captured from the runtime's own models by
`make golden`; what a spec declares is added here the way pydantic and FastAPI would. A test of every generated project
compares the two.
"""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from flashgen.openapi_fields import input_schema, output_schema
from flashgen.quoting import docstring_value
from flashgen.resolved import ResolvedApi, ResolvedProject
from flashgen.resources import data_dir
from flashgen.route_classes import request_class, response_class
from flashgen.user_text import plain_text

Schema = dict[str, Any]

# Docstrings of the generated classes and of the second route of `openai.models`: the words of the templates.
_REQUEST_DESCRIPTION = "What callers send. Fields that are not named here follow the protocol."
_RESPONSE_DESCRIPTION = "What callers get."
_BY_ID_DESCRIPTION = "Describe one model, by its id or an alias."


def openapi_document(project: ResolvedProject) -> str:
    """The document as JSON, indented by two."""
    paths: Schema = {}
    schemas: Schema = {}
    for api in project.apis:
        captured = _captured(api.protocol)
        for path, operation in _operations(project, api, captured):
            paths.setdefault(path, {})[api.method.lower()] = operation
        schemas |= _schemas(project, api, captured)
    used = set(_reached(paths, schemas))
    document = {
        "openapi": "3.1.0",
        "info": {"title": project.name, "description": plain_text(project.description), "version": "1"},
        "paths": paths,
        "components": {"schemas": {name: schemas[name] for name in sorted(used)}},
    }
    return json.dumps(document, ensure_ascii=False, indent=2) + "\n"


def _captured(protocol: str) -> Schema:
    path = data_dir("blueprints") / "service" / "openapi" / f"{protocol}.json"
    captured: Schema = json.loads(path.read_text(encoding="utf-8"))
    return captured


def _operations(project: ResolvedProject, api: ResolvedApi, captured: Schema) -> Iterator[tuple[str, Schema]]:
    description = docstring_value(api.description) or api.path
    yield (
        api.path,
        _operation(
            api.name, api.path, api.method, description, _renamed(captured["operation"], project, api, captured)
        ),
    )
    if "operation_by_id" in captured:
        path = f"{api.path.rstrip('/')}/{{model_id}}"
        name = f"{api.name}_by_id"
        yield path, _operation(name, path, api.method, _BY_ID_DESCRIPTION, captured["operation_by_id"])


def _operation(name: str, path: str, method: str, description: str, rest: Schema) -> Schema:
    identifier = re.sub(r"\W", "_", f"{name}{path}")
    return {
        "summary": name.replace("_", " ").title(),
        "description": description,
        "operationId": f"{identifier}_{method.lower()}",
        **rest,
    }


def _renamed(operation: Schema, project: ResolvedProject, api: ResolvedApi, captured: Schema) -> Schema:
    """The operation with the api's own models where the spec declares fields."""
    text = json.dumps(operation)
    for kind, fields, own in (
        ("request", api.inputs, request_class(project, api)),
        ("response", api.outputs, response_class(project, api)),
    ):
        if fields:
            text = text.replace(f'"#/components/schemas/{captured[kind]}"', f'"#/components/schemas/{own}"')
    renamed: Schema = json.loads(text)
    return renamed


def _schemas(project: ResolvedProject, api: ResolvedApi, captured: Schema) -> Schema:
    schemas: Schema = dict(captured["schemas"])
    if api.inputs:
        base = schemas[captured["request"]]
        own = {field.name: input_schema(field, api.protocol, base["properties"]) for field in api.inputs}
        required = {field.name: not (field.optional or field.has_default) for field in api.inputs}
        name = request_class(project, api)
        schemas[name] = _extended(base, name, _REQUEST_DESCRIPTION, own, required)
    if api.outputs:
        base = schemas[captured["response"]]
        if api.protocol == "generate":
            # The answer has just the declared fields.
            base = {**base, "properties": {}, "required": []}
        own = {field.name: output_schema(field, api.protocol, base["properties"]) for field in api.outputs}
        required = {field.name: True for field in api.outputs}
        name = response_class(project, api)
        schemas[name] = _extended(base, name, _RESPONSE_DESCRIPTION, own, required)
    return schemas


def _extended(base: Schema, name: str, description: str, own: Schema, own_required: dict[str, bool]) -> Schema:
    """The schema of a sub-class: redeclared fields keep their place, new ones follow."""
    properties = {**base["properties"], **own}
    inherited = dict.fromkeys(base.get("required", []), True)
    required = [field for field in properties if own_required.get(field, inherited.get(field, False))]
    extended = {**base, "properties": properties, "required": required, "title": name, "description": description}
    if not required:
        del extended["required"]
    return extended


def _reached(node: object, schemas: Schema, seen: set[str] | None = None) -> Iterator[str]:
    """Names of all schemas that the node refers to, directly or through others."""
    seen = set() if seen is None else seen
    for name in _references(node):
        if name not in seen:
            seen.add(name)
            yield name
            yield from _reached(schemas[name], schemas, seen)


def _references(node: object) -> Iterable[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref" and isinstance(value, str):
                yield value.rpartition("/")[2]
            else:
                yield from _references(value)
    elif isinstance(node, list):
        for item in node:
            yield from _references(item)
