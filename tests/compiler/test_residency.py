"""Several models on one server: their tasks and names, which of them are in memory, and what fits there."""

from pathlib import Path

import pytest

from flashgen.errors import SpecError
from flashgen.resolved import ResolvedProject, ResolvedServer, SwapSettings, WeightSettings
from flashgen.user_text import UserText, plain_text
from tests.compiler.projects import CHAT_SPEC, resolved
from tests.golden_trees import SAMPLES

CODER = SAMPLES / "models" / "stdlib-coder"
MODELS = """\
models:
  chat: {type: text_generation, uri: owner/chat, prefetch: [code, embed]}
  coder: {type: text_generation, uri: owner/coder, name: code}
  embed: {type: embeddings, uri: owner/embed}
"""
SPEC = f"""\
{MODELS}
apis:
  - path: /v1/chat/completions
  - path: /v1/embeddings
  - path: /v1/models
servers:
  - name: llm
    models: [chat, coder, embed]
"""


def only_server(folder: Path, spec: str) -> ResolvedServer:
    (server,) = resolved(folder, spec).servers
    return server


def ids(values: tuple[UserText, ...]) -> list[str]:
    return [plain_text(value) for value in values]


def test_every_api_reaches_the_server_that_has_a_model_for_it(tmp_path: Path) -> None:
    """Chat and embeddings from one worker; a list of models names each once."""
    project = resolved(tmp_path, SPEC)

    (server,) = project.servers
    assert [model.task for model in server.models] == ["text-generation", "text-generation", "feature-extraction"]
    assert all(api.servers == (server,) for api in project.apis)
    assert ids(project.apis[2].model_ids) == ["chat", "code", "embed"]


def test_tasks_decide_among_servers_with_several_models(tmp_path: Path) -> None:
    """An api goes where a model has its task."""
    spec = SPEC.replace("[chat, coder, embed]", "[chat, coder]\n  - {name: embedder, models: [embed, owner/e5]}")
    spec = spec.replace("prefetch: [code, embed]", "prefetch: [code]").replace(
        "owner/e5", "{uri: owner/e5, type: embeddings}"
    )

    apis = resolved(tmp_path, spec).apis

    assert [[server.name for server in api.servers] for api in apis] == [["llm"], ["embedder"], ["llm", "embedder"]]


@pytest.mark.parametrize(
    ("paths", "task"),
    [
        (["/v1/completions"], "text-generation"),
        (["/v1/completions", "/v1/embeddings"], "feature-extraction"),
        (["/v1/embeddings", "/v1/completions"], "feature-extraction"),
    ],
)
def test_a_model_without_type_has_the_task_that_the_others_lack(tmp_path: Path, paths: list[str], task: str) -> None:
    """Whatever the order of the apis is."""
    apis = ", ".join(f"{{path: {path}}}" for path in paths)
    spec = f"apis: [{apis}]\nservers:\n  - models: [{{uri: owner/a, type: text_generation}}, owner/b]\n"

    server = only_server(tmp_path, spec)

    assert [model.task for model in server.models] == ["text-generation", task]


def test_the_servers_name_means_none_of_its_models(tmp_path: Path) -> None:
    """With several it would be a guess; without a name it is that of the first model's uri."""
    server = only_server(tmp_path, CHAT_SPEC.replace("model: {", "models: [{").replace("model}", "model}, owner/b]"))

    assert server.name == "some-model"
    assert [ids(model.aliases) for model in server.models] == [[], []]


def test_names_of_models_become_their_ids(tmp_path: Path) -> None:
    """`preload` and `prefetch` take keys and names; callers and the runtime know ids."""
    server = only_server(tmp_path, SPEC + "    swap: {max_loaded: 2, preload: [coder, embed]}\n")

    assert ids(server.models[0].prefetch) == ["code", "embed"]
    assert ids(server.swap.preload) == ["code", "embed"]


def test_all_models_are_loaded_at_start_unless_the_spec_says_otherwise(tmp_path: Path) -> None:
    """As many as may be loaded at once, in their order."""
    everything = only_server(tmp_path, SPEC).swap
    two = only_server(tmp_path, SPEC + "    swap: {max_loaded: 2}\n").swap
    none = only_server(tmp_path, SPEC + "    swap: {preload: []}\n").swap

    assert everything._replace(load_timeout_reason="") == SwapSettings(
        max_loaded=3,
        evict="lru",
        idle_timeout_seconds=None,
        preload=(UserText("chat"), UserText("code"), UserText("embed")),
        load_timeout_seconds=60,
        load_timeout_reason="",
    )
    assert ids(two.preload) == ["chat", "code"]
    assert (none.max_loaded, none.preload) == (3, ())


