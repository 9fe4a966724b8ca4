from pathlib import Path

import pytest

from flashgen.errors import SpecError
from flashgen.resolved import EngineSettings, ResolvedModel, ResolvedServer, ResolvedSpeculation
from flashgen.user_text import UserText, plain_text
from tests.compiler.projects import CHAT_SPEC, WHEEL, resolved, write_checkpoint


def only_server(folder: Path, spec: str) -> ResolvedServer:
    (server,) = resolved(folder, spec).servers
    return server


def only_model(folder: Path, model: str) -> ResolvedModel:
    (only,) = only_server(folder, f"apis: [{{path: /v1/chat/completions}}]\nservers: [{{model: {model}}}]\n").models
    return only


def texts(values: tuple[UserText, ...]) -> list[str]:
    return [plain_text(value) for value in values]


def test_the_first_spec_gets_every_default(tmp_path: Path) -> None:
    """A spec that says next to nothing still describes a whole service."""
    project = resolved(tmp_path)

    (server,) = project.servers
    (api,) = project.apis
    (model,) = server.models
    assert (project.name, project.targets) == ("flashgen", ("compose", "kubernetes"))
    assert plain_text(project.description) == "Serves owner/some-model."
    assert plain_text(project.spec_path) == "../flashgen.yaml"
    assert (project.runtime_version, project.runtime_wheel_sha256) == ("1.2.3", WHEEL.sha256)
    assert (server.name, server.package, server.rpc_port, server.operations_port) == (
        "some-model",
        "some_model",
        6500,
        9500,
    )
    assert (api.name, api.class_name, api.method, api.protocol) == (
        "chat_completions",
        "ChatCompletions",
        "POST",
        "openai.chat_completions",
    )
    assert api.servers == (server,)
    assert (model.task, model.dtype, model.device) == ("text-generation", "auto", "cpu")


@pytest.mark.parametrize(
    ("file_name", "line", "name"),
    [
        ("My Service.yaml", "", "my-service"),
        ("x.yaml", "name: assistant\n", "assistant"),
    ],
)
def test_a_project_is_called_as_written_or_after_its_file(tmp_path: Path, file_name: str, line: str, name: str) -> None:
    """`name` of the whole spec defaults to the file's stem."""
    assert resolved(tmp_path, line + CHAT_SPEC, file_name=file_name).name == name


@pytest.mark.parametrize(
    ("model", "model_id", "aliases"),
    [
        ("{uri: owner/name-7B, type: text_generation}", "owner/name-7B", ["name-7b"]),
        ("{uri: owner/name-7B, type: text_generation, name: chat}", "chat", ["owner/name-7B", "name-7b"]),
        (
            "{uri: owner/name-7B, type: text_generation, name: chat, aliases: [default]}",
            "chat",
            ["default", "owner/name-7B", "name-7b"],
        ),
        ("{uri: ./weights/coder, type: text_generation}", "coder", ["./weights/coder"]),
    ],
)
def test_callers_reach_a_model_by_its_names(tmp_path: Path, model: str, model_id: str, aliases: list[str]) -> None:
    """The id is the name, else the hub id or the folder's name; uri and server name are aliases."""
    write_checkpoint(tmp_path / "weights" / "coder")

    found = only_model(tmp_path, model)

    assert plain_text(found.id) == model_id
    assert texts(found.aliases) == aliases


def test_the_key_of_a_model_is_its_id(tmp_path: Path) -> None:
    """A model under `models` is called by its key."""
    spec = (
        "models: {chat: {uri: owner/name, type: text_generation}}\n"
        "apis: [{path: /v1/completions}]\nservers: [{model: chat, name: llm}]\n"
    )

    (model,) = only_server(tmp_path, spec).models

    assert plain_text(model.id) == "chat"
    assert texts(model.aliases) == ["owner/name", "llm"]


def test_a_name_that_two_models_would_share_means_neither(tmp_path: Path) -> None:
    """One uri twice under two names: the uri alone would be a guess."""
    spec = """\
apis: [{path: /v1/chat/completions, server: a}, {path: /v1/completions, server: b}]
servers:
  - {name: a, model: {uri: owner/m, name: first, type: text_generation}}
  - {name: b, model: {uri: owner/m, name: second, type: text_generation, dtype: float32}}
"""

    project = resolved(tmp_path, spec)

    assert [texts(server.models[0].aliases) for server in project.servers] == [["a"], ["b"]]


