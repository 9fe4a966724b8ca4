"""How a server runs its model: settings that fit each other, the model's task, its device and the memory there is."""

from flashgen.protocols import FEATURE_EXTRACTION
from flashgen.quantities import human_bytes
from flashgen.sizing import ASSUMED_GPU_MEMORY_BYTES, DEFAULT_MEMORY_BYTES
from flashgen.units import MIN_MEMORY_BYTES, parse_bytes, parse_duration
from flashgen.validation.facts import ModelFacts, ServerFacts
from flashgen.validation.nodes import Node
from flashgen.validation.problems import Problems

# Callers notice more than that, and a batch that is still not full then will hardly become so.
_MAX_WAIT_SECONDS = 60


def check_engine(server: ServerFacts, resources: Node | None, problems: Problems) -> None:
    """Reports what the server's engine cannot do, or could not fit."""
    _check_precision(server, resources, problems)
    engine = server.node.node("engine", problems)
    if engine is None:
        return
    batching, kv_cache = engine.node("batching", problems), engine.node("kv_cache", problems)
    if batching is not None:
        _check_batching(batching, problems)
    if kv_cache is not None:
        _check_memory(server, kv_cache, resources, problems)
    _check_task(server, engine, problems)


def _check_precision(server: ServerFacts, resources: Node | None, problems: Problems) -> None:
    """Our kernels for int8 and int4 run on processors."""
    on_card = [model for model in server.models if is_on_a_card(model, resources)]
    hint = "it needs `device: cpu`, for now; on a card models run in their `dtype`"
    for model in on_card:
        if model.node is not None and model.node.get("quantization") is not None:
            path = model.node.at("quantization")
            problems.at_value(path, "FG108", "`quantization` on a card is not supported yet", hint=hint)
    engine = server.node.node("engine", problems)
    kv_cache = engine.node("kv_cache", problems) if engine else None
    if on_card and kv_cache is not None and kv_cache.get("dtype") == "int8":
        problems.at_value(kv_cache.at("dtype"), "FG108", "an int8 KV cache on a card is not supported yet", hint=hint)


def is_on_a_card(model: ModelFacts, resources: Node | None) -> bool:
    """Whether a model of a server with these resources runs on a card."""
    device = model.node.get("device") if model.node else None
    if device is not None:
        return str(device).startswith("cuda")
    return bool(resources and resources.get("gpus"))


def _check_batching(batching: Node, problems: Problems) -> None:
    requests, tokens = batching.get("max_requests"), batching.get("max_tokens")
    if requests is not None and tokens is not None and tokens < requests:
        message = f"{requests} requests cannot decode together in forward passes of {tokens} tokens"
        other = (batching.at("max_requests"), "set here")
        hint = "each request needs one token: `max_tokens` is at least `max_requests`"
        problems.at_value(batching.at("max_tokens"), "FG206", message, other=other, hint=hint)
    wait = batching.get("max_wait")
    if wait is not None and parse_duration(wait) > _MAX_WAIT_SECONDS:
        message = f"`max_wait` must be at most {_MAX_WAIT_SECONDS} seconds, found {parse_duration(wait):g}"
        problems.at_value(batching.at("max_wait"), "FG106", message)


def _check_memory(server: ServerFacts, kv_cache: Node, resources: Node | None, problems: Problems) -> None:
    """The KV caches of the models that are loaded at start must leave room for the weights beside them."""
    path = kv_cache.at("memory")
    size = size_of(kv_cache, "memory", problems)
    if size is None:
        return
    if any(is_on_a_card(model, resources) for model in server.models):
        key, default = "gpu_memory", ASSUMED_GPU_MEMORY_BYTES
    else:
        key, default = "memory", DEFAULT_MEMORY_BYTES
    written = resources.get(key) if resources else None
    try:
        bound = parse_bytes(int(written) if isinstance(written, float) else written) if written is not None else default
    except ValueError:
        return  # reported where it stands
    number = _num_caches(server, problems)
    if size * number >= bound:
        source = "that is written" if written is not None else "that is assumed"
        caches = "the KV cache" if number == 1 else f"the KV caches of {number} models that are loaded at start"
        each = "" if number == 1 else " each"
        message = f"{caches} cannot have {human_bytes(size)}{each} of the {human_bytes(bound)} {source} for `{key}`"
        other = (resources.at(key), "set here") if resources and written is not None else None
        hint = "the weights need room too"
        problems.at_value(path, "FG206", message, other=other, hint=hint)


def _num_caches(server: ServerFacts, problems: Problems) -> int:
    """Models that are loaded at start and keep a KV cache; one at least."""
    swap = server.node.node("swap", problems)
    preload = swap.get("preload") if swap else None
    max_loaded = swap.get("max_loaded") if swap else None
    loaded = server.models[: int(max_loaded or len(server.models))]
    if isinstance(preload, list):
        loaded = [model for _, name in swap.texts("preload") if (model := server.find(name))] if swap else []
    return max(1, sum(server.task_of(model) != FEATURE_EXTRACTION for model in loaded))


def size_of(node: Node, key: str, problems: Problems) -> int | None:
    """The bytes under a key; `None` where there are none, or too few, which is reported."""
    written, path = node.get(key), node.at(key)
    if written is None:
        return None
    try:
        size = parse_bytes(int(written) if isinstance(written, float) else written)
    except ValueError as error:
        problems.at_value(path, "FG107", str(error))
        return None
    if size < MIN_MEMORY_BYTES:
        problems.at_value(path, "FG106", f"`{key}` is only {size} bytes", hint="expected a size such as `4GiB`")
        return None
    return size


def _check_task(server: ServerFacts, engine: Node, problems: Problems) -> None:
    """What is for one task changes nothing for another."""
    if server.tasks == {FEATURE_EXTRACTION}:
        ignored = [(engine, "kv_cache"), (engine, "deterministic"), (engine.node("batching", problems), "mode")]
        reason = "the model makes embeddings, no text"
    elif FEATURE_EXTRACTION in server.tasks:
        return
    else:
        ignored = [(engine.node("batching", problems), "max_wait")]
        reason = "requests for text join a batch at any step, none waits for company"
    for node, key in ignored:
        if node is not None and key in node.data:
            problems.at_key(node.at(key), "FG206", f"`{key}` changes nothing: {reason}")
