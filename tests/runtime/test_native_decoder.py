"""Our own decoder against transformers' classes, on tiny random checkpoints: every option, format and batch."""

import json
import subprocess
import sys
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from flashgen_runtime.engine.batch import build_batch
from flashgen_runtime.engine.native_config import reason_against
from flashgen_runtime.engine.native_decoder import NativeDecoder, load_native
from flashgen_runtime.engine.request import Request
from flashgen_runtime.engine.sampling_params import SamplingParams
from flashgen_runtime.engine.scheduler import Chunk
from flashgen_runtime.errors import ConfigError, WeightsError
from flashgen_runtime.kernels.library import current_isa

BLOCK_SIZE = 32
MAX_TOKENS = 128

SIZES: dict[str, Any] = {
    "vocab_size": 200,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    # Large enough that attention is far from uniform.
    "initializer_range": 0.15,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "llama-biases": LlamaConfig(**{**SIZES, "num_key_value_heads": 4}, attention_bias=True, mlp_bias=True, head_dim=32),
    "llama-3": LlamaConfig(**SIZES, rope_parameters=LLAMA3, rms_norm_eps=1e-5),
    "llama-linear": LlamaConfig(
        **SIZES, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}, hidden_act="gelu"
    ),
    "mistral": MistralConfig(**SIZES, sliding_window=24),
    "mistral-full": MistralConfig(**{**SIZES, "num_key_value_heads": 1}, sliding_window=None, head_dim=20),
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen2-window": Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=9, max_window_layers=1),
    "qwen3": Qwen3Config(**SIZES, head_dim=32, tie_word_embeddings=True),
    "qwen3-window": Qwen3Config(
        **SIZES,
        head_dim=16,
        attention_bias=True,
        rope_parameters=YARN,
        use_sliding_window=True,
        sliding_window=17,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
}


def save(config: PreTrainedConfig, folder: Path) -> Any:
    """A random model of transformers' class, saved; norms and biases are random too."""
    torch.manual_seed(0)
    module: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    module.save_pretrained(folder)
    return module.requires_grad_(requires_grad=False)


def load(folder: Path, **options: Any) -> NativeDecoder:
    settings = {
        "dtype": "auto",
        "quantization": None,
        "kv_cache_dtype": "auto",
        "max_num_batched_tokens": MAX_TOKENS,
        **options,
    }
    model = load_native(folder, **settings)
    model.allocate_cache(num_blocks=16, block_size=BLOCK_SIZE)
    return model


def request(number: int, ids: list[int]) -> Request:
    """A request with four blocks of its own, in no order."""
    blocks = array("q", [(number * 4 + block) * 7 % 16 for block in range(4)])
    return Request(
        request_id=str(number),
        params=SamplingParams(max_tokens=1),
        token_ids=ids,
        num_prompt_tokens=len(ids),
        seed=0,
        eos_ids=frozenset(),
        block_table=blocks,
    )


def last_logits(
    model: NativeDecoder, sequences: Sequence[list[int]], *, steps: Sequence[Sequence[int]]
) -> torch.Tensor:
    """[number of sequences, V]: each sequence's last logits; every step takes so many tokens of each sequence."""
    requests = [request(number, ids) for number, ids in enumerate(sequences)]
    found: dict[str, torch.Tensor] = {}
    for step in steps:
        chunks = [Chunk(each, count) for each, count in zip(requests, step, strict=True) if count]
        batch = build_batch(chunks, block_size=BLOCK_SIZE, device=model.device)
        logits = model.forward(batch).clone()
        found |= {chunk.request.request_id: row for chunk, row in zip(batch.sampled_chunks, logits, strict=True)}
        for each, count in chunks:
            each.num_computed_tokens += count
    return torch.stack([found[each.request_id] for each in requests])


def sequences(lengths: Sequence[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, SIZES["vocab_size"], (length,), generator=generator).tolist() for length in lengths]


def reference(module: Any, texts: Sequence[list[int]]) -> torch.Tensor:
    return torch.stack([module(torch.tensor([ids]), use_cache=False).logits[0, -1] for ids in texts])


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


# Chunks that end within and at blocks, single tokens beside prompts, a sequence that ends early.
LENGTHS = (70, 33, 5)
STEPS = ((40, 32, 4), (24, 1, 1), (5, 0, 0), (1, 0, 0))


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    """In float32, chunked and beside others, with every option of the families."""
    module = save(CONFIGS[name], tmp_path)
    texts = sequences(LENGTHS)

    model = load(tmp_path)

    assert relative_error(last_logits(model, texts, steps=STEPS), reference(module, texts)) < 1e-5
    assert model.vocab_size == SIZES["vocab_size"]


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ({"dtype": "bfloat16"}, 0.01),
        ({"dtype": "float16"}, 0.002),
        ({"quantization": "int8"}, 0.06),
        ({"kv_cache_dtype": "int8"}, 0.02),
        # Plain rounding of random weights is as coarse as that.
        ({"quantization": "int4"}, 0.6),
    ],
)
def test_reduced_precision_is_near_float32(options: dict[str, str], limit: float, tmp_path: Path) -> None:
    """Relative error of the logits of a well-conditioned model."""
    config = Qwen3Config(**{**SIZES, "initializer_range": 0.06}, head_dim=32, tie_word_embeddings=True)
    module = save(config, tmp_path)
    texts = sequences(LENGTHS)

    found = last_logits(load(tmp_path, **options), texts, steps=STEPS)

    assert relative_error(found, reference(module, texts)) < limit


