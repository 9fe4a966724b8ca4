"""Weight files in the host's memory: which stay, and how they come."""

import os
import threading

import pytest
from prometheus_client import REGISTRY

from flashgen_runtime.loader.memory import cached_share
from flashgen_runtime.worker import host_cache
from flashgen_runtime.worker.host_cache import HostCache, ReadAhead, drop_from_memory

FILE_BYTES = 1 << 20


@pytest.fixture
def files(tmp_path):
    """Files of a mebibyte that are on the disk, so that their pages may be dropped."""

    def make(*names):
        paths = []
        for name in names:
            path = tmp_path / name
            with path.open("wb") as file:
                file.write(os.urandom(FILE_BYTES))
                os.fsync(file.fileno())
            paths.append(path)
        return tuple(paths)

    (probe,) = make("probe")
    drop_from_memory(probe)
    if share(probe) > 0:
        pytest.skip("files of this file system live in memory")
    return make


def share(path):
    with path.open("rb") as file:
        return cached_share(file.fileno())


def counted(name, model_id):
    return REGISTRY.get_sample_value(f"flashgen_host_cache_{name}_total", {"model": model_id}) or 0


def test_files_of_unloaded_models_stay_within_the_limit(files):
    """The least recently used leave memory first; those of a loaded model are not counted."""
    cache = HostCache(2 * FILE_BYTES, keeps_unloaded=True)
    paths = {name: files(name) for name in "abc"}
    for name in "abc":
        cache.take(name, paths[name])
    while_loaded = cache.num_bytes

    for name in "abc":
        cache.give_back(name)

    assert while_loaded == 0
    assert cache.num_bytes == 2 * FILE_BYTES
    assert [name in cache for name in "abc"] == [False, True, True]
    assert [share(paths[name][0]) for name in "abc"] == [0, 1, 1]


def test_loading_again_finds_the_files(files):
    """A hit, and a miss for a model that was never there."""
    cache = HostCache(None, keeps_unloaded=True)
    (path,) = files("hit")

    cache.take("hit", (path,))
    cache.give_back("hit")
    cache.take("hit", (path,))

    assert (counted("hits", "hit"), counted("misses", "hit")) == (1, 1)


def test_nothing_stays_where_nothing_is_to_stay(files):
    """`keep_in_ram: false` drops at once."""
    cache = HostCache(None, keeps_unloaded=False)
    (path,) = files("a")
    cache.take("a", (path,))

    cache.give_back("a")

    assert (cache.num_bytes, share(path)) == (0, 0)


def test_files_that_others_use_stay(files):
    """Two models may share a checkpoint."""
    cache = HostCache(0, keeps_unloaded=True)
    (path,) = files("shared")
    cache.take("a", (path,))
    cache.take("b", (path,))

    cache.give_back("a")
    share_while_used = share(path)
    cache.give_back("b")

    assert (share_while_used, share(path)) == (1, 0)


def test_files_that_a_load_replaced_leave_memory(files):
    """A first load reads the checkpoint and makes a prepared file, which later loads read."""
    cache = HostCache(10 * FILE_BYTES, keeps_unloaded=True)
    checkpoint, prepared = files("checkpoint", "prepared")
    cache.take("a", (checkpoint,))

    cache.replace("a", (prepared,))
    cache.give_back("a")

    assert (share(checkpoint), share(prepared), cache.num_bytes) == (0, 1, FILE_BYTES)


def test_reading_ahead_makes_room_first(files):
    """Of a model in use nothing is read ahead, and of one that is too large neither."""
    cache = HostCache(FILE_BYTES, keeps_unloaded=True)
    paths = files("a", "b", "c")
    cache.take("c", paths[2:])

    assert cache.admit("a", paths[:1])
    assert cache.admit("b", paths[1:2])
    assert not cache.admit("c", paths[2:])
    assert not cache.admit("both", paths[:2])
    assert [name in cache for name in ("a", "b", "both")] == [False, True, False]


def test_reading_ahead_can_be_interrupted(files, monkeypatch):
    """It goes on where it was, and then all of it is in memory."""
    monkeypatch.setattr(host_cache, "CHUNK_BYTES", FILE_BYTES // 4)
    paths = files("a", "b")
    for path in paths:
        drop_from_memory(path)
    reading = ReadAhead(paths)
    chunks = iter([True, True, False])

    was_complete = reading.read(lambda: next(chunks))
    share_meanwhile = share(paths[1])
    is_complete = reading.read(lambda: True)

    assert (was_complete, share_meanwhile, is_complete) == (False, 0, True)
    assert [share(path) for path in paths] == [1, 1]


def test_files_that_are_gone_are_no_error(tmp_path):
    """Whoever needs them says so."""
    gone = tmp_path / "gone"
    cache = HostCache(1, keeps_unloaded=True)
    cache.take("a", (gone,))
    cache.give_back("a")

    assert ReadAhead((gone,)).read(lambda: True)
    assert cache.num_bytes == 0
    drop_from_memory(gone)


def test_the_cache_is_used_by_several_threads(files):
    """Loading, unloading and reading ahead happen beside each other."""
    cache = HostCache(2 * FILE_BYTES, keeps_unloaded=True)
    paths = {name: files(name) for name in "abcd"}

    def work(name):
        for _ in range(50):
            cache.take(name, paths[name])
            cache.give_back(name)
            cache.admit(name, paths[name])

    threads = [threading.Thread(target=work, args=(name,)) for name in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert cache.num_bytes <= 2 * FILE_BYTES