def test_a_local_model_becomes_a_folder_below_the_models_folder(tmp_path: Path) -> None:
    """Its path reads from the spec's folder, and from the project's."""
    write_checkpoint(tmp_path / "My Weights")

    model = only_model(tmp_path, "{uri: './My Weights', type: text_generation}")

    assert model.folder == "my-weights"
    assert model.repository is None
    assert model.local_path == UserText("./My Weights")
    assert model.path_from_project == UserText("../My Weights")
    assert model.path_on_this_machine == tmp_path / "My Weights"


def test_an_absolute_path_stays_out_of_the_project(tmp_path: Path) -> None:
    """What only this machine knows is for `flashgen run`; no template can print it."""
    folder = write_checkpoint(tmp_path / "weights")

    model = only_model(tmp_path, f"{{uri: {folder}, type: text_generation}}")

    assert (model.local_path, model.path_from_project) == (None, None)
    assert str(tmp_path) not in "".join(texts((model.id, *model.aliases)))
    assert model.path_on_this_machine == folder


def test_two_folders_of_one_name_stay_two(tmp_path: Path) -> None:
    """`a/model` and `b/model` must not end in one folder below FLASHGEN_MODELS."""
    write_checkpoint(tmp_path / "a" / "model")
    write_checkpoint(tmp_path / "b" / "model", architecture="BertModel")
    spec = """\
apis: [{path: /v1/chat/completions}, {path: /v1/embeddings}]
servers:
  - {name: a, model: {uri: ./a/model, name: first, type: text_generation}}
  - {name: b, model: {uri: ./b/model, name: second, type: embeddings}}
"""

    folders = [server.models[0].folder for server in resolved(tmp_path, spec).servers]

    assert folders == ["model", "model-2"]


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        (None, "there is no such folder"),
        ([], "the folder has no `config.json`"),
        (["config.json"], "the folder has no `*.safetensors` file"),
        (["config.json", "model.safetensors.index.json"], "the folder has no `*.safetensors` file"),
    ],
)
def test_a_folder_without_a_model_is_a_diagnostic(tmp_path: Path, files: list[str] | None, problem: str) -> None:
    """It points at the uri, before a worker finds out."""
    if files is not None:
        (tmp_path / "weights").mkdir()
        for name in files:
            (tmp_path / "weights" / name).write_text("{}", encoding="utf-8")

    with pytest.raises(SpecError) as caught:
        only_model(tmp_path, "{uri: ./weights, type: text_generation}")

    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.code == "FG400"
    assert diagnostic.message == f"no model can be loaded from `./weights`: {problem}"
    assert diagnostic.place is not None
    assert diagnostic.place.line == 2


def test_all_missing_folders_are_reported_at_once(tmp_path: Path) -> None:
    """One run shows every mistake."""
    spec = """\
apis: [{path: /v1/chat/completions}, {path: /v1/embeddings}]
servers:
  - {model: {uri: ./a, type: text_generation}}
  - {model: {uri: ./b, type: embeddings}}
"""

    with pytest.raises(SpecError) as caught:
        resolved(tmp_path, spec)

    assert [diagnostic.place.line for diagnostic in caught.value.diagnostics if diagnostic.place] == [3, 4]


@pytest.mark.parametrize(
    ("tokenizer_config", "template_file", "source"),
    [
        ('{"chat_template": "{{ messages }}"}', None, "checkpoint"),
        ('{"chat_template": null}', None, "none"),
        ("{}", None, "none"),
        (None, None, "none"),
        ("{}", "chat_template.jinja", "checkpoint"),
        ("not json", None, "unknown"),
        ("[1, 2]", None, "unknown"),
        ("[" * 100_000, None, "unknown"),
    ],
)
def test_the_chat_template_of_a_local_checkpoint_is_found(
    tmp_path: Path, tokenizer_config: str | None, template_file: str | None, source: str
) -> None:
    """A malformed tokenizer configuration is the worker's to report."""
    folder = write_checkpoint(tmp_path / "weights", tokenizer_config=tokenizer_config)
    if template_file:
        (folder / template_file).write_text("{{ messages }}", encoding="utf-8")

    model = only_model(tmp_path, "{uri: ./weights, type: text_generation}")

    assert model.chat_template_source == source


