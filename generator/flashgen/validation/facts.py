"""What the rules need to know of the whole spec: names, tasks, protocols, and which server answers which api.

Gathered once, from the parts whose structure is right; a fact that cannot be known is `None`.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from flashgen import naming
from flashgen.document import NodePath
from flashgen.protocols import PROTOCOLS, Protocol, canonical_task, infer_protocol, servers_for
from flashgen.validation.nodes import Node
from flashgen.validation.problems import Problems


@dataclass(slots=True, kw_only=True, eq=False)
class ModelFacts:
    """A model as it is defined: under `models:` or inside a server."""

    # Of the uri as a text alone, else of the mapping.
    path: NodePath
    node: Node | None
    uri: str | None
    uri_path: NodePath

    # Its key under `models:`.
    slug: str | None = None

    @property
    def id(self) -> str | None:
        """What callers write in `model`."""
        name = self.node.get("name") if self.node else None
        if name is not None:
            return str(name)
        if self.slug is not None:
            return self.slug
        return model_id(self.uri) if self.uri is not None else None

    @property
    def task(self) -> str | None:
        """As declared."""
        declared = self.node.get("type") if self.node else None
        return canonical_task(declared) if declared else None


class ModelEntry(NamedTuple):
    """A model where a server names it."""

    # Of the reference, or of the model itself.
    path: NodePath
    model: ModelFacts


@dataclass(slots=True, kw_only=True, eq=False)
class ServerFacts:
    """One entry of `servers`."""

    index: int
    node: Node

    # As written, else derived from the first model's uri; "" when neither gives one.
    name: str

    # Where the name comes from.
    name_path: NodePath

    # Those that could be read, in their order.
    entries: list[ModelEntry]

    # Of its models without `type`: the first api that asks for a task that none of the others has settles it.
    settled_task: str | None = None

    # Whether a model is missing, or could not be read.
    has_mistakes: bool

    @property
    def models(self) -> list[ModelFacts]:
        return [entry.model for entry in self.entries]

    @property
    def tasks(self) -> frozenset[str | None]:
        """Of all its models; with `None` while that of one is not settled."""
        return frozenset(self.task_of(model) for model in self.models) or frozenset({None})

    def task_of(self, model: ModelFacts) -> str | None:
        """The task of one of its models."""
        return model.task or self.settled_task

    def find(self, name: str) -> ModelFacts | None:
        """The model that `preload` or `prefetch` calls `name`: by its key under `models:`, or by its id."""
        return next((model for model in self.models if name in (model.slug, model.id)), None)


@dataclass(slots=True, kw_only=True, eq=False)
class ApiFacts:
    """One entry of `apis`."""

    node: Node
    path: str | None
    name: str | None
    name_path: NodePath
    inputs: dict[str, Any]
    protocol: Protocol | None = None

    # As its `server` says, else by the servers' tasks; `None` while that is undecided.
    servers: list[ServerFacts] | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class Facts:
    """The whole spec."""

    root: Node
    models: dict[str, ModelFacts]
    servers: list[ServerFacts]
    apis: list[ApiFacts] = field(default_factory=list)

    @property
    def all_models(self) -> list[ModelFacts]:
        """Every definition, once."""
        inline = [model for server in self.servers for model in server.models if model.slug is None]
        return [*self.models.values(), *inline]


def model_id(uri: str) -> str:
    """The id of a model without `name`: the hub id as written, or the folder's name."""
    return naming.last_part(uri) if is_folder(uri) or "/" not in uri else uri


def is_folder(uri: str) -> bool:
    """Whether a uri names a folder, by the way it is written."""
    return uri.startswith(("./", "../", "/", "file:")) or uri in (".", "..")


def is_folder_beside(spec: Path, name: str) -> bool:
    """Whether a folder called `name` lies beside the spec; a name that no folder can have is none."""
    return os.path.isdir(spec.parent / name)  # noqa: PTH112  # `Path.is_dir` raises for names that are too long


def gather_facts(data: dict[str, Any], problems: Problems) -> Facts:
    """The facts of a document whose structure was checked."""
    root = Node(data, (), problems)
    models = _models(root, problems)
    servers = [_server(node, models, problems) for node in root.nodes("servers", problems)]
    facts = Facts(root=root, models=models, servers=servers)
    facts.apis = [_api(node, facts, problems) for node in root.nodes("apis", problems)]
    return facts


