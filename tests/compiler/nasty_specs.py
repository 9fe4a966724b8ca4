"""Specs that are allowed and odd: long names, long types, texts in every script, every field of every protocol."""

import json
import random
from collections.abc import Sequence
from typing import Any

from flashgen.protocols import PROTOCOLS
from flashgen.types import Atom, ListType, LiteralType, Type, format_type, members_of
from tests.compiler.hostile import HOSTILE

# What a free text of a spec may hold: no control characters besides line breaks and tabs.
PRINTABLE = tuple(
    text for text in HOSTILE if not any((ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 for c in text)
)
LONG_WORD = "a-very-long-name-of-forty-characters-abc"
LONG_TEXT = "A description that goes on and on, far beyond the end of any line that a formatter would accept. " * 3
_PATHS = {
    "generate": "/generate/",
    "openai.chat_completions": "/v1/chat/completions",
    "openai.completions": "/v1/completions",
    "openai.embeddings": "/v1/embeddings",
    "openai.models": "/v1/models",
}


def as_yaml(spec: dict[str, Any]) -> str:
    """JSON is YAML, as long as it has no surrogates."""
    return json.dumps(spec, ensure_ascii=False, indent=1)


def minimal(**extra: Any) -> dict[str, Any]:
    """A spec with one chat api and one model, and what else is given."""
    return {
        "name": "nasty",
        "apis": [{"path": "/v1/chat/completions"}],
        "servers": [{"name": "llm", "model": {"type": "text_generation", "uri": "owner/model"}}],
        **extra,
    }


def hostile_spec(texts: Sequence[str] = PRINTABLE, *, description: str = "plain") -> dict[str, Any]:
    """A spec with every text in every place for free text: an api, a route and a server for each."""
    apis: list[dict[str, Any]] = []
    servers: list[dict[str, Any]] = []
    for number, text in enumerate(texts):
        field = {"type": "str", "description": text, "example": text or "x", "enum": [text or "x", "other"]}
        response = {"type": "str", "description": text}
        apis.append(
            {
                "path": f"/text/{number}",
                "protocol": "generate",
                "server": f"server-{number}",
                "description": text,
                "inputs": {
                    "prompt": {"type": "str", "default": text, "description": text},
                    "model": {**field, "optional": True},
                },
                "outputs": {"response": response},
            }
        )
        servers.append(_hostile_server(f"server-{number}", text))
    return {"name": "hostile", "description": description, "apis": apis, "servers": servers}


def _hostile_server(name: str, text: str) -> dict[str, Any]:
    # Names have no line breaks, and no two models have the same.
    model_id = f"{' '.join(text.split())} ({name})"
    return {
        "name": name,
        "models": [
            {
                "type": "text_generation",
                "uri": "owner/model",
                "name": model_id,
                "aliases": [f"{model_id}, too"],
                "chat_template": "{% raw %}" + text.replace("{%", "{ %") + "{% endraw %}",
                "generation_params": {"stop": [text or "x"]},
            },
            {"type": "text_generation", "uri": "owner/other", "name": f"{model_id}, two", "prefetch": [model_id]},
        ],
        "swap": {"max_loaded": 1, "preload": [model_id]},
        "container": {"env": {"GREETING": text}},
    }


def every_field_spec() -> dict[str, Any]:
    """A spec that declares every field of every protocol as the protocol has it."""
    apis = []
    for protocol in PROTOCOLS.values():
        api: dict[str, Any] = {"path": _PATHS[protocol.name]}
        if protocol.inputs:
            api["inputs"] = {name: _field(name, type_, protocol.required) for name, type_ in protocol.inputs.items()}
        api["outputs"] = {name: format_type(type_) for name, type_ in protocol.outputs.items()}
        apis.append(api)
    return {"name": "every-field", "apis": apis, "servers": _both_servers(apis)}


def long_spec() -> dict[str, Any]:
    """Names as long as they may be, and literals that no line holds."""
    models = ", ".join(f"{LONG_WORD}-{number}" for number in range(5))
    chat = {
        "name": LONG_WORD,
        "path": f"/{'p' * 60}/v1/chat/completions",
        "description": LONG_TEXT,
        "inputs": {
            "model": {"type": f"literal[{models}]", "optional": True, "description": LONG_TEXT},
            "stop": {"type": f"literal[{'x' * 110}] | list[str]", "min_length": 1, "max_length": 3, "optional": True},
            "messages": {
                "type": "list[dict] | str",
                "min_length": 1,
                "example": [{"role": "user", "content": "x" * 90}] * 2,
            },
        },
        "outputs": {"choices": {"type": "list[dict]", "description": LONG_TEXT}},
    }
    completions = {
        "name": f"{LONG_WORD[:-1]}d",
        "path": "/v1/completions",
        "inputs": {"prompt": {"type": "str | list[str]", "default": "y" * 115, "min_length": 1}},
    }
    server = {"name": LONG_WORD, "model": {"type": "text_generation", "uri": "owner/model", "name": f"{LONG_WORD}-0"}}
    return {"name": LONG_WORD, "apis": [chat, completions], "servers": [server]}


def namesakes_spec() -> dict[str, Any]:
    """Apis whose names become the same class, or the name of one of the runtime's classes."""
    inputs = {"prompt": {"type": "str", "min_length": 1}}
    apis = [
        {"path": "/a", "name": "v1", "protocol": "generate", "inputs": inputs, "outputs": {"response": "str"}},
        {"path": "/b", "name": "v-1", "protocol": "generate", "inputs": inputs, "outputs": {"response": "str"}},
        {"path": "/c", "name": "completion", "protocol": "openai.completions", "inputs": inputs},
        {"path": "/d", "name": "print", "protocol": "openai.completions"},
        {"path": "/e", "name": "v10", "protocol": "generate"},
        {"path": "/f", "name": "v2", "protocol": "generate"},
        {"path": "/openai", "protocol": "openai.chat_completions"},
        {"path": "/hooks", "protocol": "openai.chat_completions"},
        {"path": "/runtime/generate", "protocol": "generate"},
        {"path": "/config", "protocol": "openai.models"},
        {"path": "/", "protocol": "generate"},
    ]
    return minimal(name="namesakes", apis=apis)


def many_servers_spec() -> dict[str, Any]:
    """Several servers, cards, secrets, weights by absolute path, and every key of a server."""
    servers = [
        {
            "name": "llm",
            "model": {
                "type": "text_generation",
                "uri": "owner/model",
                "revision": "0123abc",
                "aliases": ["default", "m"],
                "dtype": "bfloat16",
                "device": "cuda:0",
                "max_context": 8192,
                "chat_template": "{{ messages }}",
                "generation_params": {"temperature": 0.5, "stop": ["\n\n"], "max_new_tokens": 64},
            },
            "resources": {
                "cpus": 1.5,
                "memory": "12.5GiB",
                "gpus": 2,
                "gpu_memory": "40GB",
                "gpu_cuda_capability": 8.6,
            },
            "rpc_port": 6600,
            "container": {"env": {"A": "1", "B": "$x"}, "secrets": ["HF_TOKEN"]},
        },
        {"name": "card", "model": {"type": "text_generation", "uri": "other/model"}, "resources": {"gpus": 1}},
        {
            "name": "minor",
            "model": {"type": "text_generation", "uri": "third/model"},
            "resources": {"gpus": 1, "gpu_cuda_capability": "9.0"},
            "container": {"secrets": ["HF_TOKEN", "OTHER"]},
        },
        {"name": "embedder", "model": {"type": "embeddings", "uri": "owner/embeddings"}},
    ]
    apis = [
        {"path": "/v1/chat/completions", "server": ["llm", "card"]},
        {"path": "/v1/completions", "server": "minor"},
        {"path": "/v1/embeddings"},
        {"path": "/v1/models"},
    ]
    return {"name": "many", "apis": apis, "servers": servers}


def random_spec(seed: int) -> dict[str, Any]:
    """A spec with random declared fields; equal for equal seeds."""
    dice = random.Random(seed)
    apis = []
    for protocol in dice.sample(sorted(PROTOCOLS), dice.randint(1, len(PROTOCOLS))):
        api: dict[str, Any] = {"path": _PATHS[protocol]}
        if dice.random() < 0.5:
            api["description"] = dice.choice(PRINTABLE)
        inputs = PROTOCOLS[protocol].inputs
        names = dice.sample(sorted(inputs), dice.randint(0, len(inputs)))
        if names:
            api["inputs"] = {
                name: _random_field(name, inputs[name], PROTOCOLS[protocol].required, dice) for name in names
            }
        outputs = dice.sample(
            sorted(PROTOCOLS[protocol].outputs), dice.randint(0, 3) % (len(PROTOCOLS[protocol].outputs) + 1)
        )
        if outputs:
            api["outputs"] = {name: format_type(PROTOCOLS[protocol].outputs[name]) for name in outputs}
        apis.append(api)
    spec = {"name": f"random-{seed}", "apis": apis, "servers": _both_servers(apis)}
    if dice.random() < 0.5:
        spec["deploy"] = {"targets": [dice.choice(["compose", "kubernetes"])]}
    return spec


def _both_servers(apis: list[dict[str, Any]]) -> list[dict[str, Any]]:
    paths = {api["path"] for api in apis}
    servers = []
    if paths - {"/v1/embeddings"}:
        servers.append({"name": "llm", "model": {"type": "text_generation", "uri": "owner/model"}})
    if "/v1/embeddings" in paths:
        servers.append({"name": "embedder", "model": {"type": "embeddings", "uri": "owner/embeddings"}})
    return servers


def _field(name: str, type_: Type, required: str | None) -> dict[str, Any]:
    return {"type": format_type(type_)} if name == required else {"type": format_type(type_), "optional": True}


def _random_field(name: str, type_: Type, required: str | None, dice: random.Random) -> dict[str, Any]:
    members = list(members_of(type_))
    kept = [member for member in members if dice.random() < 0.7 and member != Atom("null")] or members[:1]
    field: dict[str, Any] = {"type": " | ".join(format_type(member) for member in kept)}
    if name != required and dice.random() < 0.6:
        field["optional"] = True
    if dice.random() < 0.5:
        field["description"] = dice.choice((*PRINTABLE, LONG_TEXT, "短い説明 " * dice.randint(1, 30)))
    if any(member in (Atom("int"), Atom("float")) for member in kept):
        field |= dice.choice(
            [{}, {"min": 1}, {"min": 1, "max": 2}, {"max": 1.5} if Atom("float") in kept else {"max": 10**18}]
        )
    if any(member == Atom("str") or isinstance(member, ListType) for member in kept):
        field |= dice.choice([{}, {"min_length": 1}, {"min_length": 1, "max_length": 200}])
    if kept == [Atom("str")] and dice.random() < 0.5:
        field = {key: value for key, value in field.items() if not key.endswith("_length")}
        field["enum"] = dice.sample([*(text for text in PRINTABLE if text), "z" * 130], dice.randint(1, 6))
    elif kept == [Atom("str")] and dice.random() < 0.5:
        field["default"] = "d" * dice.randint(1, 150)
    if isinstance(kept[0], LiteralType) and dice.random() < 0.5:
        field["default"] = kept[0].values[0]
    return field
