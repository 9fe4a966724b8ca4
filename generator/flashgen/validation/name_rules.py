"""Names: that they are there, that they do not collide once they are files and objects, and that references hold."""

import keyword
from collections.abc import Iterable

from flashgen import naming
from flashgen.diagnostics import in_words, quote
from flashgen.document import NodePath
from flashgen.project_paths import path_problem
from flashgen.validation.facts import (
    ApiFacts,
    Facts,
    ModelFacts,
    draft_references,
    find_server,
    is_folder_beside,
    model_references,
)
from flashgen.validation.problems import Problems
from flashgen.validation.suggest import nearest


def check_names(facts: Facts, problems: Problems) -> None:
    """Reports names that collide, cannot be used or refer to nothing."""
    _check_project_name(facts, problems)
    _check_server_names(facts, problems)
    _check_api_names(facts, problems)
    _check_model_ids(facts, problems)
    _check_server_references(facts.apis, facts, problems)
    _check_model_references(facts, problems)


def _check_project_name(facts: Facts, problems: Problems) -> None:
    name, path = facts.root.get("name"), problems.document.path
    if "name" not in facts.root.data and not naming.dns_label(path.stem):
        message = f"the project needs a `name`: the file's name, {quote(path.name)}, gives none"
        problems.at_key((), "FG102", message, hint="add `name: my-service`, for instance")
    label = naming.dns_label(name or path.stem)
    _check_usable(label, "project", facts.root.at("name") if name else (), problems)


def _check_usable(label: str, kind: str, path: NodePath, problems: Problems) -> None:
    """Reports names that would be those of a file or object which cannot be, or which is there already."""
    if kind == "server" and keyword.iskeyword(label.replace("-", "_")):
        why = "a keyword of Python, and so no name for its package"
    elif kind == "server" and label == "api":
        why = "the API server's own name"
    elif label and path_problem(label):
        why = "a device name on Windows, and so no name for a file"
    else:
        return
    article = "an" if kind == "api" else "a"
    hint = f"name it `{label}-{kind}`, for instance"
    problems.at_value(path, "FG208", f"{article} {kind} cannot be called {quote(label)}: that is {why}", hint=hint)


def _check_server_names(facts: Facts, problems: Problems) -> None:
    first: dict[str, NodePath] = {}
    for server in facts.servers:
        label = naming.dns_label(server.name)
        if not label:
            if server.models and server.models[0].uri:
                message = f"this server needs a `name`: {quote(server.models[0].uri)} gives none"
                problems.at_value(server.name_path, "FG102", message)
            continue
        _check_usable(label, "server", server.name_path, problems)
        if label in first:
            message = f"two servers are called {quote(label)}"
            hint = "give one of them another `name`"
            problems.at_value(server.name_path, "FG202", message, other=(first[label], "the first one"), hint=hint)
        first.setdefault(label, server.name_path)


def _check_api_names(facts: Facts, problems: Problems) -> None:
    first: dict[str, ApiFacts] = {}
    for api in facts.apis:
        if api.name is None:
            continue
        name = naming.dns_label(api.name)
        _check_usable(name, "api", api.name_path, problems)
        other = first.setdefault(name, api)
        # Equal paths are another rule's mistake.
        if other is not api and other.path != api.path:
            message = f"two apis are called {quote(name.replace('-', '_'))}"
            hint = "give one of them another `name`"
            problems.at_value(api.name_path, "FG202", message, other=(other.name_path, "the first one"), hint=hint)


def _check_model_ids(facts: Facts, problems: Problems) -> None:
    first: dict[str, NodePath] = {}
    for model in facts.all_models:
        if not model.id:
            continue
        id_path = _id_path(model)
        if model.id in first:
            message = f"two models are called {quote(model.id)}"
            hint = "give one of them a `name`, or define it once under `models`"
            problems.at_value(id_path, "FG202", message, other=(first[model.id], "the first one"), hint=hint)
        first.setdefault(model.id, id_path)
    for model in facts.all_models:
        _check_aliases(model, first, problems)


def _id_path(model: ModelFacts) -> NodePath:
    if model.node and model.node.get("name") is not None:
        return model.node.at("name")
    return model.path if model.slug is not None else model.uri_path


def _check_aliases(model: ModelFacts, first: dict[str, NodePath], problems: Problems) -> None:
    for path, alias in model.node.texts("aliases") if model.node else ():
        if alias in first:
            message = f"the alias {quote(alias)} is taken"
            problems.at_value(path, "FG202", message, other=(first[alias], "first used here"))
        first.setdefault(alias, path)


def _check_server_references(apis: Iterable[ApiFacts], facts: Facts, problems: Problems) -> None:
    names = [naming.dns_label(server.name) for server in facts.servers if server.name]
    for api in apis:
        seen: dict[str, NodePath] = {}
        for path, reference in api.node.texts("server"):
            if find_server(reference, facts.servers) is None:
                message = f"server {quote(reference)} is not defined"
                problems.at_value(
                    path, "FG103", message, label=_used_by(api), hint=reference_hint(reference, names, "servers")
                )
            elif reference in seen:
                message = f"server {quote(reference)} stands twice in this list"
                problems.at_value(path, "FG202", message, other=(seen[reference], "first here"))
            seen.setdefault(reference, path)


def _used_by(api: ApiFacts) -> str:
    return f"used by api {quote(api.name)}" if api.name else ""


def reference_hint(reference: str, names: list[str], kind: str) -> str:
    """The nearest of the names that are defined, else all of them."""
    if match := nearest(reference, names):
        return f"did you mean `{match}`?"
    return f"defined {kind} are {in_words(names)}" if len(names) > 1 else f"the only one defined is {in_words(names)}"


def _check_model_references(facts: Facts, problems: Problems) -> None:
    """Texts where servers name models that are no key of `models` and no uri; and entries of it that nobody uses."""
    used = {model.slug for server in facts.servers for model in server.models}
    for model in facts.all_models:
        for _, reference in draft_references(model, problems):
            used |= {reference, nearest(reference, facts.models)}
    for server in facts.servers:
        for path, reference in model_references(server.node):
            if not isinstance(reference, str) or not facts.models or reference in facts.models or "/" in reference:
                continue
            if not is_folder_beside(problems.document.path, reference):
                _report_unknown_model(reference, path, facts, problems)
                used |= {nearest(reference, facts.models)}
    for slug in facts.models:
        is_broken = ("models", slug) in problems.broken
        if slug not in used and not is_broken and not _has_unread_user(facts, problems):
            hint = f"add `model: {slug}` to a server, or remove it"
            problems.at_key(("models", slug), "FG207", f"model {quote(slug)} is used by no server", hint=hint)


def _report_unknown_model(reference: str, path: NodePath, facts: Facts, problems: Problems) -> None:
    hint = reference_hint(reference, list(facts.models), "models")
    problems.at_value(path, "FG103", f"model {quote(reference)} is not defined", hint=hint)


def _has_unread_user(facts: Facts, problems: Problems) -> bool:
    """Whether a server's model, or who guesses for a model, is missing or broken: nobody knows what it would use."""
    has_unread_server = any(not server.models for server in facts.servers) or not facts.servers
    return has_unread_server or any("speculative" in path for path in problems.broken)
