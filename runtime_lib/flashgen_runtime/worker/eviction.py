"""Which model is loaded next, and which ones make room for it. Nothing here changes anything."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from flashgen_runtime.config import SwapConfig
from flashgen_runtime.worker.residency import Slot

# A model that others wait for stays at least so many times as long as loading it took: else a worker would only load.
MIN_RESIDENCY_LOADS = 2.0

# How long a request waits for a busy model's place before that model takes no new requests: this many loads, but at
# least and at most so long, the latter as a share of the time after which it would give up.
PATIENCE_LOADS = 2.0
MIN_PATIENCE_SECONDS = 0.5
MAX_PATIENCE_SHARE = 0.25

# After this share of the time that a request may wait its model is the next, whatever it costs.
OVERDUE_SHARE = 0.5


class Room(NamedTuple):
    """What may be taken: memory, and places for models."""

    num_bytes: int
    places: int

    def holds(self, slot: Slot) -> bool:
        return self.num_bytes >= slot.num_bytes and self.places >= 1

    def plus(self, slots: Iterable[Slot]) -> "Room":
        """When these are gone."""
        slots = tuple(slots)
        return Room(self.num_bytes + sum(slot.num_bytes for slot in slots), self.places + len(slots))

    def minus(self, slot: Slot) -> "Room":
        """When this one is there too."""
        return Room(self.num_bytes - slot.num_bytes, self.places - 1)

    def smaller(self, other: "Room") -> "Room":
        """What both have."""
        return Room(min(self.num_bytes, other.num_bytes), min(self.places, other.places))


def in_order_of_need(wanted: Iterable[Slot], *, load_timeout_seconds: float, now: float) -> list[Slot]:
    """Models by what loading them is worth: waiting per second of loading; before all, those that waited too long."""

    def key(slot: Slot) -> tuple[bool, float]:
        oldest = slot.oldest_wait(now)
        if oldest > OVERDUE_SHARE * load_timeout_seconds:
            return False, -oldest
        return True, -(slot.total_wait(now) + len(slot.waiters) * slot.load_seconds) / slot.load_seconds

    return sorted(wanted, key=key)


def victims_for(slot: Slot, slots: Iterable[Slot], *, room: Room, evict: str, now: float) -> list[Slot] | None:
    """Loaded models whose places `slot` would take, none if there is room; `None` if it cannot have enough.

    Idle ones come before those in use, pinned ones after all others; of equals the policy's choice.
    """
    if room.holds(slot):
        return []
    if evict == "never":
        return None
    chosen: list[Slot] = []
    loaded = [other for other in slots if other.residency == "loaded" and other is not slot]
    for victim in sorted(loaded, key=lambda other: _keep_rank(other, evict=evict, now=now)):
        chosen.append(victim)
        if room.plus(chosen).holds(slot):
            return _without_surplus(slot, chosen, room)
    return None


def patience_seconds(slot: Slot, swap: SwapConfig) -> float:
    """How long a model's requests wait for the natural end of others' before these are closed."""
    patience = max(PATIENCE_LOADS * slot.load_seconds, MIN_PATIENCE_SECONDS)
    return min(patience, MAX_PATIENCE_SHARE * swap.load_timeout_seconds)


def may_close_at(slot: Slot, victims: Sequence[Slot], swap: SwapConfig, *, now: float) -> float:
    """From when on busy models may be closed for this one: it has waited, and they had their time."""
    patient_until = now - slot.oldest_wait(now) + patience_seconds(slot, swap)
    residency_ends = [victim.loaded_at + MIN_RESIDENCY_LOADS * victim.load_seconds for victim in victims]
    return max([patient_until, *residency_ends])


def idle_until(slot: Slot, swap: SwapConfig) -> float | None:
    """When an idle model has been idle too long; `None` for never."""
    if swap.idle_timeout_seconds is None or slot.is_pinned or not slot.is_idle:
        return None
    return slot.last_used + swap.idle_timeout_seconds


_KeepRank = tuple[bool, bool, bool, float, float]


def _keep_rank(slot: Slot, *, evict: str, now: float) -> _KeepRank:
    """The lowest goes first. One that is closing already stays chosen, whatever happens meanwhile."""
    frequency = slot.uses(now) if evict == "lfu" else 0.0
    return slot.is_pinned, not slot.is_idle, not slot.is_closing, frequency, slot.last_used


def _without_surplus(slot: Slot, chosen: list[Slot], room: Room) -> list[Slot]:
    """Small models that were chosen first may not be needed beside a large one that was chosen last."""
    needed = list(chosen)
    for victim in reversed(chosen[:-1]):
        others = [other for other in needed if other is not victim]
        if room.plus(others).holds(slot):
            needed = others
    return needed
