"""Who answers: names, busy workers, limits, and workers that come and go."""

import asyncio
import socket
from pathlib import Path

import msgspec
import pytest
from service_under_test import CHAT_MODEL, EMBED_MODEL, ScriptedConnection, config_file, read_config

from flashgen_runtime.config import ServiceConfig
from flashgen_runtime.errors import ConfigError, RequestError
from flashgen_runtime.server import Service, discovery
from flashgen_runtime.server.admission import Admission
from flashgen_runtime.server.discovery import DiscoveredPool, HostPort
from flashgen_runtime.server.pool import WorkerPool
from flashgen_runtime.server.router import Router


def router(config: ServiceConfig, *workers: ScriptedConnection) -> Router:
    return Router(config, {server.name: WorkerPool(workers) for server in config.servers})


def with_second_model(config: ServiceConfig) -> ServiceConfig:
    """The chat server has two models."""
    chat, embed = config.servers
    second = msgspec.structs.replace(chat.models[0], id="coder", aliases=())
    return msgspec.structs.replace(
        config, servers=(msgspec.structs.replace(chat, models=(chat.models[0], second)), embed)
    )


def test_least_busy_ready_worker_is_picked(tmp_path: Path) -> None:
    """Of the workers that are ready the one with the fewest open requests gets the next."""
    loading, busy, idle = ScriptedConnection(state="loading"), ScriptedConnection(), ScriptedConnection()
    names = router(read_config(tmp_path), loading, busy, idle)
    target = names.target("chat_completions", "chat", task="text-generation")

    with names.pick(target).one_more_request():
        second = names.pick(target)

    assert second.connection is idle


def test_absent_model_is_the_only_one(tmp_path: Path) -> None:
    """Where an api has one model, callers need not name it."""
    assert router(read_config(tmp_path)).target("embeddings", None, task="feature-extraction").model.id == EMBED_MODEL


def test_absent_model_among_several_is_refused(tmp_path: Path) -> None:
    """Where there are several, nobody guesses: the answer names them."""
    names = router(with_second_model(read_config(tmp_path)))

    with pytest.raises(RequestError, match=f"`{CHAT_MODEL}` and `coder`") as refused:
        names.target("chat_completions", None, task="text-generation")

    assert (refused.value.kind, refused.value.param) == ("invalid_request", "model")


def test_model_of_another_task_is_refused(tmp_path: Path) -> None:
    """A model that exists but does something else is no unknown model."""
    config = read_config(tmp_path)
    apis = tuple(msgspec.structs.replace(api, servers=("chat", "embed")) for api in config.apis)
    names = router(msgspec.structs.replace(config, apis=apis))

    with pytest.raises(RequestError, match="is for feature-extraction") as refused:
        names.target("chat_completions", EMBED_MODEL, task="text-generation")

    assert refused.value.kind == "invalid_request"


def test_no_ready_worker_is_unavailable(tmp_path: Path) -> None:
    """A known model without a ready worker is refused with the reason."""
    names = router(read_config(tmp_path), ScriptedConnection(state="loading"))

    with pytest.raises(RequestError, match="is not ready: loading") as refused:
        names.pick(names.target("chat_completions", "chat", task="text-generation"))

    assert refused.value.kind == "unavailable"


def test_admission_is_bounded() -> None:
    """Above the limit requests are refused at once; a place that is given back is free."""
    admission = Admission()

    with admission.admit("m", api="a", limit=2, places=2):
        with pytest.raises(RequestError) as refused, admission.admit("m", api="a", limit=2):
            pass
        with admission.admit("other", api="a", limit=2):
            pass
    with admission.admit("m", api="a", limit=2):
        pass

    assert refused.value.kind == "overloaded"


def test_draining_refuses_and_waits_for_what_is_open() -> None:
    """From the moment of draining nothing is admitted, and it ends with the last open request."""

    async def main() -> None:
        admission = Admission()
        with admission.admit("m", api="a", limit=2):
            drained = asyncio.create_task(admission.drain())
            await asyncio.sleep(0)
            with pytest.raises(RequestError, match="shutting down"), admission.admit("m", api="a", limit=2):
                pass
            assert not drained.done()
        await asyncio.wait_for(drained, 1)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("text", "place"),
    [("127.0.0.1:6500", ("127.0.0.1", 6500)), ("[::1]:65535", ("::1", 65535)), ("chat-worker:1", ("chat-worker", 1))],
)
def test_addresses_are_read(text: str, place: tuple[str, int]) -> None:
    """Host and port, with brackets around an IPv6 address, as they are written back."""
    assert HostPort.parse(text) == place
    assert str(HostPort.parse(text)) == text


@pytest.mark.parametrize("text", ["", "host", "host:", ":1", "host:0", "host:65536", "host:x", "host:-1"])
def test_bad_address_is_a_configuration_error(tmp_path: Path, text: str) -> None:
    """An address that is none is named together with its server."""
    workers = {"chat": text, "embed": "127.0.0.1:6501"}

    with pytest.raises(ConfigError, match="server `chat`"):
        Service.from_config(config_file(tmp_path), workers=workers)


def test_server_without_address_is_a_configuration_error(tmp_path: Path) -> None:
    """Every server of the configuration needs one."""
    with pytest.raises(ConfigError, match="server `embed`"):
        Service.from_config(config_file(tmp_path), workers={"chat": "127.0.0.1:6500"})


def test_workers_come_and_go_with_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """New addresses are connected; one that is gone gets no new request, and is closed when it has none open."""
    found: set[HostPort] = set()

    async def resolve(_place: HostPort) -> set[HostPort]:
        return set(found)

    monkeypatch.setattr(discovery, "_resolve", resolve)

    async def main() -> None:
        made: dict[str, ScriptedConnection] = {}
        pool = DiscoveredPool(
            HostPort("workers", 6500), connect=lambda address: made.setdefault(address, ScriptedConnection(address))
        )
        found.update({HostPort("10.0.0.1", 6500), HostPort("10.0.0.2", 6500)})
        await pool.refresh()
        leaving = pool.members[0]
        with leaving.one_more_request():
            found.remove(HostPort("10.0.0.1", 6500))
            await pool.refresh()
            assert [member.connection.address for member in pool.members] == ["10.0.0.2:6500"]
            assert not made["10.0.0.1:6500"].is_closed
        await pool.refresh()
        assert made["10.0.0.1:6500"].is_closed
        await pool.close()
        assert made["10.0.0.2:6500"].is_closed

    asyncio.run(main())


def test_failed_lookup_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that is away for a moment does not take the workers away."""

    async def main() -> None:
        pool = DiscoveredPool(HostPort("127.0.0.1", 6500), connect=ScriptedConnection)
        await pool.start()

        async def resolve(_place: HostPort) -> set[HostPort]:
            raise OSError("name server is away")

        monkeypatch.setattr(discovery, "_resolve", resolve)
        await pool.refresh()
        assert len(pool.members) == 1
        await pool.close()

    asyncio.run(main())


def test_a_name_of_both_families_is_one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with addresses of both families leads to one connection, not two to the same worker."""
    both = [(socket.AF_INET6, 1, 6, "", ("::1", 6500, 0, 0)), (socket.AF_INET, 1, 6, "", ("127.0.0.1", 6500))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)

    places = asyncio.run(discovery._resolve(HostPort("worker", 6500)))

    assert places == {HostPort("127.0.0.1", 6500)}
