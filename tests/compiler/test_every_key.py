"""No dead key: whatever the schema allows changes what runs or which objects exist."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flashgen.resources import data_dir
from tests.compiler.blueprint_projects import rendered, texts
from tests.compiler.nasty_specs import as_yaml

SCHEMA = json.loads((data_dir("schemas") / "v1" / "spec.schema.json").read_text(encoding="utf-8"))

PROMPT = {"type": "str"}
SPEC: dict[str, Any] = {
    "version": 1,
    "name": "base",
    "apis": [
        {"path": "/generate/", "server": "llm", "inputs": {"prompt": PROMPT, "top_k": "int", "model": "str"}},
        {"path": "/v1/models"},
    ],
    "models": {
        "chat": {"uri": "owner/chat", "type": "text_generation"},
        "tiny": {"uri": "owner/tiny", "type": "text_generation"},
    },
    "servers": [
        {"name": "llm", "model": "chat", "resources": {"gpus": 2, "gpu_memory": "40GB"}},
        {"name": "other", "model": {"uri": "owner/other", "type": "text_generation"}},
        {"name": "processor", "model": {"uri": "owner/small", "type": "text_generation"}},
        {"name": "embedder", "model": {"uri": "owner/embedder", "type": "embeddings"}},
        {"name": "many", "models": [{"uri": "owner/first", "type": "text_generation"}, "owner/second", "owner/third"]},
        {"name": "tiny", "model": "tiny"},
    ],
}

SERVICE = "config/service.yaml"
ROUTE = "api/routes/generate.py"
COMPOSE = "compose.yaml"
WORKER = "deploy/k8s/base/llm-deployment.yaml"

Change = tuple[tuple[str | int, ...], Any]


def api(*path: str) -> tuple[str | int, ...]:
    return ("apis", 0, *path)


def prompt(**attributes: Any) -> Change:
    return api("inputs", "prompt"), {**PROMPT, **attributes}


def model(key: str, value: Any) -> Change:
    return ("models", "chat", key), value


def params(**values: Any) -> Change:
    return model("generation_params", values)


def server(*path: str, to: Any) -> Change:
    return ("servers", 0, *path), to


def many(key: str, value: Any) -> Change:
    return ("servers", 4, key), value


def speculative(value: Any) -> Change:
    return ("servers", 2, "model", "speculative"), value


# Of every key: what sets it, and an output beside documentation that then says something else.
KEYS: dict[str, tuple[Change, str]] = {
    "spec.name": ((("name",), "renamed"), "deploy/k8s/base/api-service.yaml"),
    "spec.description": ((("description",), "New."), "api/main.py"),
    "spec.apis": ((("apis",), [SPEC["apis"][0]]), "api/routes/__init__.py"),
    "spec.models": ((("models", "chat", "uri"), "owner/renamed"), SERVICE),
    "spec.servers": ((("servers", 1, "name"), "renamed"), COMPOSE),
    "spec.deploy": ((("deploy",), {"targets": ["kubernetes"]}), COMPOSE),
    "deploy.targets": ((("deploy",), {"targets": ["compose"]}), WORKER),
    "api.path": ((api("path"), "/continue"), SERVICE),
    "api.name": ((api("name"), "continue_text"), "api/routes/continue_text.py"),
    "api.description": ((api("description"), "New."), ROUTE),
    "api.protocol": ((api("protocol"), "openai.completions"), SERVICE),
    "api.inputs": ((api("inputs"), {"prompt": "str"}), ROUTE),
    "api.outputs": ((api("outputs"), {"response": "str"}), ROUTE),
    "api.server": ((api("server"), "other"), SERVICE),
    "field.name": ((api("inputs"), [{"name": "prompt", "type": "str"}, {"name": "seed", "type": "int"}]), ROUTE),
    "field.type": ((api("inputs", "top_k"), "int | null"), ROUTE),
    "field.optional": ((api("inputs", "top_k"), {"type": "int", "optional": True}), ROUTE),
    "field.default": (prompt(default="x"), ROUTE),
    "field.enum": (prompt(enum=["a", "b"]), ROUTE),
    "field.min": ((api("inputs", "top_k"), {"type": "int", "min": 2}), ROUTE),
    "field.max": ((api("inputs", "top_k"), {"type": "int", "max": 9}), ROUTE),
    "field.min_length": (prompt(min_length=2), ROUTE),
    "field.max_length": (prompt(max_length=9), ROUTE),
    "field.description": (prompt(description="New."), ROUTE),
    "field.example": (prompt(example="New."), ROUTE),
    "model.type": ((("servers", 1, "model", "type"), "embeddings"), SERVICE),
    "model.uri": (model("uri", "owner/renamed"), SERVICE),
    "model.revision": (model("revision", "v2"), SERVICE),
    "model.name": (model("name", "renamed"), SERVICE),
    "model.aliases": (model("aliases", ["default"]), SERVICE),
    "model.dtype": (model("dtype", "bfloat16"), SERVICE),
    "model.quantization": ((("servers", 2, "model", "quantization"), "int8"), SERVICE),
    "model.device": (model("device", "cuda:1"), SERVICE),
    "model.max_context": (model("max_context", 2048), SERVICE),
    "model.chat_template": (model("chat_template", "{{ messages }}"), SERVICE),
    "model.prefetch": ((("servers", 4, "models", 0, "prefetch"), ["owner/third"]), SERVICE),
    "model.speculative": (speculative("ngram"), SERVICE),
    "speculative.method": (speculative({"method": "ngram"}), SERVICE),
    "speculative.model": (speculative({"method": "draft", "model": "chat"}), SERVICE),
    "speculative.models": (speculative({"method": "tree", "models": ["chat", "tiny"]}), SERVICE),
    "speculative.tokens": (speculative({"method": "ngram", "tokens": 5}), SERVICE),
    "model.generation_params": (params(temperature=0.5), SERVICE),
    "generation_params.max_tokens": (params(max_tokens=5), SERVICE),
    "generation_params.max_new_tokens": (params(max_new_tokens=5), SERVICE),
    "generation_params.temperature": (params(temperature=0.5), SERVICE),
    "generation_params.do_sample": (params(do_sample=False), SERVICE),
    "generation_params.top_p": (params(top_p=0.5), SERVICE),
    "generation_params.top_k": (params(top_k=5), SERVICE),
    "generation_params.stop": (params(stop=["."]), SERVICE),
    "generation_params.seed": (params(seed=5), SERVICE),
    "generation_params.min_p": (params(min_p=0.5), SERVICE),
    "generation_params.typical_p": (params(typical_p=0.5), SERVICE),
    "generation_params.repetition_penalty": (params(repetition_penalty=1.5), SERVICE),
    "generation_params.presence_penalty": (params(presence_penalty=0.5), SERVICE),
    "generation_params.frequency_penalty": (params(frequency_penalty=0.5), SERVICE),
    "generation_params.logit_bias": (params(logit_bias={"5": 1}), SERVICE),
    "generation_params.n": (params(n=2), SERVICE),
    "generation_params.num_beams": (params(num_beams=2), SERVICE),
    "generation_params.length_penalty": (params(length_penalty=0.5), SERVICE),
    "server.name": ((("servers", 1, "name"), "renamed"), "workers/renamed/main.py"),
    "server.model": ((("servers", 1, "model"), {"uri": "owner/renamed", "type": "text_generation"}), SERVICE),
    "server.models": ((("servers", 4, "models"), ["owner/first", "owner/third"]), SERVICE),
    "server.weights": (server("weights", to={"threads": 9}), SERVICE),
    "server.swap": (many("swap", {"max_loaded": 1}), SERVICE),
    "weights.path": (server("weights", to={"path": "/weights"}), WORKER),
    "weights.loader": (server("weights", to={"loader": "arena"}), SERVICE),
    "weights.threads": (server("weights", to={"threads": 9}), SERVICE),
    "weights.pool": (server("weights", to={"pool": "1GiB"}), SERVICE),
    "weights.keep_in_ram": (server("weights", to={"keep_in_ram": False}), SERVICE),
    "weights.verify": (server("weights", to={"verify": "sha256"}), SERVICE),
    "swap.max_loaded": (many("swap", {"max_loaded": 1}), SERVICE),
    "swap.evict": (many("swap", {"evict": "lfu"}), SERVICE),
    "swap.idle_timeout": (many("swap", {"idle_timeout": "5m"}), SERVICE),
    "swap.preload": (many("swap", {"preload": ["owner/second"]}), SERVICE),
    "server.rpc_port": (server("rpc_port", to=6600), COMPOSE),
    "server.resources": (server("resources", to={"gpus": 1}), WORKER),
    "server.container": (server("container", to={"env": {"A": "1"}}), WORKER),
    "server.engine": (server("engine", to={"deterministic": True}), SERVICE),
    "engine.batching": (server("engine", to={"batching": {"mode": "static"}}), SERVICE),
    "engine.kv_cache": (server("engine", to={"kv_cache": {"memory": "2GiB"}}), SERVICE),
    "engine.deterministic": (server("engine", to={"deterministic": True}), SERVICE),
    "batching.mode": (server("engine", to={"batching": {"mode": "static"}}), SERVICE),
    "batching.max_requests": (server("engine", to={"batching": {"max_requests": 7}}), SERVICE),
    "batching.max_tokens": (server("engine", to={"batching": {"max_tokens": 700}}), SERVICE),
    "batching.max_wait": ((("servers", 3, "engine"), {"batching": {"max_wait": "5ms"}}), SERVICE),
    "kv_cache.dtype": ((("servers", 2, "engine"), {"kv_cache": {"dtype": "int8"}}), SERVICE),
    "kv_cache.block_size": (server("engine", to={"kv_cache": {"block_size": 64}}), SERVICE),
    "kv_cache.prefix_caching": (server("engine", to={"kv_cache": {"prefix_caching": False}}), SERVICE),
    "kv_cache.memory": (server("engine", to={"kv_cache": {"memory": "2GiB"}}), SERVICE),
    "resources.cpus": (server("resources", "cpus", to=7), WORKER),
    "resources.memory": (server("resources", "memory", to="7GiB"), WORKER),
    "resources.gpus": (server("resources", "gpus", to=1), WORKER),
    "resources.gpu_memory": (server("resources", "gpu_memory", to="24GB"), WORKER),
    "resources.gpu_cuda_capability": (server("resources", "gpu_cuda_capability", to=8.6), WORKER),
    "container.env": (server("container", to={"env": {"A": "1"}}), COMPOSE),
    "container.secrets": (server("container", to={"secrets": ["${HF_TOKEN}"]}), WORKER),
}

# Keys with one possible value, for now.
ONLY_VALUE = {
    "spec.version": "1 is the only version of the language",
    "field.in": "callers send all fields in the body",
    "api.method": "the method of an api's protocol is the only one that is allowed",
}

# Attributes of fields are read in the list form and in the mapping form; `name` is one of the list form only.
FIELD_NAME = {"field.name"}


def test_every_key_of_the_schema_is_here() -> None:
    """A new key needs a line that says what it changes."""
    allowed = {f"{title}.{key}" for title, key in _keys(SCHEMA)}

    assert allowed | FIELD_NAME == KEYS.keys() | ONLY_VALUE.keys()


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The texts of the project without any change."""
    return texts(rendered(tmp_path_factory.mktemp("before"), as_yaml(SPEC)))


@pytest.mark.parametrize("key", KEYS)
def test_key_changes(key: str, before: dict[str, str], tmp_path: Path) -> None:
    """Setting the key changes an output that something reads, in more than a comment."""
    (path, value), output = KEYS[key]
    changed = copy.deepcopy(SPEC)
    node: Any = changed
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value

    after = texts(rendered(tmp_path, as_yaml(changed)))

    assert _meaning(before.get(output)) != _meaning(after.get(output))


def _meaning(text: str | None) -> list[str]:
    """The lines of a file that are no comments."""
    return [line for line in (text or "").splitlines() if not line.strip().startswith("#")]


def _keys(node: Any) -> Iterator[tuple[str, str]]:
    """Title of the object and name of every key that the schema allows, `x-` aside."""
    if isinstance(node, dict):
        if isinstance(node.get("properties"), dict):
            for key in node["properties"]:
                yield node.get("title", ""), key
        for child in node.values():
            yield from _keys(child)
    elif isinstance(node, list):
        for child in node:
            yield from _keys(child)