@pytest.mark.parametrize(
    ("model", "notice"),
    [
        ("{uri: owner/m, type: text_generation, chat_template: '{{ messages }}'}", None),
        ("{uri: owner/m, type: text_generation}", "whether `owner/m` has a chat template"),
        ("{uri: ./weights, type: text_generation}", "`weights` has no chat template"),
    ],
)
def test_a_chat_without_template_is_said_when_it_builds(tmp_path: Path, model: str, notice: str | None) -> None:
    """Contents joined by newlines are no secret."""
    write_checkpoint(tmp_path / "weights")

    notices = texts(resolved(tmp_path, f"apis: [{{path: /v1/chat/completions}}]\nservers: [model: {model}]\n").notices)

    assert len(notices) == (0 if notice is None else 1)
    assert all(text.startswith(notice or "") for text in notices)


def test_apis_find_the_server_for_their_task(tmp_path: Path) -> None:
    """Several servers: the task types decide; a list of models asks them all."""
    spec = """\
apis: [{path: /v1/chat/completions}, {path: /v1/embeddings}, {path: /v1/models, method: GET}]
servers:
  - {model: {uri: owner/chat, type: text_generation}}
  - {model: {uri: owner/embed, type: embeddings}}
"""

    project = resolved(tmp_path, spec)

    assert [[server.name for server in api.servers] for api in project.apis] == [["chat"], ["embed"], ["chat", "embed"]]
    assert [server.rpc_port for server in project.servers] == [6500, 6501]


def test_the_apis_decide_the_task_of_a_model_without_type(tmp_path: Path) -> None:
    """A lone server behind `/v1/embeddings` holds an embedding model."""
    spec = "apis: [{path: /v1/embeddings}]\nservers: [{model: owner/embed}]\n"

    server = only_server(tmp_path, spec)

    assert server.models[0].task == "feature-extraction"
    assert server.sizes.kv_cache_bytes == 0


def test_a_card_is_the_device_where_there_is_one(tmp_path: Path) -> None:
    """`gpus: 1` needs no `device`."""
    spec = CHAT_SPEC + "    resources: {gpus: 1, gpu_memory: 24GB, gpu_cuda_capability: 9.0}\n"

    server = only_server(tmp_path, spec)

    assert server.models[0].device == "cuda:0"
    assert server.resources.gpu_memory_bytes == 24 * 10**9
    assert server.resources.gpu_cuda_capability == (9, 0)
    assert {"gpu", "hub_models"} == server.facts


@pytest.mark.parametrize(("device", "gpus"), [("cuda", 1), ("cuda:1", 2), ("cpu", 0)])
def test_a_device_reserves_its_card(tmp_path: Path, device: str, gpus: int) -> None:
    """Without `gpus`: a container without a card could never start its model."""
    spec = CHAT_SPEC.replace("some-model}", f"some-model, device: '{device}'}}")

    assert only_server(tmp_path, spec).resources.gpus == gpus


def test_free_text_is_wrapped_at_every_depth(tmp_path: Path) -> None:
    """Nothing that a user wrote freely can be printed without a quoting filter."""
    spec = """\
description: "{{ 7 * 7 }}"
apis:
  - path: /generate/
    description: $(id)
    inputs:
      prompt: {type: str, description: '`id`', default: a, example: b, enum: [a, b]}
servers:
  - model: {uri: owner/m, type: text_generation, generation_params: {stop: ["</s>"]}}
    container: {env: {MODE: "`id`"}}
"""

    project = resolved(tmp_path, spec)

    field = project.apis[0].inputs[0]
    server = project.servers[0]
    wrapped = [project.description, project.apis[0].description, field.description, field.default, field.example]
    assert all(isinstance(value, UserText) for value in [*wrapped, *(field.enum or ())])
    assert server.models[0].generation_params["stop"] == [UserText("</s>")]
    assert server.env == {"MODE": UserText("`id`")}


@pytest.mark.parametrize(("path", "name"), [("/import", "import_"), ("/router", "router_"), ("/config", "config_")])
def test_an_api_is_never_called_like_something_else_in_its_module(tmp_path: Path, path: str, name: str) -> None:
    """Module, function and test of an api bear its name."""
    spec = CHAT_SPEC.replace("/v1/chat/completions", f"{path}\n    protocol: generate")

    (api,) = resolved(tmp_path, spec).apis

    assert api.name == name


