"""The way onto a card, with a card that does what it is asked for only when somebody waits for it."""

import threading
from pathlib import Path

import pytest
import torch

from flashgen_runtime.errors import WeightsError
from flashgen_runtime.loader import save_dict
from flashgen_runtime.loader.cuda import CardFile, open_on_card
from flashgen_runtime.loader.disk import DiskFile
from flashgen_runtime.loader.memory import STRIPE_BYTES, Region
from flashgen_runtime.loader.stream import stream

CPU = torch.device("cpu")


class LazyCopy:
    """Copies when it is waited for, as late as a card may: a chunk that is overwritten before that shows."""

    def __init__(self, card: "LazyCard", source: torch.Tensor, target: torch.Tensor) -> None:
        self._card, self._source, self._target = card, source, target
        self._lock = threading.Lock()
        self._is_done = False

    def wait(self) -> None:
        with self._lock:
            if not self._is_done:
                assert self._card.pinned is not None or not self._card.agrees, "the ring is there until its last copy"
                self._target.copy_(self._source)
                self._is_done = True

    precede = wait


class LazyCard:
    """The law of a card: copies happen at some time, in no order but that which is asked for."""

    def __init__(self, *, agrees: bool = True) -> None:
        self.agrees = agrees
        self.pinned: Region | None = None
        self.num_pinned = 0

    def allocate(self, size: int) -> torch.Tensor:
        return torch.full((size,), 0xEE, dtype=torch.uint8)

    def pin(self, region: Region) -> bool:
        self.num_pinned += 1
        self.pinned = region if self.agrees else None
        return self.agrees

    def unpin(self, region: Region) -> None:
        assert self.pinned is region
        self.pinned = None

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> LazyCopy:
        return LazyCopy(self, source, target)


@pytest.fixture
def states() -> list[dict[str, torch.Tensor]]:
    """Two files, of several stripes and of a few bytes."""
    return [
        {"a": torch.arange(5 * STRIPE_BYTES // 8), "b": torch.arange(77, dtype=torch.int16)},
        {"c": torch.tensor([True, False, True]), "d": torch.zeros(0)},
    ]


@pytest.fixture
def paths(tmp_path: Path, states: list[dict[str, torch.Tensor]]) -> list[Path]:
    found = [tmp_path / f"{number}.safetensors" for number in range(len(states))]
    for path, state in zip(found, states, strict=True):
        save_dict(state, path)
    return found


def opened(paths: list[Path], card: LazyCard) -> list[CardFile]:
    return open_on_card(paths, CPU, card=card, num_chunks=2)


@pytest.mark.parametrize("agrees", [True, False], ids=["pinned", "not pinned"])
def test_files_are_whole_on_the_card(paths: list[Path], states: list[dict[str, torch.Tensor]], agrees: bool) -> None:
    """More stripes than chunks, several threads, whether the driver pins memory or not; the ring is gone afterwards."""
    card = LazyCard(agrees=agrees)
    files = opened(paths, card)

    with stream(files, threads=3).start() as arriving:
        arriving.wait()

    for file, state in zip(files, states, strict=True):
        assert file.tensors().keys() == state.keys()
        assert all(torch.equal(file.tensor(name), tensor) for name, tensor in state.items())
    assert card.pinned is None
    assert card.num_pinned == 1


def test_a_tensor_can_be_used_while_others_arrive(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for its own copies, and for no others."""
    may_go_on = threading.Event()
    original = DiskFile.read

    def read(file: DiskFile, region: Region, start: int, end: int, *, origin: int = 0) -> None:
        if start >= 2 * STRIPE_BYTES:
            may_go_on.wait(10)
        original(file, region, start, end, origin=origin)

    monkeypatch.setattr(DiskFile, "read", read)
    save_dict({"first": torch.arange(STRIPE_BYTES // 8), "rest": torch.zeros(STRIPE_BYTES)}, paths[0])
    (file,) = opened(paths[:1], LazyCard())

    with stream([file], threads=2).start() as arriving:
        arriving.wait_for(file, file.range_of("first")[1])
        assert torch.equal(file.tensor("first"), torch.arange(STRIPE_BYTES // 8))
        assert not arriving.is_complete
        may_go_on.set()
        arriving.wait()


def test_a_read_error_leaves_no_pinned_memory(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that wait for a chunk end too."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    card = LazyCard()
    monkeypatch.setattr(DiskFile, "read", fail)

    with stream(opened(paths, card), threads=4).start() as arriving:
        with pytest.raises(WeightsError, match="Input/output error"):
            arriving.wait()
        arriving.close()

    assert card.pinned is None
