"""Part of `stages.resolve`: refuses models that the memory of their server can never hold."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from flashgen.diagnostics import Diagnostic, in_words, quote
from flashgen.document import Place
from flashgen.memory_sizes import MemoryBudget, ModelDemand
from flashgen.quantities import binary_bytes
from flashgen.resolved import ResolvedModel, ResolvedResources
from flashgen.sizing import EngineSizes
from flashgen.user_text import plain_text

CODE = "FG401"


class PlacedModel(NamedTuple):
    """A model of a server, and where the spec names it."""

    model: ResolvedModel
    demand: ModelDemand
    place: Place


def check_fit(
    models: Sequence[PlacedModel],
    *,
    engine: EngineSizes,
    budget: MemoryBudget,
    resources: ResolvedResources,
    is_kv_cache_declared: bool,
) -> Iterator[Diagnostic]:
    """What does not fit: each model alone, else those that are loaded at start together."""
    memory = "gpu_memory" if resources.gpus else "memory"
    found = False
    for placed in models:
        if is_kv_cache_declared and (problem := _too_small_cache(placed, engine)):
            hint = "what helps: more `engine.kv_cache.memory`, a smaller `max_context`"
        elif problem := _too_large(placed, engine, budget, is_kv_cache_declared=is_kv_cache_declared):
            hint = _hint(placed, memory, is_kv_cache_declared=is_kv_cache_declared)
        else:
            continue
        found = True
        yield Diagnostic(code=CODE, message=problem, place=placed.place, hint=hint)
    if not found:
        yield from _too_large_together(models, engine, budget, memory=memory)


def _too_small_cache(placed: PlacedModel, engine: EngineSizes) -> str | None:
    needed = placed.demand.least_kv_bytes
    if needed <= engine.kv_cache_bytes:
        return None
    sequence = _sequence(placed.model)
    return (
        f"{_name(placed)} cannot be served: the KV cache of {sequence} takes {binary_bytes(needed)}, "
        f"`engine.kv_cache.memory` gives {binary_bytes(engine.kv_cache_bytes)}"
    )


def _too_large(
    placed: PlacedModel, engine: EngineSizes, budget: MemoryBudget, *, is_kv_cache_declared: bool
) -> str | None:
    demand = placed.demand
    fixed, weights = demand.fixed_bytes(engine), demand.weight_bytes
    least = fixed + demand.all_kv_bytes(demand.least_kv_bytes)
    needed = demand.loaded_bytes(engine) if is_kv_cache_declared else least
    if needed <= budget.num_bytes:
        return None
    parts = [
        f"{binary_bytes(weights)} for weights",
        f"{binary_bytes(fixed - weights)} for buffers",
    ]
    if needed > fixed:
        cache = "the KV cache" if is_kv_cache_declared else f"the KV cache of {_sequence(placed.model)}"
        parts.append(f"{binary_bytes(needed - fixed)} for {cache}")
    return (
        f"{_name(placed)} does not fit: {_with_drafts(placed)}it needs {binary_bytes(needed)} ({', '.join(parts)}), "
        f"and there are {binary_bytes(budget.num_bytes)}: {budget.reason}"
    )


def _too_large_together(
    models: Sequence[PlacedModel], engine: EngineSizes, budget: MemoryBudget, *, memory: str
) -> Iterator[Diagnostic]:
    """Points at the first model that does not fit beside those before it."""
    used = 0
    for placed in models:
        if not placed.demand.is_preloaded:
            continue
        used += placed.demand.loaded_bytes(engine)
        if used > budget.num_bytes:
            message = (
                f"{_name(placed)} does not fit beside the models that are loaded before it: together they need "
                f"{binary_bytes(used)}, and there are {binary_bytes(budget.num_bytes)}: {budget.reason}"
            )
            hint = f"what helps: more `{memory}`, or fewer at once by `swap.max_loaded`"
            yield Diagnostic(code=CODE, message=message, place=placed.place, hint=hint)
            return


def _name(placed: PlacedModel) -> str:
    return quote(plain_text(placed.model.id))


def _with_drafts(placed: PlacedModel) -> str:
    names = [plain_text(draft.id) for draft in placed.model.drafts]
    return f"with {in_words(names)} " if names else ""


def _sequence(model: ResolvedModel) -> str:
    return f"one sequence of {model.max_context} tokens" if model.max_context is not None else "the shortest sequence"


def _hint(placed: PlacedModel, memory: str, *, is_kv_cache_declared: bool) -> str:
    ways = [f"more `{memory}`"]
    if placed.demand.keeps_kv_cache:
        if placed.model.quantization is None and placed.model.device == "cpu":
            ways.append("`quantization: int8`")
        if placed.model.drafts:
            ways.append("`speculative: ngram`, which takes no memory")
        if placed.model.max_context is not None:
            ways.append("a smaller `max_context`")
        if is_kv_cache_declared:
            ways.append("less `engine.kv_cache.memory`")
    return f"what helps: {', '.join(ways)}"
