"""Compares the machine's cards with what the configuration asks for."""

from collections.abc import Callable
from dataclasses import dataclass

from flashgen_runtime.config import DeviceRequirements
from flashgen_runtime.errors import DeviceError


@dataclass(frozen=True, slots=True)
class Card:
    """One CUDA device."""

    name: str
    memory_bytes: int

    # (9, 0)
    capability: tuple[int, int]


@dataclass(frozen=True, slots=True)
class CudaFacts:
    """What CUDA says about this machine."""

    cards: tuple[Card, ...]

    # Why there are no cards; empty when there are.
    absence: str = ""


def check_device(
    requirements: DeviceRequirements, device: str, *, read_facts: Callable[[], CudaFacts] | None = None
) -> None:
    """Raises `DeviceError` when the cards fall short; says nothing where neither cards nor CUDA are asked for.

    Args:
        requirements: the least that must be there; each counted card must meet it.
        device: "cpu", "cuda" or "cuda:N".
        read_facts: stands in for `read_cuda_facts`.
    """
    is_cuda = device.split(":")[0] == "cuda"
    index = int(device.split(":")[1]) if is_cuda and ":" in device else 0
    num_cards = max(requirements.gpus, index + 1 if is_cuda else 0)
    if num_cards == 0:
        return
    facts = (read_facts or read_cuda_facts)()
    if len(facts.cards) < num_cards:
        found = facts.absence or f"{len(facts.cards)}"
        raise DeviceError(expected=f"{num_cards} CUDA card{'s' if num_cards > 1 else ''}", found=found)
    for card in facts.cards[:num_cards]:
        _check_card(requirements, card)


def read_cuda_facts() -> CudaFacts:
    """Asks torch."""
    # Deferred: asking for a CPU takes no torch.
    import torch

    if torch.version.cuda is None:
        return CudaFacts((), absence=f"none: torch {torch.__version__} is built without CUDA")
    if not torch.cuda.is_available():
        return CudaFacts((), absence="none: CUDA is not available on this machine")
    properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return CudaFacts(tuple(Card(each.name, each.total_memory, (each.major, each.minor)) for each in properties))


def _check_card(requirements: DeviceRequirements, card: Card) -> None:
    memory, capability = requirements.gpu_memory_bytes, requirements.gpu_cuda_capability
    if memory is not None and card.memory_bytes < memory:
        expected = f"a card with at least {memory / 2**30:.1f} GiB"
        raise DeviceError(expected=expected, found=f"`{card.name}` with {card.memory_bytes / 2**30:.1f} GiB")
    if capability is not None and card.capability < _version(capability):
        found = f"`{card.name}` with {card.capability[0]}.{card.capability[1]}"
        raise DeviceError(expected=f"a card with CUDA capability {capability} or above", found=found)


def _version(capability: str) -> tuple[int, int]:
    major, _, minor = capability.partition(".")
    return int(major), int(minor or 0)
