"""Models: where their weights are, and settings that would contradict each other or change nothing."""

import re

from flashgen.diagnostics import quote
from flashgen.document import NodePath
from flashgen.protocols import FEATURE_EXTRACTION
from flashgen.validation import not_built
from flashgen.validation.chat_templates import template_problem
from flashgen.validation.facts import Facts, ModelFacts, is_folder, is_folder_beside
from flashgen.validation.nodes import Node
from flashgen.validation.problems import Problems

# The hub's own rules for a repository's two parts.
_HUB_PART = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")

# Longer names are not said three times.
_MAX_REPEATED = 60

# What file systems allow for one name.
_MAX_PART_BYTES = 255

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def check_models(facts: Facts, problems: Problems) -> None:
    """Reports models that cannot be found or whose settings make no sense together."""
    tasks = {id(model): server.task_of(model) for server in facts.servers for model in server.models}
    for model in facts.all_models:
        if model.uri is not None and not _is_unknown_reference(model, facts):
            _check_uri(model, problems)
        if model.node is None:
            continue
        params = model.node.node("generation_params", problems)
        if params is not None:
            _check_params(params, problems)
        _check_template(model.node, problems)
        if (model.task or tasks.get(id(model))) == FEATURE_EXTRACTION:
            _check_embedding_settings(model.node, problems)


def _is_unknown_reference(model: ModelFacts, facts: Facts) -> bool:
    """A word beside `models:` is a reference, which `name_rules` checks."""
    return bool(facts.models) and model.slug is None and model.node is None and "/" not in (model.uri or "")


def _check_uri(model: ModelFacts, problems: Problems) -> None:
    assert model.uri is not None, "callers skip models without uri"
    uri, path = model.uri, model.uri_path
    if uri.startswith(not_built.URI_SCHEMES):
        scheme = uri.split("://")[0]
        problems.at_value(path, "FG108", f"weights from `{scheme}://` are not supported yet")
    elif is_folder(uri):
        _check_folder(model, problems)
    elif _SCHEME.match(uri) or "\\" in uri or uri.startswith("~"):
        _report_uri(uri, path, problems)
    elif uri.count("/") == 1:
        if not all(_HUB_PART.fullmatch(part) for part in uri.split("/")):
            message = f"{quote(uri)} is neither a hub id nor a folder"
            hint = f"a hub id is `owner/name`; a folder begins with `./`: `./{uri}`"
            problems.at_value(path, "FG107", message, hint=hint)
    elif "/" in uri:
        _report_uri(uri, path, problems)
    elif not is_folder_beside(problems.document.path, uri):
        _report_bare_name(uri, path, problems)


def _report_uri(uri: str, path: NodePath, problems: Problems) -> None:
    hint = "expected a hub id such as `mistralai/Mistral-7B-v0.1`, or a folder such as `./weights` or `/srv/weights`"
    problems.at_value(path, "FG107", f"{quote(uri)} is not a place for weights", hint=hint)


def _report_bare_name(uri: str, path: NodePath, problems: Problems) -> None:
    name = uri if len(uri) <= _MAX_REPEATED else "NAME"
    hint = "\n".join(
        (
            "three ways to say where the weights are:",
            f"  `owner/{name}` for a model from the hub",
            f"  `./{name}` for a folder beside the spec",
            f"  an entry `{name}:` under `models:`, with its own `uri`",
        )
    )
    problems.at_value(path, "FG107", f"{quote(uri)} is not a folder beside the spec, nor a hub id", hint=hint)


def _check_folder(model: ModelFacts, problems: Problems) -> None:
    if model.node and model.node.get("revision") is not None:
        message = "`revision` is for models from the hub; this one is a folder"
        other = (model.uri_path, "the folder")
        problems.at_value(model.node.at("revision"), "FG206", message, other=other)
    if any(len(part.encode("utf-8")) > _MAX_PART_BYTES for part in (model.uri or "").split("/")):
        problems.at_value(model.uri_path, "FG107", f"no folder can be called {quote(model.uri)}: the name is too long")
    if model.id == "":
        hint = "name the folder itself: `../llama-7b`, or give the model a `name`"
        problems.at_value(
            model.uri_path, "FG107", f"{quote(model.uri)} does not say what the folder is called", hint=hint
        )


def _check_params(params: Node, problems: Problems) -> None:
    if params.get("max_tokens") is not None and params.get("max_new_tokens") is not None:
        message = "`max_new_tokens` is another name of `max_tokens`"
        other = (params.at("max_tokens"), "set here")
        problems.at_value(params.at("max_new_tokens"), "FG206", message, other=other, hint="keep one of them")
    n, num_beams = params.get("n"), params.get("num_beams")
    if n is not None and num_beams is not None and n > num_beams > 1:
        message = f"{n} choices cannot come from {num_beams} beams"
        other = (params.at("num_beams"), "set here")
        problems.at_value(params.at("n"), "FG206", message, other=other, hint="`n` is at most `num_beams`")
    temperature, do_sample = params.get("temperature"), params.get("do_sample")
    if do_sample is None or temperature is None:
        return
    if do_sample != (temperature > 0):
        says = "draws tokens" if do_sample else "always takes the likeliest token"
        message = f"`do_sample: {str(do_sample).lower()}` {says}, `temperature: {temperature}` does the opposite"
        other = (params.at("temperature"), "set here")
        problems.at_value(params.at("do_sample"), "FG206", message, other=other, hint="keep one of them")


def _check_template(node: Node, problems: Problems) -> None:
    template = node.get("chat_template")
    problem = template_problem(template) if template is not None else None
    if problem is not None:
        hint = "Jinja, as in the `chat_template` of a checkpoint's tokenizer"
        problems.at_value(
            node.at("chat_template"), "FG232", f"`chat_template` is not a valid template: {problem}", hint=hint
        )


def _check_embedding_settings(node: Node, problems: Problems) -> None:
    for key in ("chat_template", "generation_params", "speculative"):
        if key in node.data:
            problems.at_key(node.at(key), "FG206", f"`{key}` changes nothing: the model makes embeddings, no text")
    if "quantization" in node.data:
        problems.at_key(
            node.at("quantization"), "FG108", "`quantization` of a model for embeddings is not supported yet"
        )