def test_weights_get_their_defaults_and_what_the_spec_says(tmp_path: Path) -> None:
    """Files of the store are mapped, their sizes checked; the volume lies where the path says."""
    plain = only_server(tmp_path, CHAT_SPEC)
    server = only_server(
        tmp_path,
        CHAT_SPEC
        + "    weights: {path: /weights, loader: arena, threads: 9, pool: 1GiB, keep_in_ram: true, verify: sha256}\n",
    )

    assert plain.weights == WeightSettings(
        path=None,
        loader="auto",
        threads=4,
        threads_reason="as many as keep a disk busy",
        host_cache_bytes=None,
        keep_in_ram=True,
        verify="size",
    )
    assert (plain.volume_folder, plain.store_folder) == ("/cache", "/cache/store")
    assert server.weights == WeightSettings(
        path="/weights",
        loader="arena",
        threads=9,
        threads_reason="as `weights.threads` says",
        host_cache_bytes=2**30,
        keep_in_ram=True,
        verify="sha256",
    )
    assert (server.volume_folder, server.store_folder) == ("/weights", "/weights")


def coders(folder: Path, *, names: str = "abc", memory: str = "2GiB", rest: str = "") -> ResolvedProject:
    """A project with the sample's model under several names."""
    models = "".join(f"  {name}: {{type: text_generation, uri: {CODER}, dtype: float32}}\n" for name in names)
    listed = ", ".join(names)
    return resolved(
        folder,
        f"models:\n{models}apis: [{{path: /v1/completions}}]\nservers:\n"
        f"  - {{name: llm, models: [{listed}], resources: {{memory: {memory}}}{rest}}}\n",
    )


def test_models_of_one_folder_share_its_mount(tmp_path: Path) -> None:
    """Its weights are copied once, however many models are made of them."""
    (server,) = coders(tmp_path).servers

    assert [model.folder for model in server.models] == ["stdlib-coder"] * 3
    assert [model.folder for model in server.local_models] == ["stdlib-coder"]


def test_what_is_loaded_at_start_sets_the_time_to_start(tmp_path: Path) -> None:
    """Not what is only there."""
    reasons = [coders(tmp_path, rest=rest).servers[0].startup_reason for rest in ("", ", swap: {max_loaded: 1}")]

    assert reasons == [
        f"60 s to start + twice the time to read {size} of weights at 200 MB/s" for size in ("22.8 MiB", "7.6 MiB")
    ]


def test_models_that_cannot_be_loaded_together_are_loaded_in_turn(tmp_path: Path) -> None:
    """Three of 31.5 MiB each, with their smallest KV caches, do not fit 52.5 MiB, but one does."""
    with pytest.raises(SpecError) as caught:
        coders(tmp_path, memory="110MB")

    (diagnostic,) = caught.value.diagnostics
    (server,) = coders(tmp_path, memory="110MB", rest=", swap: {max_loaded: 1}").servers
    assert diagnostic.code == "FG401"
    assert diagnostic.message.startswith("`b` does not fit beside the models that are loaded before it")
    assert server.sizes.kv_cache_reason.startswith("what weights and buffers leave")


def test_the_kv_cache_shrinks_before_a_model_is_refused(tmp_path: Path) -> None:
    """A quarter for each of three would not fit beside the weights."""
    (server,) = coders(tmp_path, memory="220MB").servers

    assert server.sizes.kv_cache_reason == "what weights and buffers leave of the 110 MB in memory_bytes"
    assert 0 < server.sizes.kv_cache_bytes < 220_000_000 // 4 // 3


def test_a_checkpoint_that_cannot_be_counted_is_not_judged(tmp_path: Path) -> None:
    """The runtime, which is the strict reader, says what is wrong with it."""
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs")

    server = only_server(tmp_path, CHAT_SPEC.replace("owner/some-model", "./broken"))

    assert server.models[0].sizes is None
    assert "not here to be counted" in server.sizes.kv_cache_reason
