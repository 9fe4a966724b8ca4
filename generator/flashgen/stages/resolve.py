"""Hop 4: fills every default of a spec, turns names into objects and computes the sizes.

Servers are in `servers`, their models in `models`, sentences that stand where the user gave none in `descriptions`.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from flashgen import naming
from flashgen.descriptions import api_description, project_description
from flashgen.errors import SpecError
from flashgen.models import ModelResolver
from flashgen.project_folder import relative_path
from flashgen.protocols import PROTOCOLS, Protocol, infer_protocol, servers_for
from flashgen.resolved import ResolvedApi, ResolvedField, ResolvedModel, ResolvedProject, ResolvedServer
from flashgen.runtime_wheel import RuntimeWheel
from flashgen.servers import models_of, resolve_servers, server_name
from flashgen.sizing import shutdown
from flashgen.spec import ApiSpec, FieldSpec, ProjectSpec
from flashgen.user_text import UserText, plain_text
from flashgen.user_values import wrapped

DEFAULT_TARGETS = ("compose", "kubernetes")

# Names that every route module uses for something else, and `test_…` modules that every project has.
_TAKEN_NAMES = frozenset({"router", "hooks", "request", "body", "openai", "runtime_generate", "config", "openapi"})


def project_name(spec: ProjectSpec) -> str:
    """The project's name, a DNS label: as written, else from the file's stem."""
    return naming.dns_label(spec.name or spec.path.stem) or "service"


def resolve(spec: ProjectSpec, *, project_folder: Path, spec_sha256: str, wheel: RuntimeWheel) -> ResolvedProject:
    """The project of `spec` in `project_folder`; raises `SpecError` when files that the spec names are not there."""
    protocols = [_protocol(api, spec) for api in spec.apis]
    models = ModelResolver(spec, project_folder)
    servers = resolve_servers(spec, models, _protocols_by_server(spec, protocols))
    if models.diagnostics:
        raise SpecError(models.diagnostics, path=spec.path, text=spec.text)
    apis = tuple(_resolve_api(api, protocol, servers) for api, protocol in zip(spec.apis, protocols, strict=True))
    return ResolvedProject(
        name=project_name(spec),
        description=_description(spec, servers),
        apis=apis,
        servers=servers,
        targets=spec.targets if spec.targets is not None else DEFAULT_TARGETS,
        spec_path=UserText(relative_path(spec.path, project_folder)),
        spec_sha256=spec_sha256,
        runtime_version=wheel.version,
        runtime_wheel=wheel.file_name,
        runtime_wheel_sha256=wheel.sha256,
        shutdown=shutdown(),
        notices=_notices(apis),
    )


def _protocol(api: ApiSpec, spec: ProjectSpec) -> Protocol:
    inputs = [field.name for field in api.inputs or ()]
    name = api.protocol or infer_protocol(api.path, task=_only_task(api, spec), inputs=inputs)
    assert name is not None, "validate refuses an api whose protocol cannot be told"
    return PROTOCOLS[name]


def _only_task(api: ApiSpec, spec: ProjectSpec) -> str | None:
    """The task of the servers that an api may reach, when it is one."""
    named = _labels(api)
    reachable = [server for server in spec.servers if named is None or server_name(server, spec) in named]
    types = {model.type for server in reachable for model in models_of(server, spec)}
    return types.pop() if len(types) == 1 else None


def _protocols_by_server(spec: ProjectSpec, protocols: Sequence[Protocol]) -> Mapping[str, list[Protocol]]:
    """By server name, the protocols of the apis that it answers."""
    names = [server_name(server, spec) for server in spec.servers]
    tasks = [{model.type for model in models_of(server, spec)} for server in spec.servers]
    answered: dict[str, list[Protocol]] = {name: [] for name in names}
    for api, protocol in zip(spec.apis, protocols, strict=True):
        for name in _server_names(api, protocol, names, tasks):
            answered[name].append(protocol)
    return answered


def _server_names(
    api: ApiSpec, protocol: Protocol, names: list[str], tasks: Sequence[Collection[str | None]]
) -> list[str]:
    """Those that the api names, else those whose task decides."""
    named = _labels(api)
    if named is not None:
        return named
    chosen = servers_for(protocol, tasks)
    assert chosen is not None, "validate refuses an api whose server cannot be told"
    return [names[index] for index in chosen]


def _labels(api: ApiSpec) -> list[str] | None:
    """Servers that the api names, as their names are: `LLM_1` is `llm-1`."""
    return [naming.dns_label(name) for name in api.servers] if api.servers is not None else None


def _resolve_api(api: ApiSpec, protocol: Protocol, servers: tuple[ResolvedServer, ...]) -> ResolvedApi:
    name = naming.python_name(api.name or naming.api_name(api.path), reserved=_TAKEN_NAMES)
    return ResolvedApi(
        name=name,
        class_name=naming.class_name(name),
        path=api.path,
        method=api.method or protocol.method,
        protocol=protocol.name,
        description=UserText(api.description or api_description(protocol.name)),
        inputs=tuple(_resolve_field(field) for field in api.inputs or ()),
        outputs=tuple(_resolve_field(field) for field in api.outputs or ()),
        servers=_servers_of(api, protocol, servers),
    )


def _servers_of(api: ApiSpec, protocol: Protocol, servers: tuple[ResolvedServer, ...]) -> tuple[ResolvedServer, ...]:
    by_name = {server.name: server for server in servers}
    tasks = [{model.task for model in server.models} for server in servers]
    return tuple(by_name[name] for name in _server_names(api, protocol, list(by_name), tasks))


def _resolve_field(field: FieldSpec) -> ResolvedField:
    return ResolvedField(
        name=field.name,
        type=field.type,
        optional=field.optional,
        has_default=field.has_default,
        default=wrapped(field.default),
        enum=tuple(wrapped(value) for value in field.enum) if field.enum is not None else None,
        min=field.min,
        max=field.max,
        min_length=field.min_length,
        max_length=field.max_length,
        description=UserText(field.description) if field.description is not None else None,
        has_example=field.has_example,
        example=wrapped(field.example),
        location=field.location,
    )


def _description(spec: ProjectSpec, servers: Sequence[ResolvedServer]) -> UserText:
    if spec.description:
        return UserText(spec.description)
    return project_description([model.id for server in servers for model in server.models])


def _notices(apis: Sequence[ResolvedApi]) -> tuple[UserText, ...]:
    chats = [api for api in apis if api.protocol == "openai.chat_completions"]
    models = {model.id: model for api in chats for server in api.servers for model in server.models}
    return tuple(UserText(text) for model in models.values() for text in _chat_template_notice(model))


def _chat_template_notice(model: ResolvedModel) -> list[str]:
    name = plain_text(model.id)
    if model.chat_template_source == "none":
        return [f"`{name}` has no chat template: the contents of messages are joined by newlines"]
    if model.chat_template_source == "unknown":
        return [
            f"whether `{name}` has a chat template is seen when a worker loads it; "
            "without one the contents of messages are joined by newlines"
        ]
    return []
