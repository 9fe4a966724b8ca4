"""Writes a first spec for one model: a lesson for `flashgen init`, a bare one for `flashgen run MODEL`."""

from typing import NamedTuple

from flashgen.protocols import FEATURE_EXTRACTION
from flashgen.quoting import yaml

SCHEMA_PATH = ".flashgen/schema/v1.json"

_CHAT_APIS = """\
  - path: /v1/chat/completions
  - path: /v1/completions
  - path: /generate/
    inputs: {prompt: str}
    outputs: {prompt: str, response: str}
"""
_EMBEDDING_APIS = """\
  - path: /v1/embeddings
"""
_MODELS_API = """\
  - path: /v1/models
    method: GET
"""


class StarterResources(NamedTuple):
    """What the model's worker gets, as a spec writes it."""

    cpus: int = 2
    memory: str = "8GiB"
    gpus: int = 0


def first_spec(name: str, uri: str, task: str) -> str:
    """A spec whose comments teach the language."""
    return f"""\
# yaml-language-server: $schema={SCHEMA_PATH}
# $schema: {SCHEMA_PATH}
#
# One service: what callers see (`apis`) and what answers them (`servers`).
# `flashgen build` writes the project from this file, `flashgen run` serves it on this machine.
version: 1
name: {yaml(name)}

# A known path brings its protocol along: fields, streaming, errors. Fields that you declare narrow it.
apis:
{_apis(task)}
servers:
  - model:
      type: {yaml(_type(task))}
      # A model on the hub (owner/name), or a folder with its weights (./path, from this file's folder).
      uri: {yaml(uri)}
    # Of one worker. `gpus: 1` puts it on a card; `gpu_memory: 24GB` asks for one of at least that size.
    resources:
      cpus: 2
      memory: 8GiB
"""


def model_spec(name: str, uri: str, task: str, resources: StarterResources) -> str:
    """A spec that serves one model and explains nothing."""
    return f"""\
version: 1
name: {yaml(name)}
apis:
{_apis(task)}servers:
  - model: {{type: {yaml(_type(task))}, uri: {yaml(uri)}}}
    resources: {{cpus: {resources.cpus}, memory: {resources.memory}, gpus: {resources.gpus}}}
"""


def _apis(task: str) -> str:
    return (_EMBEDDING_APIS if task == FEATURE_EXTRACTION else _CHAT_APIS) + _MODELS_API


def _type(task: str) -> str:
    return "embeddings" if task == FEATURE_EXTRACTION else "text_generation"
