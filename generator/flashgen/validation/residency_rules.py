"""Which models a server has, which of them are in memory, and how their weights come there."""

from collections.abc import Iterable

from flashgen.diagnostics import quote
from flashgen.document import NodePath
from flashgen.quantities import human_bytes
from flashgen.sizing import DEFAULT_MEMORY_BYTES
from flashgen.units import parse_bytes
from flashgen.validation.engine_rules import is_on_a_card, size_of
from flashgen.validation.facts import Facts, ModelFacts, ServerFacts
from flashgen.validation.name_rules import reference_hint
from flashgen.validation.nodes import Node
from flashgen.validation.problems import Problems
from flashgen.validation.suggest import nearest

# What a server may have instead of `model`, once it is built.
_OTHER_MODEL_KEYS = frozenset({"models", "handler", "external"})

# Folders of the image, and of every Linux container, that a volume would hide.
_TAKEN_FOLDERS = frozenset(
    ("app", "bin", "boot", "dev", "etc", "lib", "lib64", "models", "opt", "proc", "run", "sbin", "sys", "tmp", "usr")
)


def check_residency(server: ServerFacts, resources: Node | None, problems: Problems) -> None:
    """Reports models that a server cannot have together, and settings that cannot be followed."""
    _check_models(server, problems)
    _check_devices(server, resources, problems)
    weights, swap = server.node.node("weights", problems), server.node.node("swap", problems)
    if weights is not None:
        _check_weights(weights, resources, problems)
    if swap is not None and not server.has_mistakes:
        _check_swap(server, swap, problems)


def check_prefetch(facts: Facts, problems: Problems) -> None:
    """Reports names in `prefetch` that are not those of other models of each server that has the model."""
    for model in facts.all_models:
        servers = [server for server in facts.servers if model in server.models]
        if model.node is None or any(server.has_mistakes for server in servers):
            continue
        for path, name in unique_names(model.node.texts("prefetch"), "prefetch", problems):
            _check_prefetched(path, name, model, servers, problems)


def _check_models(server: ServerFacts, problems: Problems) -> None:
    keys = server.node.data.keys()
    if "model" in keys and "models" in keys:
        message = "`model` and `models` both say what this server runs"
        problems.at_key(server.node.at("models"), "FG206", message, hint="keep one of them")
    unknown = [key for key in keys if server.node.at(key) in problems.broken]
    if not keys & {"model", *_OTHER_MODEL_KEYS} and not nearest("model", unknown):
        problems.at_key(server.node.path, "FG102", "this server needs `model`, or `models`")
    first: dict[str, NodePath] = {}
    for path, model in server.entries:
        if model.slug is not None and model.slug in first:
            other = (first[model.slug], "first here")
            problems.at_value(path, "FG202", f"model {quote(model.slug)} stands twice in this list", other=other)
        elif model.slug is not None:
            first[model.slug] = path


def _check_devices(server: ServerFacts, resources: Node | None, problems: Problems) -> None:
    """All models of a worker share one budget, which is of one device."""
    first: tuple[str, NodePath] | None = None
    for path, model in server.entries:
        written = model.node.get("device") if model.node else None
        device = written or ("cuda" if is_on_a_card(model, resources) else "cpu")
        device = "cuda:0" if device == "cuda" else device
        if first is None:
            first = (device, path)
        elif device != first[0]:
            message = f"models of one server on {quote(first[0])} and {quote(device)} are not supported yet"
            hint = "give each device a server of its own"
            problems.at_value(path, "FG108", message, other=(first[1], f"on {first[0]}"), hint=hint)
            return


def _check_weights(weights: Node, resources: Node | None, problems: Problems) -> None:
    path = weights.get("path")
    if path is not None and path.split("/")[1] in _TAKEN_FOLDERS:
        message = f"weights cannot lie in {quote(path)}: the container has files of its own there"
        problems.at_value(weights.at("path"), "FG206", message, hint="`/weights`, for instance")
    size = size_of(weights, "pool", problems)
    if size is None:
        return
    if weights.get("keep_in_ram") is False:
        other = (weights.at("keep_in_ram"), "set here")
        message = "`pool` changes nothing: weights of unloaded models do not stay in memory"
        problems.at_value(weights.at("pool"), "FG206", message, other=other)
    _check_pool(size, weights.at("pool"), resources, problems)


