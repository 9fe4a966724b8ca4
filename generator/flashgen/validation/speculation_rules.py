"""Who guesses for a model: that the method has the models which it takes, and that these can."""

from flashgen.diagnostics import quote
from flashgen.document import NodePath
from flashgen.protocols import FEATURE_EXTRACTION
from flashgen.validation.engine_rules import is_on_a_card
from flashgen.validation.facts import Facts, ModelFacts, draft_references
from flashgen.validation.name_rules import reference_hint
from flashgen.validation.nodes import Node
from flashgen.validation.problems import Problems
from flashgen.validation.residency_rules import unique_names
from flashgen.validation.suggest import nearest

# The key with the models of each method.
_MODEL_KEYS = {"ngram": None, "draft": "model", "tree": "models"}

# What is only for models that callers reach, or for the server's own.
_KEYS_OF_SERVED = ("aliases", "device", "max_context", "chat_template", "generation_params", "prefetch")


def check_speculation(facts: Facts, problems: Problems) -> None:
    """Reports methods without their models, and models that cannot guess for another one."""
    tasks = {id(model): server.task_of(model) for server in facts.servers for model in server.models}
    for model in facts.all_models:
        settings = model.node.node("speculative", problems) if model.node else None
        if settings is None:
            continue
        _check_keys(settings, problems)
        for path, name in unique_names(draft_references(model, problems), "models", problems):
            draft = facts.models.get(name)
            if draft is None:
                _report_unknown(path, name, model, facts, problems)
            else:
                _check_draft(path, name, draft, model, draft.task or tasks.get(id(draft)), problems)
    _check_settings_of_drafts(facts, problems)
    _check_cards(facts, problems)


def _check_keys(settings: Node, problems: Problems) -> None:
    method = settings.get("method")
    if method is None:
        return
    own_key = _MODEL_KEYS[method]
    wrong_keys = [key for key in ("model", "models") if key in settings.data and key != own_key]
    for key in wrong_keys:
        hint = (
            f"`method: {method}` takes `{own_key}`" if own_key else "the text itself tells; `method: draft` has a model"
        )
        problems.at_key(settings.at(key), "FG206", f"`{key}` changes nothing beside `method: {method}`", hint=hint)
    unknown = [key for key in settings.data if settings.at(key) in problems.broken]
    if own_key is None or own_key in settings.data or wrong_keys or nearest(own_key, unknown):
        return
    example = "small" if own_key == "model" else "[small, tiny]"
    hint = f"add `{own_key}: {example}`, for instance: what stands there is defined under `models`"
    problems.at_key(settings.path, "FG102", f"`method: {method}` needs `{own_key}`", hint=hint)


def _report_unknown(path: NodePath, name: str, model: ModelFacts, facts: Facts, problems: Problems) -> None:
    known = [slug for slug, other in facts.models.items() if other is not model]
    hint = reference_hint(name, known, "models") if known else "add an entry for it under `models`, with its `uri`"
    problems.at_value(path, "FG103", f"model {quote(name)} is not defined", hint=hint)


def _check_draft(
    path: NodePath, name: str, draft: ModelFacts, model: ModelFacts, task: str | None, problems: Problems
) -> None:
    if draft is model:
        problems.at_value(path, "FG206", f"{quote(name)} is this model itself")
    elif task == FEATURE_EXTRACTION:
        problems.at_value(path, "FG206", f"{quote(name)} makes embeddings, it cannot guess how a text goes on")
    elif draft.node and "speculative" in draft.node.data:
        message = f"{quote(name)} cannot guess for another model while others guess for it"
        other = (draft.node.at("speculative"), "set here")
        problems.at_value(path, "FG206", message, other=other, hint="keep one of them")


def _check_settings_of_drafts(facts: Facts, problems: Problems) -> None:
    """A model that only guesses runs where the other one does, on its texts and with its requests' parameters."""
    drafts = {name for model in facts.all_models for _, name in draft_references(model, problems)}
    served = {model.slug for server in facts.servers for model in server.models}
    for slug, model in facts.models.items():
        if model.node is None or slug not in drafts or slug in served:
            continue
        for key in _KEYS_OF_SERVED:
            if key in model.node.data:
                message = f"`{key}` changes nothing: {quote(slug)} is served by no server, it only guesses for others"
                problems.at_key(model.node.at(key), "FG206", message)


def _check_cards(facts: Facts, problems: Problems) -> None:
    """Only our kernels verify several tokens with the bits of each alone, and they run on processors."""
    for server in facts.servers:
        resources = server.node.node("resources", problems)
        for model in server.models:
            if model.node is not None and "speculative" in model.node.data and is_on_a_card(model, resources):
                message = "`speculative` on a card is not supported yet"
                problems.at_key(model.node.at("speculative"), "FG108", message, hint="it needs `device: cpu`, for now")
