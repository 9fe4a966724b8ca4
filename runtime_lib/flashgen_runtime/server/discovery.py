"""Finds the workers of a server by name: one connection for each address, found again every few seconds."""

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Callable
from typing import NamedTuple

from flashgen_runtime.server.caller import cancel
from flashgen_runtime.server.pool import Member, WorkerPool
from flashgen_runtime.transport.base import WorkerConnection
from flashgen_runtime.transport.zmq import ZmqWorkerConnection

log = logging.getLogger(__name__)

# A new replica is used, and one that is gone forgotten, after at most that time.
REFRESH_SECONDS = 3.0


class HostPort(NamedTuple):
    """Where workers are: a name or an address, and a port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "HostPort":
        """Reads "host:port" or "[ipv6]:port"; raises `ValueError`."""
        host, _, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
            raise ValueError(f"must be host:port, found {text!r}")
        return cls(host, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class DiscoveredPool(WorkerPool):
    """Follows a name's addresses. A member that is gone gets no new request, and is closed when it has none open."""

    def __init__(self, place: HostPort, *, connect: Callable[[str], WorkerConnection] = ZmqWorkerConnection) -> None:
        super().__init__()
        self._place = place
        self._connect = connect
        self._leaving: list[Member] = []
        self._refreshing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        if _is_address(self._place.host):
            await self._follow({self._place})
        else:
            self._refreshing = asyncio.create_task(self._refresh_forever())

    async def close(self) -> None:
        if self._refreshing is not None:
            await cancel(self._refreshing)
        for member in (*self.members, *self._leaving):
            await member.connection.close()

    async def refresh(self) -> None:
        """Looks the name up and follows what it says; a lookup that fails changes nothing."""
        try:
            places = await _resolve(self._place)
        except OSError as error:
            log.warning("cannot look up the workers at %s: %s", self._place, error)
            return
        await self._follow(places)
        await self._close_idle_leavers()

    async def _refresh_forever(self) -> None:
        while True:
            await self.refresh()
            await asyncio.sleep(REFRESH_SECONDS)

    async def _follow(self, places: set[HostPort]) -> None:
        addresses = {str(place) for place in places}
        known = {member.connection.address for member in self.members}
        self._leaving += [member for member in self.members if member.connection.address not in addresses]
        self.members = [member for member in self.members if member.connection.address in addresses]
        for address in sorted(addresses - known):
            connection = self._connect(address)
            self.members.append(Member(connection))
            await connection.start()

    async def _close_idle_leavers(self) -> None:
        idle = [member for member in self._leaving if member.open_requests == 0]
        self._leaving = [member for member in self._leaving if member.open_requests > 0]
        for member in idle:
            await member.connection.close()


async def _resolve(place: HostPort) -> set[HostPort]:
    """All addresses of a name; none if it is not known. Raises `OSError` when nobody can say."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        # A headless Service without pods has no name.
        if error.errno == socket.EAI_NONAME:
            return set()
        raise
    # A worker that is reachable both ways would be found twice.
    families = {family for family, *_ in found}
    wanted = socket.AF_INET if socket.AF_INET in families else socket.AF_INET6
    return {HostPort(str(address[0]), place.port) for family, _, _, _, address in found if family == wanted}


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
