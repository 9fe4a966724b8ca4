"""The compiler and the runtime count the same bytes, each from the checkpoint alone."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec import structs
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BertConfig, BertModel, PreTrainedConfig

from flashgen.checkpoint_sizes import CheckpointSizes, checkpoint_sizes
from flashgen.checkpoints import Checkpoint
from flashgen.memory_sizes import ModelDemand
from flashgen.panel_sizes import VALUES_OF_WORD, linear_bytes
from flashgen.sizing import ResolvedResources, engine_sizes
from flashgen_runtime.config import DraftConfig, FolderSource, ModelConfig, SpeculativeConfig
from flashgen_runtime.engine.sizes import sequence_kv_bytes
from flashgen_runtime.kernels.panels import WeightFormat, pack
from flashgen_runtime.messages import GenerationParams
from flashgen_runtime.models.registry import measure_model
from tests.golden_trees import SAMPLES
from tests.quantized_checkpoints import KINDS, Kind, awq, gptq, write_quantized
from tests.runtime_models import NATIVE_FAMILIES, PAGED_FAMILIES, sizes, tiny_config
from tests.runtime_workers import model_config

DTYPES = ("auto", "float32", "bfloat16", "float16")
# Of a KV cache that some of the models cannot fill.
KV_CACHE_BYTES = (1 << 20) + 5

QUANTIZATIONS = (None, "int8", "int4")
OTHERS = tuple(family for family in PAGED_FAMILIES if family not in NATIVE_FAMILIES)


def saved(folder: Path, config: PreTrainedConfig, *, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A random checkpoint of an architecture."""
    model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The tiny random checkpoint of a family, made once."""
    made: dict[str, Path] = {}

    def of_family(family: str) -> Path:
        if family not in made:
            made[family] = saved(tmp_path_factory.mktemp(family), tiny_config(family))
        return made[family]

    return of_family


def counted(
    folder: Path,
    *,
    dtype: str = "auto",
    quantization: str | None = None,
    kv_cache_dtype: str = "auto",
    max_context: int | None = None,
) -> CheckpointSizes:
    """By the compiler."""
    found = checkpoint_sizes(
        Checkpoint(folder),
        dtype=dtype,
        quantization=quantization,
        is_on_card=False,
        kv_cache_dtype=kv_cache_dtype,
        max_context=max_context,
        block_size=32,
    )
    assert found is not None
    return found


def agree(folder: Path, *, max_context: int | None = None, kv_cache_dtype: Any = "auto", **asked: Any) -> None:
    """Asserts that both count the same: weights, KV cache and buffers, and one sequence."""
    of_compiler = counted(folder, max_context=max_context, kv_cache_dtype=kv_cache_dtype, **asked)
    engine = sizes(kv_cache_dtype=kv_cache_dtype, kv_cache_bytes=KV_CACHE_BYTES, max_num_seqs=4)
    is_encoder = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"] == "bert"
    model = ModelConfig(
        id="model",
        aliases=(),
        task="feature-extraction" if is_encoder else "text-generation",
        source=FolderSource(folder="model"),
        device="cpu",
        max_context=max_context,
        chat_template=None,
        generation_params=GenerationParams(),
        prefetch=(),
        speculative=None,
        weight_bytes=None,
        sequence_kv_bytes=None,
        **{"dtype": "auto", "quantization": None, **asked},
    )

    memory = measure_model(model, engine, folder)

    assert of_compiler.weight_bytes == memory.weight_bytes
    assert of_compiler.kv_cache_bytes(KV_CACHE_BYTES, max_num_seqs=4) == memory.kv_cache_bytes
    assert of_compiler.sequence_kv_bytes == sequence_kv_bytes(folder, model, engine)
    assert memory.workspace_bytes == of_compiler.buffer_bytes(
        max_num_seqs=4, max_num_batched_tokens=engine.max_num_batched_tokens
    )


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", NATIVE_FAMILIES)
def test_native_decoders(checkpoint: Callable[[str], Path], family: str, dtype: str, quantization: str | None) -> None:
    """Each family in each precision."""
    agree(checkpoint(family), dtype=dtype, quantization=quantization)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", OTHERS)
def test_other_decoders(checkpoint: Callable[[str], Path], family: str, dtype: str) -> None:
    """Architectures that run in transformers' classes: the checkpoint's tensors in the asked dtype."""
    agree(checkpoint(family), dtype=dtype)


@pytest.mark.parametrize("family", [*NATIVE_FAMILIES, "gpt2", "gemma2", "gpt_bigcode"])
@pytest.mark.parametrize(("kv_cache_dtype", "max_context"), [("int8", None), ("auto", 100), ("int8", 33)])
def test_sequences(
    checkpoint: Callable[[str], Path], family: str, kv_cache_dtype: str, max_context: int | None
) -> None:
    """The KV cache in both formats, of whole blocks."""
    agree(checkpoint(family), kv_cache_dtype=kv_cache_dtype, max_context=max_context)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"vocab_size": 250, "hidden_size": 44, "intermediate_size": 90, "head_dim": 12}),
        ("llama", {"num_key_value_heads": None}),
        ("llama", {"head_dim": 14}),
        ("qwen3", {"tie_word_embeddings": False, "attention_bias": True}),
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}}),
    ],
)
def test_options_of_a_family(tmp_path: Path, family: str, fields: dict[str, Any], quantization: str | None) -> None:
    """Biases, odd sizes, heads that are tied or not, and what the native decoder does not take."""
    config = tiny_config(family).to_dict() | fields

    agree(saved(tmp_path, type(tiny_config(family))(**config)), quantization=quantization)


@pytest.mark.parametrize("is_equal", [True, False])
def test_a_tied_head_that_is_in_the_file_as_well(tmp_path: Path, is_equal: bool) -> None:
    """A copy of the embedding is no matrix of its own; one that differs is."""
    folder = saved(tmp_path, tiny_config("qwen2"))
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone() + (0 if is_equal else 1)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    vocabulary = linear_bytes("bfloat16", 48, 256)

    agree(folder)
    assert counted(folder).weight_bytes - counted(saved(tmp_path / "plain", tiny_config("qwen2"))).weight_bytes == (
        0 if is_equal else vocabulary
    )


def test_a_configuration_without_a_dtype(tmp_path: Path) -> None:
    """The checkpoint's own dtype is that of its embedding."""
    folder = saved(tmp_path, tiny_config("llama"), dtype=torch.float16)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del config["dtype"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")

    agree(folder)
    assert counted(folder) == counted(folder, dtype="float16")


def test_shards(tmp_path: Path) -> None:
    """The files that the index names."""
    model: Any = AutoModelForCausalLM.from_config(tiny_config("gpt2"), dtype=torch.float32)
    model.save_pretrained(tmp_path, max_shard_size="50KB")

    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    agree(tmp_path)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("position_embedding_type", ["absolute", "relative_key"])
def test_encoders(tmp_path: Path, dtype: str, position_embedding_type: str) -> None:
    """BERT, natively and where its positions are of another kind; no KV cache stays."""
    config = BertConfig(
        vocab_size=100, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=100
    )
    BertModel(config).save_pretrained(tmp_path)
    tree = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    tree["position_embedding_type"] = position_embedding_type
    (tmp_path / "config.json").write_text(json.dumps(tree), encoding="utf-8")

    agree(tmp_path, dtype=dtype)
    assert counted(tmp_path).sequence_kv_bytes == 0


@pytest.mark.parametrize("max_context", [None, 100])
@pytest.mark.parametrize("families", [("llama", "qwen3"), ("qwen3", "gpt2", "llama")])
def test_draft_models(checkpoint: Callable[[str], Path], families: tuple[str, ...], max_context: int | None) -> None:
    """All that is loaded together: weights and buffers add up, and the KV caches have equal numbers of blocks."""
    path, *draft_paths = map(checkpoint, families)
    engine = sizes(kv_cache_bytes=KV_CACHE_BYTES, max_num_seqs=4)
    drafts = tuple(
        DraftConfig(
            id=family, source=FolderSource(folder=family), dtype="float32", quantization=None, weight_bytes=None
        )
        for family in families[1:]
    )
    method: Any = "draft" if len(drafts) == 1 else "tree"
    model = structs.replace(
        model_config(),
        max_context=max_context,
        speculative=SpeculativeConfig(method=method, num_tokens=4, drafts=drafts),
    )
    demand = ModelDemand(
        keeps_kv_cache=True,
        sizes=counted(path, dtype="float32", max_context=max_context),
        has_max_context=max_context is not None,
        is_preloaded=True,
        drafts=tuple(counted(draft_path, dtype="float32") for draft_path in draft_paths),
    )
    sizes_of_compiler = engine_sizes(
        ResolvedResources(2.0, 1 << 30, 0, None, None),
        max_num_seqs=4,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        block_size=engine.block_size,
    )._replace(kv_cache_bytes=KV_CACHE_BYTES)

    memory = measure_model(model, engine, path, draft_paths)

    assert demand.weight_bytes == memory.weight_bytes
    assert demand.fixed_bytes(sizes_of_compiler) == memory.weight_bytes + memory.workspace_bytes
    assert demand.loaded_bytes(sizes_of_compiler) == memory.total_bytes


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_quantised_checkpoints(checkpoint: Callable[[str], Path], kind: Kind, dtype: str, tmp_path: Path) -> None:
    """Layers that keep their integers and layers that do not, natively and with transformers' classes."""
    for family in ("llama", "qwen2", "phi3"):
        write_quantized(checkpoint(family), tmp_path / family, kind)
        agree(tmp_path / family, dtype=dtype)


@pytest.mark.parametrize(("kind", "option"), [(awq(), "int4"), (gptq(8, -1), "int8"), (gptq(4, 32), "int4")])
def test_quantised_checkpoints_whose_precision_is_named(
    checkpoint: Callable[[str], Path], kind: Kind, option: str, tmp_path: Path
) -> None:
    """They keep their integers beside float32 too; another precision is not counted."""
    write_quantized(checkpoint("llama"), tmp_path / "model", kind)

    agree(tmp_path / "model", dtype="float32", quantization=option)
    with pytest.raises(AssertionError):
        counted(tmp_path / "model", quantization="int4" if option == "int8" else "int8")


def test_quantised_in_part(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """Fused layers of two forms are floats; a bias that a tool added counts."""
    kind = gptq(dynamic={r"-:.*\.up_proj": {}})
    write_quantized(checkpoint("llama"), tmp_path / "model", replace(kind, floats=("lm_head", "up_proj")))
    file = tmp_path / "model" / "model.safetensors"
    bias = {"model.layers.0.self_attn.o_proj.bias": torch.zeros(48)}
    save_file({**load_file(file), **bias}, file, {"format": "pt"})

    agree(tmp_path / "model")


@pytest.mark.parametrize("section", [{}, 7, {"quant_method": "compressed-tensors"}, {"quant_method": "gptq"}])
def test_a_broken_quantization_config_is_not_counted(
    checkpoint: Callable[[str], Path], section: object, tmp_path: Path
) -> None:
    """The runtime says what is wrong with it."""
    write_quantized(checkpoint("llama"), tmp_path / "model", gptq())
    file = tmp_path / "model" / "config.json"
    tree = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**tree, "quantization_config": section}), encoding="utf-8")

    with pytest.raises(AssertionError):
        counted(tmp_path / "model")


@pytest.mark.parametrize("name", ["stdlib-coder", "all-MiniLM-L6-v2"])
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_samples_models(name: str, dtype: str, quantization: str | None) -> None:
    """What the samples serve."""
    agree(SAMPLES / "models" / name, dtype=dtype, quantization=quantization)


@pytest.mark.parametrize("weight_format", VALUES_OF_WORD)
@pytest.mark.parametrize(("in_features", "out_features"), [(64, 32), (65, 33), (7, 1), (130, 100)])
def test_panels(weight_format: str, in_features: int, out_features: int) -> None:
    """The arithmetic is that of the kernels' own packing."""
    names = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "INT8", "int4": "INT4"}

    packed = pack(
        torch.ones(out_features, in_features), WeightFormat[names[weight_format]], bias=torch.ones(out_features)
    )

    assert linear_bytes(weight_format, in_features, out_features, has_bias=True) == packed.nbytes