def _check_pool(size: int, path: NodePath, resources: Node | None, problems: Problems) -> None:
    written = resources.get("memory") if resources else None
    try:
        memory = (
            parse_bytes(int(written) if isinstance(written, float) else written) if written else DEFAULT_MEMORY_BYTES
        )
    except ValueError:
        return  # reported where it stands
    if size >= memory:
        source = "that is written" if written is not None else "that is assumed"
        message = f"the pool cannot have {human_bytes(size)} of the {human_bytes(memory)} {source} for `memory`"
        other = (resources.at("memory"), "set here") if resources and written is not None else None
        problems.at_value(path, "FG206", message, other=other, hint="it is a part of the worker's memory")


def _check_swap(server: ServerFacts, swap: Node, problems: Problems) -> None:
    num_models, max_loaded = len(server.models), swap.get("max_loaded")
    if max_loaded is not None and max_loaded > num_models:
        has = "one model" if num_models == 1 else f"{num_models} models"
        message = f"{max_loaded:g} models cannot be loaded: the server has {has}"
        problems.at_value(swap.at("max_loaded"), "FG206", message)
    if num_models == 1 and swap.get("evict") is not None:
        problems.at_key(swap.at("evict"), "FG206", "`evict` changes nothing: the server has one model")
    num_preloaded = _check_preload(server, swap, problems)
    places = int(max_loaded or num_models)
    never_leaves = swap.get("evict") == "never" and swap.get("idle_timeout") is None
    if never_leaves and num_preloaded >= places and places < num_models:
        message = "with `evict: never` the models that are loaded at start leave no place for the others"
        hint = "add `idle_timeout`, preload fewer than `max_loaded`, or write `evict: lru`"
        problems.at_value(swap.at("evict"), "FG206", message, hint=hint)


def _check_preload(server: ServerFacts, swap: Node, problems: Problems) -> int:
    """Returns how many models are loaded at start."""
    num_models, max_loaded = len(server.models), swap.get("max_loaded")
    places = min(int(max_loaded or num_models), num_models)
    if not isinstance(swap.get("preload"), list):
        return places
    names = unique_names(swap.texts("preload"), "preload", problems)
    for path, name in names:
        if server.find(name) is None:
            _report_unknown(path, name, server, problems)
    if len(names) > places:
        message = f"{len(names)} models cannot be loaded at start where {places} can be loaded at once"
        other = (swap.at("max_loaded"), "set here") if max_loaded is not None else None
        problems.at_value(swap.at("preload"), "FG206", message, other=other)
    return len(names)


def _check_prefetched(
    path: NodePath, name: str, model: ModelFacts, servers: list[ServerFacts], problems: Problems
) -> None:
    for server in servers:
        found = server.find(name)
        if found is None:
            _report_unknown(path, name, server, problems)
            return
        if found is model:
            problems.at_value(path, "FG206", f"{quote(name)} is this model itself")
            return


def _report_unknown(path: NodePath, name: str, server: ServerFacts, problems: Problems) -> None:
    message = f"{quote(name)} is not a model of server {quote(server.name)}"
    known = [own for model in server.models if (own := model.slug or model.id)]
    problems.at_value(path, "FG103", message, hint=reference_hint(name, known, "models"))


def unique_names(names: Iterable[tuple[NodePath, str]], key: str, problems: Problems) -> list[tuple[NodePath, str]]:
    """The names that are no repetition; reports those that are."""
    first: dict[str, NodePath] = {}
    for path, name in names:
        if name in first:
            message = f"{quote(name)} stands twice in `{key}`"
            problems.at_value(path, "FG202", message, other=(first[name], "first here"))
        first.setdefault(name, path)
    return [(path, name) for name, path in first.items()]
