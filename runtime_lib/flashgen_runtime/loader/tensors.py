"""Reads a checkpoint's tensors one at a time, once they are known to be those that a model expects.

So a model that packs its weights into a layout of its own never holds the checkpoint beside it. No transformers.
"""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from flashgen_runtime.errors import WeightsError
from flashgen_runtime.loader.checkpoint import read_headers
from flashgen_runtime.loader.reader import IDENTITY, check_same, named_errors, torch_dtype
from flashgen_runtime.loader.safetensors_header import SafetensorsHeader, TensorEntry
from flashgen_runtime.quantization.scheme import StoredTensor

# What our own models compute with.
FLOATS = ("F32", "F16", "BF16")


class CheckpointTensors:
    """The tensors of a checkpoint by name. Headers are read and checked when it is made, values when asked for."""

    def __init__(self, path: Path) -> None:
        """Raises `WeightsError` for a file that is missing or broken."""
        self._path = path
        # Before the headers: whatever changes after them is noticed.
        self._found = {file: file.stat() for file in path.glob("*.safetensors")}
        self._headers = {name: header for header in read_headers(path) for name in header.tensors}
        self.expected: Collection[str] = ()

    @property
    def names(self) -> Collection[str]:
        return self._headers.keys()

    @property
    def files(self) -> list[Path]:
        """All files, in the order of their tensors."""
        return list(dict.fromkeys(header.path for header in self._headers.values()))

    def expect(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        quantized: Mapping[str, StoredTensor] | None = None,
        ignored: Iterable[str] = (),
    ) -> None:
        """Raises `WeightsError` unless there are exactly these tensors.

        Args:
            shapes: of all tensors in float32, float16 or bfloat16, by name.
            quantized: those of quantised layers, by name.
            ignored: names that may be there as well.
        """
        stored = {name: StoredTensor(shape, FLOATS) for name, shape in shapes.items()} | dict(quantized or {})
        self.expected = stored.keys()
        if missing := sorted(stored.keys() - self._headers.keys()):
            raise WeightsError(self._path, f"lacks {name_tensors(missing)}")
        for name, (shape, dtypes) in sorted(stored.items()):
            header, entry = self._find(name)
            if entry.shape != shape:
                problem = f"tensor `{name}` has the shape {list(entry.shape)}, its configuration says {list(shape)}"
                raise WeightsError(header.path, problem)
            if entry.dtype not in dtypes:
                problem = f"tensor `{name}` has the dtype {entry.dtype}, expected one of {', '.join(dtypes)}"
                raise WeightsError(header.path, problem)
        if unexpected := sorted(self._headers.keys() - stored.keys() - set(ignored)):
            problem = f"holds {name_tensors(unexpected)}, which the architecture does not have"
            raise WeightsError(self._headers[unexpected[0]].path, problem)

    def dtype(self, name: str) -> torch.dtype:
        """A tensor's dtype; raises `WeightsError` for one that torch does not have."""
        header, entry = self._find(name)
        return torch_dtype(header.path, name, entry)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's sizes."""
        return self._find(name)[1].shape

    def file_of(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._find(name)[0].path

    def read(self, name: str) -> torch.Tensor:
        """One tensor in memory of its own; raises `WeightsError` if the file has changed since its header was read."""
        header, entry = self._find(name)
        tensor = torch.empty(entry.shape, dtype=torch_dtype(header.path, name, entry))
        target: Any = tensor.flatten().view(torch.uint8).numpy()
        try:
            with header.path.open("rb") as file:
                file.seek(header.data_start + entry.start)
                num_bytes = file.readinto(target)
        except OSError as error:
            raise WeightsError(header.path, f"cannot be read: {error.strerror or error}") from error
        if num_bytes != len(target):
            raise WeightsError(header.path, f"tensor `{name}` was truncated while it was read")
        return tensor

    def check_unchanged(self) -> None:
        """Raises `WeightsError` if a file is not any more the one whose header was read: values may be of both."""
        for file in self.files:
            with named_errors(file):
                check_same(file, self._found[file], file.stat(), fields=IDENTITY)

    def _find(self, name: str) -> tuple[SafetensorsHeader, TensorEntry]:
        header = self._headers[name]
        return header, header.tensors[name]


def name_tensors(names: list[str]) -> str:
    """The first three of them, as part of a message."""
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"tensor{'s' if len(names) > 1 else ''} " + ", ".join(f"`{name}`" for name in names[:3]) + rest
