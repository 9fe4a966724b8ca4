"""`save_dict` and `load_dict`: tensors to a safetensors file and back, bit for bit.

The file is laid out for fast loading (`aligned_file`) and any reader of the format takes it. Checksums and aliases are
in its metadata.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from flashgen_runtime.errors import WeightsError
from flashgen_runtime.loader.aligned_file import CHECKSUM_KEY, LAYOUT, LAYOUT_KEY, Write, write_aligned
from flashgen_runtime.loader.checkpoint import read_headers
from flashgen_runtime.loader.cuda import open_on_card
from flashgen_runtime.loader.memory import DEFAULT_THREADS
from flashgen_runtime.loader.opening import Mode, open_weights
from flashgen_runtime.loader.reader import DTYPES, HostFile, OpenFile
from flashgen_runtime.loader.stream import stream

ALIASES_KEY = "flashgen.aliases"

DeviceMap = str | torch.device | Mapping[str, str | torch.device]

_NAMES = frozenset(DTYPES.values())


def save_dict(state_dict: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """Writes tensors into one safetensors file, in the order of the mapping as far as alignment allows.

    Any stride, view, device and dtype of safetensors; a tensor that is the same memory as an earlier one is stored once
    and named in the metadata. The file appears complete or not at all.

    Raises:
        WeightsError: a tensor cannot be stored, or the disk is full.
    """
    path = Path(path)
    aliases = _aliases(state_dict)
    stored = {name: tensor for name, tensor in state_dict.items() if name not in aliases}
    for name, tensor in stored.items():
        _check_storable(path, name, tensor)

    def give(write: Write) -> None:
        for name, tensor in stored.items():
            write(name, tensor)

    metadata = {"format": "pt", LAYOUT_KEY: LAYOUT, ALIASES_KEY: json.dumps(aliases)}
    write_aligned(path, stored, metadata, give)


def load_dict(
    path: str | Path,
    device_map: DeviceMap = "cpu",
    *,
    mode: Mode = "auto",
    verify: bool = False,
    threads: int = DEFAULT_THREADS,
) -> dict[str, torch.Tensor]:
    """Reads all tensors of a safetensors file, or of a checkpoint's folder, whoever wrote it.

    On a processor the tensors lie where the file was read to, or in the page cache: beside them no memory is taken, but
    for tensors that do not lie on a multiple of their item's size, which are copied. Their memory is given back with
    the last of them. For a card, `cuda` says what it takes.

    Args:
        path: a file, or a folder with `model.safetensors` or an index of several files.
        device_map: one device, or devices by the beginnings of tensors' names; the longest beginning wins, and "" is
            the default of the rest.
        mode: "arena" reads into private memory; "map" shares the page cache, for files that nobody ever changes; "auto"
            maps files of the store.
        verify: whether data is compared with the checksum that `save_dict` wrote.
        threads: how many read at a time.

    Raises:
        WeightsError: a file is broken or missing, changes meanwhile, or fails its checksum.
    """
    path = Path(path)
    paths = [header.path for header in read_headers(path)] if path.is_dir() else [path]
    device = torch.device(device_map) if isinstance(device_map, str | torch.device) else None
    if device is not None and device.type == "cuda" and not verify:
        on_card = open_on_card(paths, device)
        with stream(on_card, threads=threads).start() as arriving:
            arriving.wait()
        return _with_aliases(on_card, lambda file: file.tensors())
    files = [open_weights(each, mode) for each in paths]
    with stream(files, threads=threads).start() as arriving_here:
        arriving_here.wait()
    for each in files:
        if verify:
            _verify(each)
    return _with_aliases(files, lambda file: _placed(file, device_map))


F = TypeVar("F", bound=OpenFile)


def _with_aliases(files: Sequence[F], tensors_of: Callable[[F], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in files:
        tensors = tensors_of(file)
        for alias, name in _stored_aliases(file.path, file.header.metadata).items():
            if name not in tensors or alias in tensors:
                raise WeightsError(file.path, f"its metadata names tensor `{alias}` as another name of `{name}`")
            tensors[alias] = tensors[name]
        found.update(tensors)
    return found


def _placed(file: OpenFile, device_map: DeviceMap) -> dict[str, torch.Tensor]:
    return {name: tensor.to(_device_of(file.path, name, device_map)) for name, tensor in file.tensors().items()}


def _aliases(state_dict: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Names of tensors that are the very same memory as an earlier one, read the same way."""
    first_of: dict[tuple[object, ...], str] = {}
    aliases = {}
    for name, tensor in state_dict.items():
        if tensor.numel() == 0 or tensor.layout is not torch.strided:
            continue
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        first = first_of.setdefault(place, name)
        if first != name:
            aliases[name] = first
    return aliases


def _check_storable(path: Path, name: str, tensor: torch.Tensor) -> None:
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        raise WeightsError(path, f"tensor `{name}` is sparse, quantised by torch or without data, and cannot be stored")
    if tensor.dtype not in _NAMES:
        raise WeightsError(path, f"tensor `{name}` has the dtype {tensor.dtype}, which safetensors does not have")


def _verify(file: HostFile) -> None:
    expected = file.header.metadata.get(CHECKSUM_KEY)
    if expected is None:
        raise WeightsError(file.path, "has no checksum to verify; `save_dict` writes one")
    found = hashlib.sha256(file.region.buffer(file.data_start, file.size)).hexdigest()
    if found != expected:
        raise WeightsError(file.path, f"is damaged: its data has the SHA-256 {found}, its header says {expected}")


def _stored_aliases(path: Path, metadata: Mapping[str, str]) -> dict[str, str]:
    try:
        aliases = json.loads(metadata.get(ALIASES_KEY, "{}"))
    except ValueError as error:
        raise WeightsError(path, f"its metadata `{ALIASES_KEY}` is not JSON") from error
    if not isinstance(aliases, dict) or not all(isinstance(name, str) for name in aliases.values()):
        raise WeightsError(path, f"its metadata `{ALIASES_KEY}` is no object of names")
    return aliases


def _device_of(path: Path, name: str, device_map: DeviceMap) -> torch.device:
    if isinstance(device_map, str | torch.device):
        return torch.device(device_map)
    beginnings = [key for key in device_map if not key or name == key or name.startswith(f"{key}.")]
    if not beginnings:
        raise WeightsError(path, f"tensor `{name}` has no place in the device map")
    return torch.device(device_map[max(beginnings, key=len)])
