"""Weights of native models in every form: rows of the checkpoint, prepared panels, packed at once; and failures."""

import json
import os
import shutil
import subprocess
import sys
import time
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from flashgen_runtime.engine import native_loading
from flashgen_runtime.engine.batch import build_batch
from flashgen_runtime.engine.native_decoder import NativeDecoder, decoder_recipe, load_native
from flashgen_runtime.engine.native_encoder import load_native_encoder
from flashgen_runtime.engine.prepare import best_layout, prepare
from flashgen_runtime.engine.request import Request
from flashgen_runtime.engine.sampling_params import SamplingParams
from flashgen_runtime.engine.scheduler import Chunk
from flashgen_runtime.engine.sizes import weight_bytes
from flashgen_runtime.errors import WeightsError
from flashgen_runtime.kernels.panels import Layout
from flashgen_runtime.loader.access import WeightAccess
from flashgen_runtime.loader.safetensors_header import read_header
from flashgen_runtime.loader.store import Store
from flashgen_runtime.loader.tensors import CheckpointTensors
from tests.runtime.test_native_decoder import CONFIGS, save

BLOCK_SIZE = 32
PROMPT = list(range(3, 43))
SETTINGS: dict[str, Any] = {"kv_cache_dtype": "auto", "max_num_batched_tokens": 128}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def access(store: Store) -> WeightAccess:
    return WeightAccess(store=store, threads=2)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return saved(tmp_path / "checkpoint")


def saved(folder: Path, family: str = "qwen3", dtype: torch.dtype = torch.bfloat16) -> Path:
    """A random checkpoint in a dtype."""
    save(CONFIGS[family], folder)
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": str(dtype).removeprefix("torch.")}))
    return folder


def load(path: Path, access: WeightAccess | None, **options: Any) -> NativeDecoder:
    decoder = load_native(path, **{"dtype": "auto", "quantization": None, **SETTINGS, **options}, access=access)
    decoder.allocate_cache(8, BLOCK_SIZE)
    return decoder


def logits(decoder: NativeDecoder, prompt: list[int] = PROMPT) -> torch.Tensor:
    """Of the prompt's last token."""
    request = Request(
        request_id="r",
        params=SamplingParams(max_tokens=1),
        token_ids=prompt,
        num_prompt_tokens=len(prompt),
        seed=0,
        eos_ids=frozenset(),
    )
    request.block_table = array("q", [1, 2])
    batch = build_batch([Chunk(request, len(prompt))], block_size=BLOCK_SIZE, device=torch.device("cpu"))
    return decoder.forward(batch).clone()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.005)


def preparation_of(decoder: NativeDecoder) -> Any:
    return decoder._found.preparation


@pytest.mark.parametrize("quantization", [None, "int8", "int4"])
@pytest.mark.parametrize("family", ["qwen3", "llama-biases", "qwen2", "mistral-full"])
def test_prepared_weights_give_the_same_bits(family: str, quantization: Any, tmp_path: Path, store: Store) -> None:
    """A mapped file, the same file read into memory, and weights packed at load: logits are equal bit for bit."""
    path = saved(tmp_path / "checkpoint", family)
    expected = logits(load(path, None, quantization=quantization))

    info = prepare(path, store, quantization=quantization)

    assert (info.is_new, info.quantization, info.layout) == (True, quantization or "", "panels")
    assert not prepare(path, store, quantization=quantization).is_new
    for loader in ("auto", "map", "arena"):
        found = load(path, WeightAccess(store=store, loader=loader), quantization=quantization)
        assert torch.equal(logits(found), expected)


def test_rows_serve_until_panels_are_there(checkpoint: Path, access: WeightAccess) -> None:
    """The first load computes with the checkpoint's rows, goes on with panels, and neither changes a bit."""
    expected = logits(load(checkpoint, None))

    decoder = load(checkpoint, access)
    assert decoder._found.weights.layers[0].down[0].layout is Layout.ROWS
    assert torch.equal(logits(decoder), expected)
    wait_until(lambda: preparation_of(decoder).is_done)
    assert torch.equal(logits(decoder), expected)

    assert decoder._found.weights.layers[0].down[0].layout is Layout.PANELS
    assert preparation_of(load(checkpoint, access)) is None


