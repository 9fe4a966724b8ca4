"""A `curl` line for an api of a project, to try it by hand."""

import json
from shlex import quote

from flashgen.resolved import ResolvedApi, ResolvedProject
from flashgen.user_text import plain_text

_CODE_PROMPT = "def read_file(path):\n"
_CHAT_PROMPT = "Say hello."


def example_call(project: ResolvedProject, base_url: str) -> str:
    """For the api that shows most: the first that is not a list of models."""
    api = next((api for api in project.apis if api.method == "POST"), project.apis[0])
    url = quote(f"{base_url}{api.path}")
    body = _body(api)
    if body is None:
        return f"curl -s {url}"
    return f"curl -s {url} -H 'Content-Type: application/json' -d {quote(json.dumps(body))}"


def _body(api: ResolvedApi) -> dict[str, object] | None:
    model = {"model": plain_text(api.servers[0].models[0].id)} if api.servers else {}
    match api.protocol:
        case "openai.chat_completions":
            return {**model, "messages": [{"role": "user", "content": _CHAT_PROMPT}], "max_tokens": 64}
        case "openai.completions":
            return {**model, "prompt": _CODE_PROMPT, "max_tokens": 64}
        case "openai.embeddings":
            return {**model, "input": "A sentence."}
        case "generate":
            return {"prompt": _CODE_PROMPT}
        case _:
            return None
