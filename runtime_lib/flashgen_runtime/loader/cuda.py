"""Weights onto a card: read into a ring of pinned chunks, and copied from there while the next ones are read.

    disk ──O_DIRECT, several threads──▶ ring of chunks ──one stream, an event for each──▶ memory of the card

A chunk is read into again when its last copy is done; a tensor waits for the copies of its own bytes, on the card and
not on the processor, so that computing may begin with the first layer. Beside the weights on the card a load takes the
ring, and nothing that grows with the files. What the driver does is behind `Card`; where it refuses to pin memory,
copies are slower and right.
"""

import os
import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from flashgen_runtime.loader.disk import DiskFile
from flashgen_runtime.loader.memory import STRIPE_BYTES, Region, arena
from flashgen_runtime.loader.reader import IDENTITY, OpenFile, check_same, named_errors, opened
from flashgen_runtime.loader.safetensors_header import SafetensorsHeader

# Its functions have no annotations.
_cuda: Any = torch.cuda

# 128 MiB: enough for every thread to read one chunk while others are copied.
RING_CHUNKS = 16


class Copy(Protocol):
    """A copy that was asked for."""

    def wait(self) -> None:
        """Returns when it is done."""

    def precede(self) -> None:
        """What this thread asks the card to compute from now on comes after it."""


class Card(Protocol):
    """What loading needs of a card and its driver."""

    def allocate(self, size: int) -> torch.Tensor:
        """[size], uint8, on the card; begins at a multiple of 256."""

    def pin(self, region: Region) -> bool:
        """Tells the driver that the region's pages stay where they are; whether it agrees."""

    def unpin(self, region: Region) -> None: ...

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> Copy:
        """Asks for a copy from this machine's memory to the card's."""


class CudaCard:
    """A card of CUDA's."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = _cuda.Stream(device)

    def allocate(self, size: int) -> torch.Tensor:
        memory = torch.empty(size, dtype=torch.uint8, device=self._device)
        # Whatever used this memory before, on the stream that it was taken from, comes first.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        return memory

    def pin(self, region: Region) -> bool:
        """Exactly this region: torch's own pinned memory is rounded up to a power of two."""
        with torch.cuda.device(self._device):
            return int(_cuda.cudart().cudaHostRegister(region.address, region.size, 0)) == 0

    def unpin(self, region: Region) -> None:
        _cuda.cudart().cudaHostUnregister(region.address)

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> Copy:
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
            event = _cuda.Event()
            event.record(self._stream)
        return _CudaCopy(event, self._device)


class _CudaCopy:
    def __init__(self, event: torch.cuda.Event, device: torch.device) -> None:
        self._event = event
        self._device = device

    def wait(self) -> None:
        self._event.synchronize()

    def precede(self) -> None:
        torch.cuda.current_stream(self._device).wait_event(self._event)


class CardFile(OpenFile):
    """A file in the memory of a card."""

    _disk: DiskFile

    def __init__(self, header: SafetensorsHeader, found: os.stat_result, card: Card, ring: "Ring") -> None:
        super().__init__(header, found)
        self._card = card
        self._ring = ring
        self._memory = card.allocate(self.size - self.data_start)
        # By stripes of the file.
        self._copies: dict[int, Copy] = {}

    def tensor(self, name: str) -> torch.Tensor:
        start, end = self.range_of(name)
        for number in range(start // STRIPE_BYTES, -(-end // STRIPE_BYTES)):
            if number in self._copies:
                self._copies[number].precede()
        return self._shaped(name, self._memory[start - self.data_start : end - self.data_start])

    def take(self, name: str) -> torch.Tensor:
        """Its memory is given back with that of the whole file."""
        return self.tensor(name)

    def begin(self) -> None:
        with named_errors(self.path):
            self._disk = DiskFile(self.path, self.size)
        self._ring.enter()

    def fetch(self, start: int, end: int) -> None:
        """Returns when the copy has been asked for; `tensor` waits for it."""
        first = max(start, self.data_start)
        with named_errors(self.path):
            self._ring.use(lambda region, place: self._fetch(region, place, start, first, end))

    def check(self) -> None:
        with named_errors(self.path):
            check_same(self.path, self._found, self.path.stat(), fields=IDENTITY)

    def end(self) -> None:
        self._disk.close()
        self._ring.leave()

    def _fetch(self, region: Region, place: int, start: int, first: int, end: int) -> Copy | None:
        self._disk.read(region, start, end, origin=start - place)
        if first >= end:
            return None
        source = region.tensor[place + first - start : place + end - start]
        copy = self._card.copy(source, self._memory[first - self.data_start : end - self.data_start])
        self._copies[start // STRIPE_BYTES] = copy
        return copy


class Ring:
    """Chunks of host memory, pinned while files are open; several threads use one each."""

    def __init__(self, card: Card, num_chunks: int) -> None:
        self._card = card
        self._num_chunks = num_chunks
        self._lock = threading.Lock()
        self._num_users = 0
        self._region: Region | None = None
        self._is_pinned = False
        self._free: queue.SimpleQueue[tuple[int, Copy | None]] = queue.SimpleQueue()

    def enter(self) -> None:
        """Called for each file that is opened; the first one gets the memory. Raises `MemoryError`."""
        with self._lock:
            if self._region is None:
                region = arena(self._num_chunks * STRIPE_BYTES)
                region.populate(0, region.size)
                self._region, self._is_pinned = region, self._card.pin(region)
                for number in range(self._num_chunks):
                    self._free.put((number * STRIPE_BYTES, None))
            self._num_users += 1

    def use(self, fill: Callable[[Region, int], Copy | None]) -> None:
        """Calls `fill` with the region and the place of a chunk in it, which it may overwrite.

        The chunk is used again when the copy that `fill` gives is done.
        """
        assert self._region is not None, "a file is opened before it is read"
        place, copy = self._free.get()
        try:
            if copy is not None:
                copy.wait()
            copy = fill(self._region, place)
        finally:
            self._free.put((place, copy))

    def leave(self) -> None:
        """Called for each file that is closed; with the last one all copies are waited for, and the memory goes."""
        with self._lock:
            self._num_users -= 1
            if self._num_users or self._region is None:
                return
            for _ in range(self._num_chunks):
                _, copy = self._free.get()
                if copy is not None:
                    copy.wait()
            if self._is_pinned:
                self._card.unpin(self._region)
            self._region = None


def open_on_card(
    paths: Sequence[Path], device: torch.device, *, card: Card | None = None, num_chunks: int = RING_CHUNKS
) -> list[CardFile]:
    """Takes memory on a card for files, nothing of them read yet; they share one ring.

    Args:
        paths: the files.
        device: the card.
        card: stands in for CUDA's.
        num_chunks: of the ring, 8 MiB each.

    Raises:
        WeightsError: a file is broken or unreadable.
    """
    card = card or CudaCard(device)
    ring = Ring(card, num_chunks)
    files = []
    for path in paths:
        with opened(path) as (header, _, found):
            files.append(CardFile(header, found, card, ring))
    return files