@pytest.mark.skipif(current_isa() is None, reason="torch's matrix products are not batch-invariant")
@pytest.mark.parametrize("kv_cache_dtype", ["auto", "int8"])
@pytest.mark.parametrize(("dtype", "quantization"), [("bfloat16", None), ("auto", "int8"), ("auto", "int4")])
def test_logits_are_the_same_bits_in_every_batch(
    dtype: str, quantization: str | None, kv_cache_dtype: str, tmp_path: Path
) -> None:
    """Alone and whole, alone in chunks, token by token, and beside others."""
    save(CONFIGS["qwen3-window"], tmp_path)
    model = load(tmp_path, dtype=dtype, quantization=quantization, kv_cache_dtype=kv_cache_dtype)
    texts = sequences(LENGTHS)

    together = last_logits(model, texts, steps=STEPS)

    assert model.description.is_batch_invariant
    for row, ids in zip(together, texts, strict=True):
        whole = last_logits(model, [ids], steps=[[len(ids)]])[0]
        chunked = last_logits(model, [ids], steps=[[3], [len(ids) - 4], [1]])[0]
        single = last_logits(model, [ids], steps=[[1]] * len(ids))[0]
        assert torch.equal(row, whole)
        assert torch.equal(row, chunked)
        assert torch.equal(row, single)


def test_copied_blocks_continue_as_the_original(tmp_path: Path) -> None:
    """Two requests with the same tokens, the second on copies of the first one's blocks."""
    save(CONFIGS["llama"], tmp_path)
    model = load(tmp_path, kv_cache_dtype="int8")
    ids = sequences([40])[0]
    first, second = request(0, ids[:39]), request(1, ids)
    model.forward(build_batch([Chunk(first, 39)], block_size=BLOCK_SIZE, device=model.device))

    model.copy_blocks(list(zip(first.block_table, second.block_table, strict=True)))
    first.token_ids = ids
    first.num_computed_tokens = second.num_computed_tokens = 39
    batch = build_batch([Chunk(first, 1), Chunk(second, 1)], block_size=BLOCK_SIZE, device=model.device)
    logits = model.forward(batch)

    assert torch.equal(logits[0], logits[1])


def test_steps_without_samples_have_no_logits(tmp_path: Path) -> None:
    """A chunk in the middle of a prompt."""
    save(CONFIGS["llama"], tmp_path)
    model = load(tmp_path)

    batch = build_batch([Chunk(request(0, [1, 2, 3]), 2)], block_size=BLOCK_SIZE, device=model.device)

    assert model.forward(batch).shape == (0, SIZES["vocab_size"])


def test_dtype(tmp_path: Path) -> None:
    """`auto` is what the configuration says, else what the weights are; keys and values follow."""
    save(CONFIGS["llama"], tmp_path)

    assert load(tmp_path).description.dtype == "float32"
    assert load(tmp_path, dtype="float16").description.kv_cache_dtype == "float16"
    assert load(tmp_path, dtype="bfloat16", kv_cache_dtype="int8").description.kv_cache_dtype == "int8"
    edit_config(tmp_path, dtype="bfloat16")
    assert load(tmp_path).description.dtype == "bfloat16"
    edit_config(tmp_path, dtype=None)
    assert load(tmp_path).description.dtype == "float32"


def test_cache_bytes(tmp_path: Path) -> None:
    """What a token's keys and values take in all layers, scales included."""
    save(CONFIGS["llama"], tmp_path)

    num_values = 3 * 2 * 2 * 16
    assert load(tmp_path).block_bytes_per_token == num_values * 4
    assert load(tmp_path, dtype="bfloat16").block_bytes_per_token == num_values * 2
    assert load(tmp_path, kv_cache_dtype="int8").block_bytes_per_token == num_values + 3 * 2 * 2 * 4


def test_blocks_are_whole_tiles(tmp_path: Path) -> None:
    """The kernels' cache lies in tiles of 32 tokens."""
    save(CONFIGS["llama"], tmp_path)
    model = load_native(
        tmp_path, dtype="auto", quantization=None, kv_cache_dtype="auto", max_num_batched_tokens=MAX_TOKENS
    )

    with pytest.raises(ConfigError, match="multiple of 32 tokens, found 48"):
        model.allocate_cache(num_blocks=4, block_size=48)


