"""What is done next with a worker's models, from where they are and who waits. Nothing here changes anything."""

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Literal, NamedTuple

from flashgen_runtime.config import ServerConfig
from flashgen_runtime.worker import eviction
from flashgen_runtime.worker.eviction import Room
from flashgen_runtime.worker.residency import Slot

UnloadReason = Literal["room", "idle", "asked"]


class Plan(NamedTuple):
    """What is done next: first unloaded, then loaded; or a rest, at most until `wake_at`."""

    load: Slot | None = None
    unload: Sequence[Slot] = ()
    reason: UnloadReason = "room"
    wake_at: float = math.inf

    # What waits for room; what will never have any.
    blocked: Sequence[Slot] = ()
    hopeless: Sequence[Slot] = ()

    # Busy models that take no new requests, because their places are needed; `None` leaves it as it is.
    closing: Collection[Slot] | None = None

    @property
    def is_rest(self) -> bool:
        return self.load is None and not self.unload


def room_in(server: ServerConfig, slots: Collection[Slot]) -> Room:
    """What its models leave free."""
    taking = [slot for slot in slots if slot.takes_memory]
    return Room(server.memory_bytes - sum(slot.num_bytes for slot in taking), server.swap.max_loaded - len(taking))


def plan_load(server: ServerConfig, slots: Collection[Slot], *, now: float) -> Plan:
    """Goes through the wanted models in order of need until one can be loaded.

    If the places of busy models are needed, and that for long enough, they are closed. Then the models after the one
    that needs them may only take what is free, and will be free beside it.
    """
    swap = server.swap
    room = room_in(server, slots)
    closing: set[Slot] = set()
    blocked: list[Slot] = []
    hopeless: list[Slot] = []
    wake_at = math.inf
    wanted = [slot for slot in slots if slot.is_wanted and slot.memory is not None]
    for slot in eviction.in_order_of_need(wanted, load_timeout_seconds=swap.load_timeout_seconds, now=now):
        evict = "never" if closing else swap.evict
        victims = eviction.victims_for(slot, slots, room=room, evict=evict, now=now)
        if victims is not None and all(victim.is_idle for victim in victims):
            return Plan(load=slot, unload=victims, blocked=blocked)
        blocked.append(slot)
        if victims is None:
            if swap.evict == "never" and swap.idle_timeout_seconds is None:
                hopeless.append(slot)
            continue
        close_at = eviction.may_close_at(slot, victims, swap, now=now)
        if close_at > now:
            wake_at = min(wake_at, close_at)
        else:
            closing.update(victims)
            room = room.smaller(room.plus(victims).minus(slot))
    return Plan(wake_at=wake_at, blocked=blocked, hopeless=hopeless, closing=closing)


def plan_idle(server: ServerConfig, slots: Iterable[Slot], *, now: float) -> Plan:
    """Unloads what nobody has used for too long, or rests until there is something."""
    idle_until = {slot: eviction.idle_until(slot, server.swap) for slot in slots}
    ends = {slot: end for slot, end in idle_until.items() if end is not None}
    due = [slot for slot, end in ends.items() if end <= now]
    return Plan(unload=due, reason="idle") if due else Plan(wake_at=min(ends.values(), default=math.inf))