def test_rows_of_a_tied_head(tmp_path: Path, access: WeightAccess) -> None:
    """A head that is the embedding is used as it lies too, in float32 as well."""
    path = saved(tmp_path / "checkpoint", "qwen2", torch.float32)

    decoder = load(path, access)

    assert torch.equal(logits(decoder), logits(load(path, None)))
    assert isinstance(decoder._found.weights.embedding, torch.Tensor | type(decoder._found.weights.head))


def test_the_file_is_in_the_order_of_a_forward_pass(checkpoint: Path, store: Store) -> None:
    """Data begins on a page, every tensor on a multiple of 256, embedding first and the last layer last."""
    header = read_header(prepare(checkpoint, store).path)

    assert header.data_start % 4096 == 0
    assert all(entry.start % 256 == 0 for entry in header.tensors.values() if (entry.end - entry.start) % 256 == 0)
    names = sorted(header.tensors, key=lambda name: header.tensors[name].start)
    whole = [name for name in names if (header.tensors[name].end - header.tensors[name].start) % 256 == 0]
    assert whole[0] == "embedding.panels"
    order = [whole.index(f"layers.{layer}.down.panels") for layer in range(3)]
    assert order == sorted(order)


def test_bytes_are_known_before_loading(checkpoint: Path, store: Store) -> None:
    """The count of a model's weights is the size of its prepared data."""
    for quantization in (None, "int8", "int4"):
        header = read_header(prepare(checkpoint, store, quantization=quantization).path)
        size = max(entry.end for entry in header.tensors.values())
        assert weight_bytes(checkpoint, dtype="auto", quantization=quantization) == size


def test_other_dtype_is_prepared_before_it_is_served(checkpoint: Path, store: Store, access: WeightAccess) -> None:
    """Rows of another dtype are of no use: the first load makes the file and maps it."""
    decoder = load(checkpoint, access, dtype="float32")

    assert torch.equal(logits(decoder), logits(load(checkpoint, None, dtype="float32")))
    assert [path.name for path in (store.root / "prepared").glob("*/*")] == ["float32-panels.safetensors"]


@pytest.mark.parametrize("damage", ["stale", "truncated", "header", "other"])
def test_a_bad_prepared_file_is_made_anew(damage: str, checkpoint: Path, store: Store, access: WeightAccess) -> None:
    """One of another checkpoint or version, a short one, one with a broken header or other tensors is not used."""
    expected = logits(load(checkpoint, None, quantization="int8"))
    path = prepare(checkpoint, store, quantization="int8").path
    path.chmod(0o644)
    content = path.read_bytes()
    if damage == "stale":
        path.write_bytes(
            content.replace(b'"flashgen.prepared":"', b'"flashgen.prepared":"0', 1).replace(b"  ", b" ", 1)
        )
    elif damage == "truncated":
        path.write_bytes(content[:-100])
    elif damage == "header":
        path.write_bytes(b"\xff" * 16 + content[16:])
    else:
        path.unlink()
        save_file({"a": torch.zeros(4)}, path)

    assert torch.equal(logits(load(checkpoint, access, quantization="int8")), expected)
    assert path.read_bytes() == content


def test_a_flipped_bit_is_found_where_digests_are_asked_for(checkpoint: Path, store: Store) -> None:
    """With `verify: sha256` a prepared file with one wrong bit is made anew."""
    path = prepare(checkpoint, store).path
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)

    decoder = load(checkpoint, WeightAccess(store=store, verify="sha256"))
    wait_until(lambda: preparation_of(decoder) is None or preparation_of(decoder).is_done)

    assert torch.equal(logits(decoder), logits(load(checkpoint, None)))
    content[-5] ^= 1
    assert path.read_bytes() == bytes(content)


def test_a_changed_checkpoint_is_prepared_again(checkpoint: Path, store: Store, access: WeightAccess) -> None:
    """A folder whose weights are replaced is not served from the old one's file."""
    first = prepare(checkpoint, store, quantization="int8")
    tensors = {name: tensor * 1.5 for name, tensor in load_file(checkpoint / "model.safetensors").items()}
    save_file(tensors, checkpoint / "new", metadata={"format": "pt"})
    (checkpoint / "new").replace(checkpoint / "model.safetensors")

    decoder = load(checkpoint, access, quantization="int8")

    assert torch.equal(logits(decoder), logits(load(checkpoint, None, quantization="int8")))
    assert first.path.exists()