ENGINE = """\
    engine:
      batching: {mode: static, max_requests: 8, max_tokens: 256}
      kv_cache: {dtype: int8, block_size: 64, prefix_caching: false, memory: 1GiB}
      deterministic: true
"""


def test_an_engine_gets_its_defaults(tmp_path: Path) -> None:
    """Requests join and leave between steps, equal beginnings are shared, and nothing waits."""
    server = only_server(tmp_path, CHAT_SPEC)

    assert server.engine == EngineSettings("continuous", 0.0, "auto", prefix_caching=True, deterministic=False)
    assert server.models[0].quantization is None


def test_an_engine_is_as_the_spec_says(tmp_path: Path) -> None:
    """Every key has its place; durations are seconds, sizes bytes."""
    server = only_server(tmp_path, CHAT_SPEC + ENGINE)
    embedder = "apis: [{path: /v1/embeddings}]\nservers: [{model: o/e, engine: {batching: {max_wait: 5ms}}}]\n"

    assert server.engine == EngineSettings("static", 0.0, "int8", prefix_caching=False, deterministic=True)
    assert (server.sizes.max_num_seqs, server.sizes.max_num_batched_tokens) == (8, 256)
    assert (server.sizes.block_size, server.sizes.kv_cache_bytes) == (64, 2**30)
    assert only_server(tmp_path, embedder).engine.max_wait_seconds == 0.005


def test_a_model_has_its_quantization_and_parameters(tmp_path: Path) -> None:
    """Numbers that may have fractions are floats, whatever the spec writes; ids of tokens stay texts."""
    params = '{min_p: 0, n: 2, num_beams: 1, length_penalty: 1, logit_bias: {"198": -100}}'

    model = only_model(tmp_path, f"{{uri: o/m, quantization: int4, generation_params: {params}}}")

    assert model.quantization == "int4"
    assert model.generation_params == {
        "min_p": 0.0,
        "n": 2,
        "num_beams": 1,
        "length_penalty": 1.0,
        "logit_bias": {"198": -100.0},
    }


DRAFTED = """\
models:
  chat: {type: text_generation, uri: owner/chat, max_context: 512, speculative: {method: tree, models: [small, tiny]}}
  small: {uri: ./small, quantization: int4}
  tiny: {type: text_generation, uri: owner/tiny, revision: v1, prefetch: [other], max_context: 64}
  other: {type: text_generation, uri: owner/other, speculative: ngram}
apis: [{path: /v1/completions, server: a}]
servers:
  - {name: a, model: chat}
  - {name: b, models: [tiny, other]}
"""


def test_models_that_guess_are_loaded_beside_the_one_that_they_guess_for(tmp_path: Path) -> None:
    """On its device, with weights of their own, and without what is for callers."""
    write_checkpoint(tmp_path / "small")

    chat, other = resolved(tmp_path, DRAFTED).servers[0].models[0], resolved(tmp_path, DRAFTED).servers[1].models[1]

    assert chat.speculative is not None
    assert (chat.speculative.method, chat.speculative.num_tokens) == ("tree", 4)
    assert texts(tuple(draft.id for draft in chat.drafts)) == ["small", "tiny"]
    assert [draft.quantization for draft in chat.drafts] == ["int4", None]
    assert [(draft.device, draft.max_context, draft.prefetch) for draft in chat.drafts] == [("cpu", 512, ())] * 2
    assert other.speculative == ResolvedSpeculation("ngram", 4, ())


def test_weights_of_models_that_guess_come_with_their_server(tmp_path: Path) -> None:
    """Folders are mounted and the hub is reached; a model that nobody serves is none for callers."""
    write_checkpoint(tmp_path / "small")

    project = resolved(tmp_path, DRAFTED)

    first = project.servers[0]
    assert texts(tuple(model.id for model in first.all_models)) == ["chat", "small", "tiny"]
    assert [model.folder for model in first.local_models] == ["small"]
    assert {"local_models", "hub_models"} <= first.facts
    assert texts(project.apis[0].model_ids) == ["chat"]


def test_a_folder_of_a_model_that_guesses_must_be_there(tmp_path: Path) -> None:
    """As that of any other model."""
    with pytest.raises(SpecError) as caught:
        resolved(tmp_path, DRAFTED)

    assert [diagnostic.code for diagnostic in caught.value.diagnostics] == ["FG400"]
