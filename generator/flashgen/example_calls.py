"""A `curl` line for an api of a project, to try it by hand."""

from shlex import quote

from flashgen.examples import example_body
from flashgen.protocols import PROTOCOLS
from flashgen.quoting import json_value
from flashgen.resolved import ResolvedApi, ResolvedProject, Value

# Enough to see what a model is like.
_MAX_TOKENS = 64


def example_call(project: ResolvedProject, base_url: str) -> str:
    """For the api that shows most: the first that is not a list of models."""
    api = next((api for api in project.apis if api.method == "POST"), project.apis[0])
    url = quote(f"{base_url}{api.path}")
    if api.method != "POST":
        return f"curl -s {url}"
    return f"curl -s {url} -H 'Content-Type: application/json' -d {quote(json_value(_body(api)))}"


def _body(api: ResolvedApi) -> dict[str, Value]:
    """What the api takes, as its tests send it, with the model's name unless the spec narrows that field."""
    protocol = PROTOCOLS[api.protocol]
    body = example_body(api, max_tokens=_MAX_TOKENS)
    if "model" not in protocol.inputs or any(field.name == "model" for field in api.inputs):
        return body
    models = (model for server in api.servers for model in server.models if model.task == protocol.task)
    return {"model": next(models).id, **body}