@pytest.mark.parametrize("way", ["packed", "prepared"])
def test_a_checkpoint_that_is_replaced_while_it_is_read(
    way: str, checkpoint: Path, access: WeightAccess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of two checkpoints are never mixed: the load fails and names the file, and nothing is left of it."""
    read = CheckpointTensors.read
    file = checkpoint / "model.safetensors"

    def replacing(self: CheckpointTensors, name: str) -> torch.Tensor:
        if "layers.2" in name and not file.with_name("old").exists():
            file.rename(file.with_name("old"))
            shutil.copyfile(file.with_name("old"), file)
        return read(self, name)

    monkeypatch.setattr(CheckpointTensors, "read", replacing)

    with pytest.raises(WeightsError, match="safetensors: was changed"):
        load(checkpoint, None if way == "packed" else access, quantization="int8")
    assert not list(access.store.root.rglob("*.safetensors"))


def test_several_that_ask_at_once_make_one_file(checkpoint: Path, store: Store) -> None:
    """Of four processes' worth of callers one makes the file, the others wait for it."""
    with ThreadPoolExecutor(4) as pool:
        infos = list(pool.map(lambda _: prepare(checkpoint, store, quantization="int4"), range(4)))

    assert sorted(info.is_new for info in infos) == [False, False, False, True]
    assert len({info.path for info in infos}) == 1


def test_a_killed_preparation_leaves_nothing_that_counts(checkpoint: Path, store: Store) -> None:
    """After SIGKILL in the middle there is no file of that name; the next one clears up and makes it."""
    program = f"""
import os, signal
from pathlib import Path
from flashgen_runtime.loader import aligned_file
from flashgen_runtime.engine.prepare import prepare
from flashgen_runtime.loader.store import Store
count = 0
write_all = aligned_file.write_all
def dying(descriptor, piece):
    global count
    count += 1
    if count == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    write_all(descriptor, piece)
aligned_file.write_all = dying
prepare(Path({str(checkpoint)!r}), Store(Path({str(store.root)!r})))
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    left = [path.name for path in (store.root / "prepared").rglob("*") if path.is_file()]
    assert len(left) == 1
    assert left[0].endswith(".part")

    assert prepare(checkpoint, store).is_new
    assert [path.name for path in (store.root / "prepared").rglob("*") if path.is_file()] == [
        "bfloat16-panels.safetensors"
    ]


def test_without_room_for_prepared_files_the_model_is_served(
    checkpoint: Path, access: WeightAccess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk costs speed, not the service; nothing half-written stays."""

    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)

    decoder = load(checkpoint, access, quantization="int8")

    assert torch.equal(logits(decoder), logits(load(checkpoint, None, quantization="int8")))
    assert [path for path in (access.store.root / "prepared").rglob("*") if path.is_file()] == []
    with pytest.raises(WeightsError, match="No space left"):
        prepare(checkpoint, access.store)


