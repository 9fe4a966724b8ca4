"""The check of the declared cards, on machines that are made up."""

import pytest

from flashgen_runtime.config import DeviceRequirements
from flashgen_runtime.errors import DeviceError
from flashgen_runtime.loader.device import Card, CudaFacts, check_device

GIB = 1 << 30
SMALL = Card("Small", 16 * GIB, (7, 5))
LARGE = Card("Large", 80 * GIB, (9, 0))
ABSENT = CudaFacts((), absence="none: CUDA is not available on this machine")


def requirements(*, gpus: int = 0, memory: int | None = None, capability: str | None = None) -> DeviceRequirements:
    return DeviceRequirements(gpus=gpus, gpu_memory_bytes=memory, gpu_cuda_capability=capability)


def test_cpu_asks_for_nothing() -> None:
    """A model on the CPU that declares no card does not ask CUDA."""

    def read_facts() -> CudaFacts:
        raise AssertionError("CUDA was asked")

    check_device(requirements(), "cpu", read_facts=read_facts)


@pytest.mark.parametrize(
    ("needed", "device", "facts"),
    [
        (requirements(), "cuda", CudaFacts((SMALL,))),
        (requirements(gpus=2, memory=80 * GIB, capability="9.0"), "cuda", CudaFacts((LARGE, LARGE))),
        (requirements(gpus=1, memory=16 * GIB, capability="7.5"), "cuda:0", CudaFacts((SMALL, SMALL))),
        (requirements(gpus=1, capability="8"), "cuda", CudaFacts((LARGE, SMALL))),
    ],
)
def test_sufficient_cards_pass(needed: DeviceRequirements, device: str, facts: CudaFacts) -> None:
    """Cards at or above every minimum are accepted; only as many as are declared are looked at."""
    check_device(needed, device, read_facts=lambda: facts)


@pytest.mark.parametrize(
    ("needed", "device", "facts", "message"),
    [
        (requirements(), "cuda", ABSENT, "expected 1 CUDA card, found none: CUDA is not available on this machine"),
        (requirements(gpus=1), "cpu", ABSENT, "expected 1 CUDA card, found none: CUDA is not available"),
        (requirements(gpus=2), "cuda", CudaFacts((LARGE,)), "expected 2 CUDA cards, found 1"),
        (requirements(), "cuda:1", CudaFacts((LARGE,)), "expected 2 CUDA cards, found 1"),
        (
            requirements(gpus=1, memory=24 * GIB),
            "cuda",
            CudaFacts((SMALL,)),
            "at least 24.0 GiB, found `Small` with 16.0",
        ),
        (
            requirements(gpus=1, capability="8.0"),
            "cuda",
            CudaFacts((SMALL,)),
            "capability 8.0 or above, found `Small` with 7.5",
        ),
        (requirements(gpus=2, capability="9.0"), "cuda", CudaFacts((LARGE, SMALL)), "found `Small` with 7.5"),
    ],
)
def test_shortfall_is_named(needed: DeviceRequirements, device: str, facts: CudaFacts, message: str) -> None:
    """What was expected and what was found stand in the error."""
    with pytest.raises(DeviceError) as caught:
        check_device(needed, device, read_facts=lambda: facts)

    assert message in str(caught.value)
