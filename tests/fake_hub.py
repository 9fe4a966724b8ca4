"""A hub on loopback: repositories in memory, served as huggingface_hub asks for them.

It answers a listing of a repository with sizes and digests, what a file of a commit is, and by a redirect its content,
whole or from a place on. Faults are attributes that tests set.
"""

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# Larger files are kept elsewhere and known by their SHA-256, as on the hub.
LARGE_BYTES = 4096
CHUNK_BYTES = 1024


@dataclass
class Repository:
    """One repository: its commits by their names, and what branches and tags point at."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    references: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], reference: str = "main") -> str:
        """Adds a commit that `reference` points at from now on; gives its name."""
        name = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[name] = files
        self.references[reference] = name
        return name

    def find(self, revision: str) -> str | None:
        """The commit that a revision means."""
        return revision if revision in self.commits else self.references.get(revision)


class FakeHub:
    """Serves `repositories`; `url` is what `HF_ENDPOINT` must be."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}

        # (method, path, Range header) of every request.
        self.requests: list[tuple[str, str, str | None]] = []

        # Path's end → a connection to it breaks after so many bytes, the given number of times.
        self.breaks: dict[str, tuple[int, int]] = {}

        # Path's end → bytes that are sent in place of the right ones.
        self.lies: dict[str, bytes] = {}
        self.gated: set[str] = set()
        self.is_down = False
        self.knows_ranges = True

        # Set to let those go on that were stopped after so many bytes of a file.
        self.gate: threading.Event | None = None
        self.gate_bytes = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("_Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def repository(self, name: str) -> Repository:
        """The repository of this name, made if there is none."""
        return self.repositories.setdefault(name, Repository())

    def downloads(self, name: str) -> list[str | None]:
        """The ranges in which the content of a file was sent."""
        return [found for method, path, found in self.requests if method == "GET" and path.endswith(f"content/{name}")]

    def run(self) -> None:
        self._server.serve_forever(poll_interval=0.01)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub that serves until the block ends."""
    hub = FakeHub()
    thread = threading.Thread(target=hub.run)
    thread.start()
    try:
        yield hub
    finally:
        hub.close()
        thread.join()


def hub_environment(hub: FakeHub, cache: Any) -> dict[str, str]:
    """For processes that use this hub and nothing of the user's."""
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "FLASHGEN_STORE": f"{cache}/store"}
    return {**{name: value for name, value in os.environ.items() if not name.startswith("HF_")}, **own}


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.requests.append(("GET", path, self.headers.get("Range")))
        if self.hub.is_down:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "down")
        elif path.startswith("/api/models/") and "/tree/" in path:
            self._send_tree(path.removeprefix("/api/models/"))
        elif path.startswith("/api/models/"):
            self._send_listing(path.removeprefix("/api/models/"))
        elif path.startswith("/content/"):
            self._send_content(path)
        else:
            self._send_file(path)

    def _send_listing(self, path: str) -> None:
        name, _, revision = path.partition("/revision/")
        if name in self.hub.gated:
            self._refuse(HTTPStatus.FORBIDDEN, "GatedRepo")
            return
        repository = self.hub.repositories.get(name)
        commit = repository and repository.find(revision or "main")
        if repository is None or commit is None:
            self._refuse(HTTPStatus.NOT_FOUND, "RevisionNotFound" if repository else "RepoNotFound")
            return
        siblings = [_listed(name, content) for name, content in repository.commits[commit].items()]
        body = {"id": name, "modelId": name, "sha": commit, "siblings": siblings, "tags": [], "downloads": 0}
        self._send(HTTPStatus.OK, json.dumps(body).encode())

    def _send_tree(self, path: str) -> None:
        name, _, revision = path.partition("/tree/")
        repository = self.hub.repositories[name]
        files = repository.commits[repository.find(revision) or revision]
        self._send(HTTPStatus.OK, json.dumps([_entry(name, content) for name, content in files.items()]).encode())

    def do_HEAD(self) -> None:
        """What a file of a commit is."""
        self.hub.requests.append(("HEAD", self.path, None))
        name, _, rest = self.path[1:].partition("/resolve/")
        revision, _, file = rest.partition("/")
        commit = self.hub.repositories[name].find(revision) if not self.hub.is_down else None
        content = commit and self._content(name, commit, file)
        if commit is None or not content:
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE)
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{_digest(content)}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()

    def _send_file(self, path: str) -> None:
        """`/<owner>/<name>/resolve/<commit>/<file>`: the content, or where it is."""
        name, _, rest = path[1:].partition("/resolve/")
        commit, _, file = rest.partition("/")
        content = self._content(name, commit, file)
        if content is None:
            self._refuse(HTTPStatus.NOT_FOUND, "EntryNotFound")
            return
        self.send_response(HTTPStatus.TEMPORARY_REDIRECT if len(content) > LARGE_BYTES else HTTPStatus.FOUND)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Location", f"{self.hub.url}/content/{name}/{commit}/content/{file}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _content(self, name: str, commit: str, file: str) -> bytes | None:
        repository = self.hub.repositories.get(name)
        return None if repository is None else repository.commits.get(commit, {}).get(file)

    def _send_content(self, path: str) -> None:
        owner, name, commit, _, file = path.removeprefix("/content/").split("/", 4)
        content = self.hub.lies.get(file) or self._content(f"{owner}/{name}", commit, file)
        assert content is not None, path
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.hub.knows_ranges else 0
        self.send_response(HTTPStatus.PARTIAL_CONTENT if start else HTTPStatus.OK)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self._send_chunks(file, content, start)

    def _send_chunks(self, file: str, content: bytes, start: int) -> None:
        limit, times = self.hub.breaks.get(file, (len(content), 0))
        for place in range(start, len(content), CHUNK_BYTES):
            if times and place - start >= limit:
                self.hub.breaks[file] = (limit, times - 1)
                self.close_connection = True
                return
            self.wfile.write(content[place : place + CHUNK_BYTES])
            if self.hub.gate is not None and place > self.hub.gate_bytes:
                self.hub.gate.wait()

    def _refuse(self, status: HTTPStatus, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def _send(self, status: HTTPStatus, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Tests look at `requests`."""

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True


def _listed(name: str, content: bytes) -> dict[str, Any]:
    """A file in a repository's listing."""
    found = {"rfilename": name, "size": len(content), "blobId": _blob_name(content)}
    if len(content) <= LARGE_BYTES:
        return found
    return {**found, "lfs": {"sha256": _digest(content), "size": len(content), "pointerSize": 134}}


def _entry(name: str, content: bytes) -> dict[str, Any]:
    """A file in the listing of a folder."""
    found = {"type": "file", "path": name, "size": len(content), "oid": _blob_name(content)}
    if len(content) <= LARGE_BYTES:
        return found
    return {**found, "lfs": {"oid": _digest(content), "size": len(content), "pointerSize": 134}}


def _digest(content: bytes) -> str:
    return _blob_name(content) if len(content) <= LARGE_BYTES else hashlib.sha256(content).hexdigest()


def _blob_name(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