def test_a_head_that_differs_from_the_embedding_is_used(tmp_path: Path) -> None:
    """As in transformers, a tied head that is in the files with other values is not tied."""
    save(CONFIGS["qwen3"], tmp_path)
    edit_weights(tmp_path, **{"lm_head.weight": torch.randn(SIZES["vocab_size"], SIZES["hidden_size"])})
    module = AutoModelForCausalLM.from_pretrained(tmp_path).eval().requires_grad_(requires_grad=False)
    texts = sequences([20])

    found = last_logits(load(tmp_path), texts, steps=[[20]])

    assert relative_error(found, reference(module, texts)) < 1e-5


def test_shards(tmp_path: Path) -> None:
    """A checkpoint in several files."""
    module = save(CONFIGS["llama"], tmp_path / "whole")
    module.save_pretrained(tmp_path / "sharded", max_shard_size="80KB")
    texts = sequences([20])

    whole, sharded = (last_logits(load(tmp_path / name), texts, steps=[[20]]) for name in ("whole", "sharded"))

    assert torch.equal(whole, sharded)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model.layers.1.mlp.up_proj.weight": None}, r"lacks tensor `model\.layers\.1\.mlp\.up_proj\.weight`"),
        ({"extra": torch.zeros(2)}, r"model\.safetensors: holds tensor `extra`, which the architecture"),
        ({"model.norm.weight": torch.zeros(7)}, r"`model\.norm\.weight` has the shape \[7\].* says \[64\]"),
        ({"model.norm.weight": torch.zeros(64, dtype=torch.int8)}, r"`model\.norm\.weight` has the dtype I8"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    changes: dict[str, torch.Tensor | None], problem: str, tmp_path: Path
) -> None:
    """Missing, unexpected, wrongly shaped and of a type that no weights have."""
    save(CONFIGS["llama"], tmp_path)
    edit_weights(tmp_path, **changes)

    with pytest.raises(WeightsError, match=problem):
        load(tmp_path)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"model_type": "gpt2"}, "models of type `gpt2`"),
        ({"hidden_act": "quick_gelu"}, "the activation `quick_gelu`"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rotary embeddings of type `dynamic`"),
        ({"rope_scaling": {"type": "longrope"}}, "rotary embeddings of type `longrope`"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rotary embeddings of type `linear` without `factor`"),
        ({"partial_rotary_factor": 0.5}, "rotary embeddings of a part of each head"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            "rotary embeddings that differ between layers",
        ),
        ({"head_dim": 30}, "heads of 30 values"),
        ({"head_dim": 512}, "heads of 512 values"),
        ({"hidden_size": "wide"}, "a configuration whose `hidden_size` is 'wide'"),
        ({"vocab_size": None}, "a configuration whose `vocab_size` is None"),
        ({"num_key_value_heads": 3}, "4 heads over 3 heads of keys and values"),
    ],
)
def test_what_is_not_run_natively_has_a_reason(fields: dict[str, Any], reason: str) -> None:
    """Everything that the decoder would have to ignore."""
    config = CONFIGS["llama"].to_dict()

    assert reason_against(config) is None
    assert reason_against({**config, **fields}) == reason


def test_layers_and_their_types_agree() -> None:
    """A list of types for another number of layers."""
    config = {**CONFIGS["qwen3-window"].to_dict(), "layer_types": ["full_attention"]}

    assert reason_against(config) == "`layer_types` of 1 layers where there are 3"


def test_fields_that_old_configurations_leave_out() -> None:
    """Defaults are those of transformers' classes, and rotary parameters may have their old names."""
    config = CONFIGS["llama"].to_dict()
    rope = config.pop("rope_parameters")
    for name in ("head_dim", "attention_bias", "mlp_bias", "tie_word_embeddings", "rms_norm_eps", "hidden_act"):
        del config[name]

    assert reason_against({**config, "rope_theta": rope["rope_theta"], "rope_scaling": None}) is None


def test_transformers_is_not_imported(tmp_path: Path) -> None:
    """Loading and running a model where importing transformers raises."""
    save(CONFIGS["qwen3"], tmp_path)
    program = f"""
import sys
sys.modules["transformers"] = None
from array import array
from pathlib import Path
from flashgen_runtime.engine.batch import build_batch
from flashgen_runtime.engine.native_decoder import load_native
from flashgen_runtime.engine.request import Request
from flashgen_runtime.engine.scheduler import Chunk
model = load_native(
    Path({str(tmp_path)!r}), dtype="auto", quantization="int8", kv_cache_dtype="int8", max_num_batched_tokens=8
)
model.allocate_cache(num_blocks=1, block_size=32)
request = Request(
    request_id="", params=None, token_ids=[1, 2], num_prompt_tokens=2, seed=0, eos_ids=(), block_table=array("q", [0])
)
assert model.forward(build_batch([Chunk(request, 2)], block_size=32, device=model.device)).isfinite().all()
"""

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


def edit_config(folder: Path, **fields: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def edit_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    """Replaces, adds or (None) leaves out tensors."""
    file = folder / "model.safetensors"
    tensors = {**load_file(file), **changes}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, file, metadata={"format": "pt"})
