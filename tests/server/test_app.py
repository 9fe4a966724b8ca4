"""What the application adds around every route: ids, probes, documentation, paths, metrics."""

import logging
import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from prometheus_client import REGISTRY
from service_under_test import ScriptedConnection, application, scripted_service

from flashgen_runtime.logs import KeyValueFormatter

CHAT = "/v1/chat/completions"


def test_request_id_is_echoed_or_made(client: TestClient) -> None:
    """A caller's id comes back; one that is missing, too long or hostile is replaced."""
    echoed = client.get("/v1/models", headers={"x-request-id": "abc-123"}).headers["x-request-id"]
    made = [
        client.get("/v1/models", headers=headers).headers["x-request-id"]
        for headers in ({}, {"x-request-id": "x" * 200}, {"x-request-id": 'a" level=error'})
    ]

    assert echoed == "abc-123"
    assert all(re.fullmatch("[0-9a-f]{32}", request_id) for request_id in made)


def test_bug_is_500_without_a_traceback(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    """The body says nothing about the implementation; the log has the traceback and the caller's id."""
    answer = client.get("/bug", headers={"x-request-id": "bug-1"})

    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] == "bug-1"
    bug = next(record for record in caplog.records if record.exc_info)
    line = KeyValueFormatter("api").format(bug)
    assert "request_id=bug-1" in line
    assert "a secret of the implementation" in line


def test_refusal_is_logged_with_its_id(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    """Who reports an error by its id can be helped."""
    with caplog.at_level(logging.INFO):
        client.post(CHAT, json={"messages": []}, headers={"x-request-id": "refused-1"})

    refusal = next(record for record in caplog.records if record.name == "flashgen_runtime.server")
    line = KeyValueFormatter("api").format(refusal)
    assert "request_id=refused-1" in line
    assert "param=messages" in line


def test_connection_serves_on_after_an_error(client: TestClient) -> None:
    """An error does not end the connection or the next request."""
    assert client.post(CHAT, json={"messages": []}).status_code == 400
    assert client.post(CHAT, json={"messages": "hi"}).status_code == 200


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/generate/"])
def test_paths_work_with_and_without_a_slash(client: TestClient, path: str) -> None:
    """Neither form is redirected."""
    body = {"messages": "hi", "prompt": "hi", "max_tokens": 1}

    for form in (path.rstrip("/"), path.rstrip("/") + "/"):
        assert client.post(form, json=body, follow_redirects=False).status_code == 200


def test_head_is_get_without_the_body(client: TestClient) -> None:
    """HEAD gives the headers of GET."""
    head, get = client.head("/v1/models"), client.get("/v1/models")

    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == get.headers["content-length"]


def test_documentation_needs_nothing_from_elsewhere(client: TestClient) -> None:
    """The page loads no script, style or image from another place, and its title is quoted."""
    page = client.get("/docs").text

    assert "<title>tested &lt;service&gt;</title>" in page
    assert not re.search(r"""(src|href)=["'](https?:)?//""", page)
    assert "import(" not in page
    assert client.get("/redoc").status_code == 404


def test_description_declares_the_errors_that_happen(client: TestClient) -> None:
    """The OpenAPI page names 400 and its shape, and not the framework's 422."""
    description = client.get("/openapi.json").json()

    responses = description["paths"][CHAT]["post"]["responses"]
    assert set(responses) == {"200", "400", "404", "413", "415", "500", "503"}
    assert set(responses["200"]["content"]) == {"application/json", "text/event-stream"}
    assert "HTTPValidationError" not in description["components"]["schemas"]
    assert "/readyz" not in description["paths"]


def test_requests_are_measured_by_api(client: TestClient) -> None:
    """Each answer is counted with its api and status, and nothing stays in flight."""
    labels = {"api": "chat_completions", "code": "200"}
    before = REGISTRY.get_sample_value("flashgen_requests_total", labels) or 0

    client.post(f"{CHAT}/", json={"messages": "hi"})

    assert REGISTRY.get_sample_value("flashgen_requests_total", labels) == before + 1
    assert REGISTRY.get_sample_value("flashgen_requests_in_flight", {"api": "chat_completions"}) == 0


def test_ready_when_every_server_has_a_ready_worker(client: TestClient) -> None:
    """The probe names each server's state."""
    answer = client.get("/readyz")

    assert (answer.status_code, answer.json()["status"]) == (200, "ready")
    assert answer.json()["servers"]["chat"] == {"state": "ready", "ready_workers": 1}
    for path in ("/livez", "/healthz"):
        assert client.get(path).status_code == 200


def test_not_ready_says_why(tmp_path: Path) -> None:
    """Until a worker is ready: 503 with Retry-After, the state and, where a worker failed, its reason."""
    worker = ScriptedConnection(state=None)
    with TestClient(application(scripted_service(tmp_path, worker))) as client:
        unreachable = client.get("/readyz")
        worker.say("loading", "reading weights")
        loading = client.get("/readyz").json()
        worker.say("failed", "model.safetensors is truncated")
        worker.say(None)
        exited = client.get("/readyz").json()
        refused = client.post(CHAT, json={"messages": "hi"})
        worker.say("ready")
        ready = client.get("/readyz")

    assert (unreachable.status_code, unreachable.json()["servers"]["chat"]["state"]) == (503, "unreachable")
    assert int(unreachable.headers["retry-after"]) > 0
    assert loading["servers"]["chat"] == {"state": "loading", "ready_workers": 0, "detail": "reading weights"}
    assert exited["servers"]["chat"]["state"] == "failed"
    assert exited["servers"]["chat"]["detail"] == "model.safetensors is truncated"
    assert (refused.status_code, "truncated" in refused.text, "retry-after" in refused.headers) == (503, True, True)
    assert ready.status_code == 200
