"""Finds out whether a transformers class runs on flat batches, by running a small model of it both ways.

The small model has one layer of each kind that the configuration names and random weights. Two sequences, in one flat
row, chunked and decoded, must give what the plain forward gives for each alone; and once more with our kernels in the
place of its submodules, when they should be the same bits in any company. The answer depends on the configuration and
the versions of the libraries alone, so it is kept.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

import flashgen_runtime
from flashgen_runtime.engine.batch import build_batch
from flashgen_runtime.engine.model_runner import PagedModel, UnsupportedModelError
from flashgen_runtime.engine.request import Request
from flashgen_runtime.engine.sampling_params import SamplingParams
from flashgen_runtime.engine.scheduler import Chunk
from flashgen_runtime.kernels.library import current_isa
from flashgen_runtime.loader.base import LoadedModel
from flashgen_runtime.loader.checkpoint import first_line
from flashgen_runtime.loader.quiet import quiet_transformers

# Raise when the probe asks something else, so that old answers are not read.
PROBE_VERSION = 1

SMALL_VOCABULARY = 128
SMALL_INTERMEDIATE = 96
SMALL_HEADS = 4
SMALL_WINDOW = 8
SMALL_EXPERTS = 4

# Torch's vectors of float32, twice: what is left over at the end of a tensor is computed in another way.
TORCH_VECTORS = 32

# A model with more layers is cut there: classes have a handful of kinds.
MOST_LAYERS = 8

# Where sizes hang together in a way of the class's own, the real ones are taken, within this memory.
MOST_PARAMETERS = 1 << 28

# Tokens of the two sequences, and how many of them each forward pass takes: chunks, a decode beside a chunk, decodes;
# and the same with each sequence alone.
LENGTHS = (26, 15)
TOGETHER = ((11, 13), (13, 1), (1, 1), (1, 0))
ALONE = ((11, 0), (13, 0), (1, 0), (1, 0), (0, 13), (0, 1), (0, 1))
BLOCK_SIZE = 32

# Of the largest logit. Rounding gives 1e-6; another position, window or neighbour gives 1e-2 and more.
TOLERANCE = 2e-4


@dataclass(frozen=True, slots=True)
class Finding:
    """What the probe found out about a configuration; an empty reason means that it is so."""

    # Why it does not run on flat batches.
    not_paged: str = ""

    # Why our kernels do not stand in for its submodules.
    not_replaced: str = ""

    # Whether its logits, with our kernels, were the same bits in other company.
    is_invariant: bool = False


def probe(config: Any, *, cache_folder: Path | None = None) -> Finding:
    """Whether a model with this configuration runs on flat batches, and with our kernels.

    Takes a second or less where the answer is not kept yet.

    Args:
        config: as transformers reads it; not changed.
        cache_folder: where answers are kept; by default below the user's cache.
    """
    file = (cache_folder or _cache_folder()) / f"{_digest(config)}.json"
    try:
        return Finding(**json.loads(file.read_text(encoding="utf-8")))
    # No answer yet, or one that a crash cut off.
    except (OSError, ValueError, TypeError):
        finding = _probe(config)
    _keep(file, finding)
    return finding


def small_configs(config: Any) -> Iterator[Any]:
    """Copies of a configuration with one layer of each kind: first with small sizes, then with its own."""
    for shrink in (_shrink_sizes, lambda _text: None):
        small = deepcopy(config)
        text = small.get_text_config()
        _choose_layers(text)
        _shrink_vocabulary(text)
        shrink(text)
        yield small


def _probe(config: Any) -> Finding:
    if config.is_encoder_decoder:
        return Finding(not_paged="an encoder beside the decoder")
    problem = "no small model of its class can be made"
    for small in small_configs(config):
        try:
            with torch.random.fork_rng(devices=[]), torch.inference_mode(), quiet_transformers():
                model = _small_model(small)
                expected = _plain_logits(model)
        # Classes raise whatever they raise for sizes that do not fit together.
        except Exception as error:
            problem = f"no small model of its class can be made: {first_line(error)}"
            continue
        return _compare(model, expected)
    return Finding(not_paged=problem)


def _compare(model: LoadedModel, expected: list[torch.Tensor]) -> Finding:
    # Each run changes the model that it is given.
    copies = [replace(model, module=deepcopy(model.module)) for _ in range(3)]
    not_paged = _difference(copies[0], expected, with_kernels=False)
    if not_paged or current_isa() is None:
        return Finding(not_paged=not_paged)
    not_replaced = _difference(copies[1], expected, with_kernels=True)
    return Finding(not_replaced=not_replaced, is_invariant=not not_replaced and _is_invariant(copies[2]))


def _difference(model: LoadedModel, expected: list[torch.Tensor], *, with_kernels: bool) -> str:
    """Why flat batches do not give the expected logits; empty when they do."""
    try:
        with quiet_transformers():
            found = _flat_logits(PagedModel(model, with_kernels=with_kernels), TOGETHER)
    except UnsupportedModelError as error:
        return str(error)
    # Classes raise whatever they raise for batches that they do not expect.
    except Exception as error:
        return f"fails on flat batches: {first_line(error)}"
    worst = max(_distance(rows, logits) for rows, logits in zip(found, expected, strict=True))
    return "" if worst <= TOLERANCE else f"its logits on flat batches are off by {worst:.1g} of the largest"


def _is_invariant(model: LoadedModel) -> bool:
    """Asked of a model that runs on flat batches with kernels."""
    with quiet_transformers():
        paged = PagedModel(model)
        pairs = zip(_flat_logits(paged, TOGETHER), _flat_logits(paged, ALONE), strict=True)
    return all(torch.equal(row, alone[position]) for together, alone in pairs for position, row in together.items())


def _distance(found: dict[int, torch.Tensor], expected: torch.Tensor) -> float:
    """Largest difference, as a share of the largest logit; a NaN counts as infinite."""
    differences = torch.stack([(row - expected[position]).abs().max() for position, row in found.items()])
    return float(torch.nan_to_num(differences.max() / expected.abs().max(), nan=torch.inf))


def _small_model(config: Any) -> LoadedModel:
    """A random model in float32 whose layers all matter to its logits."""
    config._attn_implementation = "eager"
    # `Any`: it has no annotations.
    auto_class: Any = AutoModelForCausalLM
    with torch.device("meta"):
        num_parameters = sum(each.numel() for each in auto_class.from_config(config).parameters())
    if num_parameters > MOST_PARAMETERS:
        raise MemoryError(f"it would have {num_parameters} parameters")
    torch.manual_seed(0)
    module = auto_class.from_config(config, dtype=torch.float32).eval().requires_grad_(requires_grad=False)
    for parameter in module.parameters():
        # Each output of a linear layer is as large as its inputs; vectors (norms, biases) keep their meaning.
        if parameter.dim() >= 2:
            parameter.normal_(std=max(parameter.shape[-2:]) ** -0.5)
        else:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    device = torch.device("cpu")
    return LoadedModel(
        module=module, config=module.config, path=Path(), dtype=torch.float32, device=device, weight_bytes=0
    )


def _sequences(vocab_size: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, vocab_size, (length,), generator=generator).tolist() for length in LENGTHS]


def _plain_logits(model: LoadedModel) -> list[torch.Tensor]:
    """[n, V] of each sequence."""
    module: Any = model.module
    vocab_size = module.get_input_embeddings().num_embeddings
    logits = [module(input_ids=torch.tensor([ids]), use_cache=False).logits[0] for ids in _sequences(vocab_size)]
    if not all(torch.isfinite(each).all() for each in logits):
        raise ArithmeticError("its logits are not finite")
    return logits


@torch.inference_mode()
def _flat_logits(model: PagedModel, steps: Sequence[tuple[int, ...]]) -> list[dict[int, torch.Tensor]]:
    """By position, the logits of each sequence that the steps bring out."""
    model.allocate_cache(num_blocks=len(LENGTHS) + 1, block_size=BLOCK_SIZE)
    requests = [_request(number, ids) for number, ids in enumerate(_sequences(model.vocab_size))]
    found: list[dict[int, torch.Tensor]] = [{} for _ in requests]
    for step in steps:
        chunks = [Chunk(request, count) for request, count in zip(requests, step, strict=True) if count]
        tokens = {id(request): request.token_ids for request in requests}
        for request, count in chunks:
            # The rest is not known yet, so that each step's last token is sampled.
            request.token_ids = request.token_ids[: request.num_computed_tokens + count]
        batch = build_batch(chunks, block_size=BLOCK_SIZE, device=model.device)
        logits = model.forward(batch)
        for chunk, row in zip(batch.sampled_chunks, logits, strict=True):
            request = chunk.request
            request.num_computed_tokens += chunk.num_tokens
            found[requests.index(request)][request.num_computed_tokens - 1] = row.clone()
        for request in requests:
            request.token_ids = tokens[id(request)]
    return found


def _request(number: int, ids: list[int]) -> Request:
    request = Request(
        request_id=str(number),
        params=SamplingParams(max_tokens=1),
        token_ids=ids,
        num_prompt_tokens=len(ids),
        seed=0,
        eos_ids=frozenset(),
    )
    # Block 0 stays free: it stands for no block in padded tables.
    request.block_table.append(number + 1)
    return request


def _choose_layers(text: Any) -> None:
    """Keeps the first layer of each kind, two at least: what lists over layers and numbers about them tell apart."""
    num_layers = text.num_hidden_layers
    lists = {
        name: value
        for name, value in vars(text).items()
        if isinstance(value, (list, tuple)) and len(value) == num_layers and num_layers > 1
    }
    kinds: dict[str, int] = {}
    for layer in range(num_layers):
        kinds.setdefault(repr([value[layer] for value in lists.values()]), layer)
    # `decoder_sparse_step`, `first_k_dense_replace`, `full_attn_every_n_layers`: after how many layers one differs.
    steps = [
        value
        for name, value in vars(text).items()
        if type(value) is int
        and 1 < value < num_layers
        and not name.startswith("_")
        and any(word in name for word in ("step", "freq", "interval", "pattern", "every", "first_k"))
    ]
    chosen = sorted(kinds.values())[:MOST_LAYERS]
    num_chosen = min(num_layers, MOST_LAYERS, max(2, len(chosen), *(step + 1 for step in steps), 0))
    chosen += [layer for layer in range(num_layers) if layer not in chosen][: num_chosen - len(chosen)]
    text.num_hidden_layers = num_chosen
    for name, value in lists.items():
        setattr(text, name, type(value)(value[layer] for layer in chosen))


def _shrink_vocabulary(text: Any) -> None:
    text.vocab_size = _small(text.vocab_size, SMALL_VOCABULARY)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(text, name, None)
    if getattr(text, "sliding_window", None):
        text.sliding_window = min(text.sliding_window, SMALL_WINDOW)


def _shrink_sizes(text: Any) -> None:
    """Fewer heads of the same size, narrow layers, few experts."""
    num_heads = text.num_attention_heads
    if num_heads > SMALL_HEADS and num_heads % SMALL_HEADS == 0:
        num_kv_heads = getattr(text, "num_key_value_heads", None)
        if num_kv_heads:
            text.num_key_value_heads = max(1, num_kv_heads * SMALL_HEADS // num_heads)
        text.num_attention_heads = SMALL_HEADS
        text.hidden_size = text.hidden_size * SMALL_HEADS // num_heads
    for name in ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "n_inner"):
        if getattr(text, name, None):
            setattr(text, name, _small(getattr(text, name), SMALL_INTERMEDIATE))
    for name in ("num_experts", "num_local_experts", "n_routed_experts"):
        if getattr(text, name, None):
            fewest = max(SMALL_EXPERTS, getattr(text, "num_experts_per_tok", 0) or 0)
            setattr(text, name, min(getattr(text, name), fewest))


def _small(size: int, small: int) -> int:
    """At most about `small`, and a whole number of torch's vectors if `size` is one."""
    return min(size, small if size % TORCH_VECTORS == 0 else small + 3)


def _digest(config: Any) -> str:
    """Of all that the answer depends on."""
    tree = config.to_dict()
    for name in ("_name_or_path", "transformers_version", "dtype", "torch_dtype"):
        tree.pop(name, None)
    versions = [
        PROBE_VERSION,
        type(config).__name__,
        transformers.__version__,
        torch.__version__,
        flashgen_runtime.__version__,
        current_isa(),
    ]
    return hashlib.sha256(json.dumps([tree, versions], sort_keys=True, default=str).encode()).hexdigest()


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flashgen" / "probes"


def _keep(file: Path, finding: Finding) -> None:
    """For the next start; a folder that cannot be written only costs time."""
    temporary = file.with_suffix(f".{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(asdict(finding)), encoding="utf-8")
        temporary.replace(file)
    except OSError:
        return
