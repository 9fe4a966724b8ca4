"""`/v1/models` through the application."""

from pathlib import Path

from fastapi.testclient import TestClient
from service_under_test import CHAT_MODEL, EMBED_MODEL, ScriptedConnection, application, scripted_service

from flashgen_runtime.messages import ModelStatus


def test_models_are_listed(client: TestClient) -> None:
    """The list has every model of the service in OpenAI's shape."""
    answer = client.get("/v1/models").json()

    assert answer["object"] == "list"
    assert [model["id"] for model in answer["data"]] == [CHAT_MODEL, EMBED_MODEL]
    for model in answer["data"]:
        assert model["object"] == "model"
        assert isinstance(model["created"], int)
        assert isinstance(model["owned_by"], str)


def test_a_model_is_found_by_id_and_alias(client: TestClient) -> None:
    """Ids may hold slashes, the path may end in one, and an alias gives the model itself."""
    for name in (CHAT_MODEL, f"{CHAT_MODEL}/", "default"):
        assert client.get(f"/v1/models/{name}").json()["id"] == CHAT_MODEL


def test_unknown_model_is_not_found(client: TestClient) -> None:
    """A model that is not configured is 404 with OpenAI's code."""
    answer = client.get("/v1/models/acme/other")

    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"


def test_a_model_says_how_it_runs(tmp_path: Path) -> None:
    """Precision, path, kernels and who guesses stand beside OpenAI's fields, null where there is nothing to say."""
    connection = ScriptedConnection()
    runs = {"quantization": "int8", "path": "plain", "path_reason": "no interface", "kv_cache_dtype": "bfloat16"}
    runs["speculative"] = "tree"
    connection.say("ready", models=(ModelStatus(id=CHAT_MODEL, dtype="bfloat16", **runs),))

    with TestClient(application(scripted_service(tmp_path, connection))) as client:
        chat, embed = client.get("/v1/models").json()["data"]

    assert {name: chat[name] for name in runs} == runs
    assert (chat["dtype"], chat["kernels"]) == ("bfloat16", None)
    assert all(embed[name] is None for name in runs)


def test_models_that_load_are_listed_as_not_ready(tmp_path: Path) -> None:
    """Clients may list models before a worker is there."""
    app = application(scripted_service(tmp_path, ScriptedConnection(state=None)))
    with TestClient(app) as client:
        answer = client.get("/v1/models").json()

    assert [(model["id"], model["ready"], model["max_model_len"]) for model in answer["data"]] == [
        (CHAT_MODEL, False, None),
        (EMBED_MODEL, False, None),
    ]


def test_a_model_says_where_it_is(tmp_path: Path) -> None:
    """One that is not in memory is listed as ready: a request for it loads it. A failure says why."""
    connection = ScriptedConnection()
    status = ModelStatus(id=CHAT_MODEL, residency="failed", memory_bytes=100, problem="is truncated")
    connection.say("ready", models=(status,))

    with TestClient(application(scripted_service(tmp_path, connection))) as client:
        chat, embed = client.get("/v1/models").json()["data"]

    assert (chat["ready"], chat["residency"], chat["memory_bytes"]) == (True, "failed", 100)
    assert chat["problem"] == "is truncated"
    assert (embed["residency"], embed["problem"]) == (None, None)
