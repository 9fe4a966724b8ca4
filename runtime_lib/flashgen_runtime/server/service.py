"""The service behind an application: its configuration, its workers, and what a request may ask of them."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractContextManager, aclosing
from pathlib import Path

from flashgen_runtime.config import ServerConfig, ServiceConfig, load_config
from flashgen_runtime.errors import ConfigError, RequestError
from flashgen_runtime.messages import Embeddings, EmbedRequest, Reply, RequestFailure, WorkRequest
from flashgen_runtime.operations import Probe
from flashgen_runtime.server.admission import Admission
from flashgen_runtime.server.discovery import DiscoveredPool, HostPort
from flashgen_runtime.server.pool import WorkerPool
from flashgen_runtime.server.readiness import readiness
from flashgen_runtime.server.router import Router, Target


class Service:
    """Configuration, router and admission; also the probes of the API server's process.

    Args:
        config: what `config/service.yaml` says.
        connect: gives the workers of one server; called once for each, and nothing is connected before `start`.
    """

    def __init__(self, config: ServiceConfig, *, connect: Callable[[ServerConfig], WorkerPool]) -> None:
        self.config = config
        self.pools: Mapping[str, WorkerPool] = {server.name: connect(server) for server in config.servers}
        self.router = Router(config, self.pools)
        self.admission = Admission()
        self.created = int(time.time())
        self._is_started = False
        self._is_closed = False

    @classmethod
    def from_config(cls, path: Path | str, *, workers: Mapping[str, str]) -> "Service":
        """A service over ZeroMQ; `workers` has "host:port" for every server. Raises `ConfigError`."""
        config = load_config(Path(path))
        addresses: dict[str, HostPort] = {}
        for server in config.servers:
            if server.name not in workers:
                raise ConfigError(path, f"no address is given for the workers of server `{server.name}`")
            try:
                addresses[server.name] = HostPort.parse(workers[server.name])
            except ValueError as error:
                raise ConfigError(path, f"the address of server `{server.name}` {error}") from error
        return cls(config, connect=lambda server: DiscoveredPool(addresses[server.name]))

    async def start(self) -> None:
        """Begins to connect to all workers."""
        for pool in self.pools.values():
            await pool.start()
        self._is_started = True

    async def close(self) -> None:
        """Ends all connections; what is open ends with an error. Closing twice does nothing more."""
        self.admission.is_draining = True
        if self._is_closed:
            return
        self._is_closed = True
        for pool in self.pools.values():
            await pool.close()

    async def drain(self, seconds: float) -> None:
        """Refuses new requests, and waits for the open ones, at most so long."""
        try:
            async with asyncio.timeout(seconds):
                await self.admission.drain()
        except TimeoutError:
            return

    def admit(self, target: Target, *, places: int = 1) -> AbstractContextManager[None]:
        """Keeps places among the model's open requests; raises `RequestError` when it has none left."""
        limit = self.router.limit(target)
        return self.admission.admit(target.model.id, api=target.api, limit=limit, places=places)

    async def replies(self, target: Target, request: WorkRequest) -> AsyncGenerator[Reply, None]:
        """Sends an admitted request to a worker and gives its replies; raises `RequestError` for a failure."""
        member = self.router.pick(target)
        with member.one_more_request():
            async with aclosing(member.connection.stream(request)) as replies:
                async for reply in replies:
                    if isinstance(reply, RequestFailure):
                        raise RequestError(reply.message, kind=reply.kind, param=reply.param)
                    yield reply

    async def embed(self, target: Target, request: EmbedRequest) -> Embeddings:
        """Admits a request for vectors and waits for them."""
        with self.admit(target):
            async with aclosing(self.replies(target, request)) as replies:
                reply = await anext(replies)
                assert isinstance(reply, Embeddings), "a worker answers an EmbedRequest with vectors"
                return reply

    def livez(self) -> Probe:
        """Alive as long as the event loop answers."""
        return Probe(ok=True, body={"status": "alive"})

    def startupz(self) -> Probe:
        """Started once connections are being made; workers may take longer."""
        return Probe(ok=self._is_started, body={"status": "started" if self._is_started else "starting"})

    def readyz(self) -> Probe:
        """Ready when every server has a ready worker."""
        return readiness(self.pools, is_draining=self.admission.is_draining)
