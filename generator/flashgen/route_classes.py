"""Names of the classes in generated route modules: no two of a project are equal, or OpenAPI would mix them up."""

from flashgen.resolved import ResolvedApi, ResolvedProject

# The runtime's classes, which a route uses itself where the spec declares no inputs.
_RUNTIME_REQUESTS = {
    "generate": "GenerateBody",
    "openai.chat_completions": "ChatCompletionRequest",
    "openai.completions": "CompletionRequest",
    "openai.embeddings": "EmbeddingsRequest",
}


def request_class(project: ResolvedProject, api: ResolvedApi) -> str:
    """`ChatCompletionsRequest`."""
    name = f"{_stem(project, api)}Request"
    used = {_RUNTIME_REQUESTS.get(other.protocol) for other in project.apis if not other.inputs}
    return name if name not in used else f"{_stem(project, api)}NarrowedRequest"


def response_class(project: ResolvedProject, api: ResolvedApi) -> str:
    """`ChatCompletionsResponse`."""
    return f"{_stem(project, api)}Response"


def _stem(project: ResolvedProject, api: ResolvedApi) -> str:
    """The api's class name, numbered where an earlier api has the same: `v1` and `v-1` are both `V1`."""
    namesakes = [other.name for other in project.apis if other.class_name == api.class_name]
    number = namesakes.index(api.name)
    return f"{api.class_name}{number + 1}" if number else api.class_name