def _models(root: Node, problems: Problems) -> dict[str, ModelFacts]:
    entries = root.node("models", problems)
    if entries is None:
        return {}
    return {slug: _model(entries.get(slug), entries.at(slug), problems, slug=slug) for slug in entries.data}


def _model(value: Any, path: NodePath, problems: Problems, *, slug: str | None = None) -> ModelFacts:
    if isinstance(value, dict):
        node = Node(value, path, problems)
        return ModelFacts(path=path, node=node, uri=node.get("uri"), uri_path=node.at("uri"), slug=slug)
    return ModelFacts(path=path, node=None, uri=value if isinstance(value, str) else None, uri_path=path, slug=slug)


def _server(node: Node, models: dict[str, ModelFacts], problems: Problems) -> ServerFacts:
    references = model_references(node)
    entries = [
        ModelEntry(path, models[value] if isinstance(value, str) and value in models else _model(value, path, problems))
        for path, value in references
        if path not in problems.broken
    ]
    first = entries[0].model if entries else None
    index = node.path[-1]
    assert isinstance(index, int), "servers are items of a list"
    written = node.get("name")
    derived = naming.dns_label(naming.last_part(first.uri)) if first and first.uri else ""
    return ServerFacts(
        index=index,
        node=node,
        name=written or derived,
        name_path=node.at("name") if written else first.uri_path if first else node.path,
        entries=entries,
        has_mistakes=not entries
        or len(entries) < len(references)
        or any(_has_mistakes(entry.model, models, problems) for entry in entries),
    )


def model_references(server: Node) -> list[tuple[NodePath, Any]]:
    """What a server says about its models, and where: under `model`, and in the list `models`."""
    listed = server.get("models")
    single = server.get("model")
    return [
        *([(server.at("model"), single)] if single is not None else []),
        *(
            (server.at("models", index), value)
            for index, value in enumerate(listed if isinstance(listed, list) else ())
        ),
    ]


def draft_references(model: ModelFacts, problems: Problems) -> list[tuple[NodePath, str]]:
    """What a model says about the models that guess for it, and where."""
    settings = model.node.node("speculative", problems) if model.node else None
    return [*settings.texts("model"), *settings.texts("models")] if settings else []


def _has_mistakes(model: ModelFacts, models: dict[str, ModelFacts], problems: Problems) -> bool:
    is_unknown_word = model.node is None and model.slug is None and bool(models) and "/" not in (model.uri or "/")
    is_broken = model.node is not None and (model.node.at("type") in problems.broken or model.uri is None)
    return is_unknown_word or is_broken or (model.node is None and model.uri is None)


def _api(node: Node, facts: Facts, problems: Problems) -> ApiFacts:
    path, written = node.get("path"), node.get("name")
    inputs = node.node("inputs", problems)
    api = ApiFacts(
        node=node,
        path=path,
        name=written or (naming.api_name(path) if path else None),
        name_path=node.at("name") if written else node.at("path"),
        inputs=inputs.data if inputs else {},
    )
    named = _named_servers(node, facts)
    candidates = named if named is not None else facts.servers
    tasks = {task for server in candidates for task in server.tasks}
    task = tasks.pop() if len(tasks) == 1 else None
    api.protocol = PROTOCOLS.get(_protocol_name(node, path, task, api.inputs) or "")
    if named is not None:
        api.servers = named
    elif api.protocol is not None:
        chosen = servers_for(api.protocol, [server.tasks for server in facts.servers])
        api.servers = [facts.servers[index] for index in chosen] if chosen is not None else None
    return api


def _protocol_name(node: Node, path: str | None, task: str | None, inputs: dict[str, Any]) -> str | None:
    written = node.get("protocol")
    if written is not None and written != "auto":
        return str(written)
    if path is None or node.at("protocol") in node.broken:
        return None
    return infer_protocol(path, task=task, inputs=inputs)


def _named_servers(node: Node, facts: Facts) -> list[ServerFacts] | None:
    """The servers that the api names and that exist; `None` when it names none."""
    if "server" not in node.data:
        return None
    named = []
    for _, reference in node.texts("server"):
        server = find_server(reference, facts.servers)
        if server is not None and server not in named:
            named.append(server)
    return named


def find_server(reference: str, servers: list[ServerFacts]) -> ServerFacts | None:
    """The server called `reference`, compared as DNS labels: `LLM_1` is `llm-1`."""
    label = naming.dns_label(reference)
    return next((server for server in servers if label and naming.dns_label(server.name) == label), None)