def test_a_store_that_cannot_be_written(
    checkpoint: Path, access: WeightAccess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows stay, quantised weights are packed into memory; both are right."""
    monkeypatch.setattr(native_loading, "can_prepare", lambda _: False)

    rows, packed = load(checkpoint, access), load(checkpoint, access, quantization="int8")

    assert preparation_of(rows) is None
    assert torch.equal(logits(rows), logits(load(checkpoint, None)))
    assert torch.equal(logits(packed), logits(load(checkpoint, None, quantization="int8")))
    assert not (access.store.root / "prepared").exists()


def test_models_of_the_store_are_known_by_their_digests(checkpoint: Path, store: Store, access: WeightAccess) -> None:
    """A pulled model's file lies under its name, is listed, and survives that the checkpoint's times change."""
    model = store.pull(str(checkpoint))
    info = prepare(model.path, store)
    os.utime(model.path / "model.safetensors", (1, 1))

    assert info.path.parent.name == model.name
    assert not prepare(model.path, store).is_new
    (listed,) = store.prepared_files(model)
    assert (listed, listed.stat().st_size, info.dtype) == (info.path, info.num_bytes, "bfloat16")
    decoder = load(model.path, access)
    assert torch.equal(logits(decoder), logits(load(checkpoint, None)))


def test_a_damaged_model_of_the_store_is_named(checkpoint: Path, store: Store, access: WeightAccess) -> None:
    """Before its weights are used, a file that is not as long as it was pulled is an error."""
    model = store.pull(str(checkpoint))
    path = model.path / "config.json"
    path.chmod(0o644)
    path.write_text(path.read_text() + " ")

    with pytest.raises(WeightsError, match="is not what was pulled"):
        load(model.path, access)


def test_generic_files_are_read_by_every_reader(checkpoint: Path, store: Store) -> None:
    """Rows under the checkpoint's names, in the order of use, in another dtype if asked for."""
    expected = load_file(checkpoint / "model.safetensors")

    same = prepare(checkpoint, store, layout="generic")
    wider = prepare(checkpoint, store, layout="generic", dtype="float32")

    found = load_file(same.path)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(torch.equal(tensor, expected[name].float()) for name, tensor in load_file(wider.path).items())
    header = read_header(same.path)
    names = [name for name in sorted(header.tensors, key=lambda name: header.tensors[name].start) if "proj" in name]
    assert names[0].startswith("model.layers.0.")
    assert names[-1].startswith("model.layers.2.")
    with pytest.raises(WeightsError, match="generic layout keeps floats"):
        prepare(checkpoint, store, layout="generic", quantization="int8")


def test_what_our_classes_do_not_run_has_no_panels(checkpoint: Path, store: Store) -> None:
    """A checkpoint of another architecture says so."""
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "model_type": "gpt_neox"}))

    assert best_layout(checkpoint) is None
    with pytest.raises(WeightsError, match="gpt_neox"):
        prepare(checkpoint, store)


def test_a_read_error_fails_the_forward_pass(
    checkpoint: Path, access: WeightAccess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the disk fails while weights arrive, the pass that waits for them raises, and nothing is computed."""

    def fails(*_: Any) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fails)
    decoder = load(checkpoint, access)

    with pytest.raises(WeightsError, match="Input/output error"):
        logits(decoder)


def test_closing_gives_back_the_memory(checkpoint: Path, store: Store, access: WeightAccess) -> None:
    """After `close` no prepared file is mapped any more."""
    path = prepare(checkpoint, store).path
    decoder = load(checkpoint, access)
    logits(decoder)
    assert path.name in Path("/proc/self/maps").read_text()

    decoder.close()

    assert path.name not in Path("/proc/self/maps").read_text()


def test_removed_while_it_is_mapped(checkpoint: Path, store: Store, access: WeightAccess) -> None:
    """A model goes on when its prepared file is removed."""
    prepare(checkpoint, store)
    decoder = load(checkpoint, access)
    expected = logits(decoder)
    shutil.rmtree(store.root / "prepared")

    assert torch.equal(logits(decoder), expected)


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_encoders_are_prepared_as_well(quantization: Any, tmp_path: Path, store: Store, access: WeightAccess) -> None:
    """An encoder gives the same vectors from rows, from its prepared file, and packed at load."""
    from transformers import BertConfig, BertModel

    path = tmp_path / "bert"
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=100, **sizes), add_pooling_layer=False).save_pretrained(path)
    settings: dict[str, Any] = {
        "dtype": "auto",
        "quantization": quantization,
        "pooling": "mean",
        "max_num_batched_tokens": 64,
    }
    texts = [[1, 2, 3], [4, 5, 6, 7]]
    expected = load_native_encoder(path, **settings).encode(texts)

    first = load_native_encoder(path, **settings, access=access)
    assert first.encode(texts) == expected
    info = prepare(path, store, quantization=quantization)
    second = load_native_encoder(path, **settings, access=access)

    assert second.encode(texts) == expected
    assert info.path.exists()
    first.close()
    second.close()


def test_recipe_counts_without_reading(checkpoint: Path) -> None:
    """Shapes come from headers alone."""
    _, recipe = decoder_recipe(checkpoint, dtype="auto", quantization="int8")
    content = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(content)

    assert recipe.shapes().num_bytes > 0
    assert all(tensor.is_meta for tensor in recipe.shapes().tensors.values())
