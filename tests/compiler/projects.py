"""Specs and projects for tests of the compiler's later stages."""

import json
from pathlib import Path

from flashgen.resolved import ResolvedProject
from flashgen.runtime_wheel import RuntimeWheel
from flashgen.stages.load import load
from flashgen.stages.resolve import resolve
from flashgen.stages.validate import validate

WHEEL = RuntimeWheel("1.2.3", "flashgen_runtime-1.2.3-py3-none-any.whl", b"wheel")

CHAT_SPEC = """\
apis:
  - path: /v1/chat/completions
servers:
  - model: {type: text_generation, uri: owner/some-model}
"""


def resolved(folder: Path, spec: str = CHAT_SPEC, *, file_name: str = "flashgen.yaml") -> ResolvedProject:
    """The project of a spec that lies in `folder`, built into `folder/project`."""
    path = folder / file_name
    path.write_text(spec, encoding="utf-8")
    return resolve(validate(load(path)), project_folder=folder / "project", spec_sha256="0" * 64, wheel=WHEEL)


def write_checkpoint(
    folder: Path, *, architecture: str = "LlamaForCausalLM", tokenizer_config: str | None = None
) -> Path:
    """A folder that looks like a checkpoint."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture]}), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"")
    if tokenizer_config is not None:
        (folder / "tokenizer_config.json").write_text(tokenizer_config, encoding="utf-8")
    return folder


def write_blueprint(folder: Path, manifest: str, templates: dict[str, str]) -> Path:
    """A blueprint; names of templates are relative to its template folder, `../templates/x.j2` is a macro."""
    for name, text in templates.items():
        path = folder / "{{cookiecutter.name}}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (folder / "{{cookiecutter.name}}").mkdir(parents=True, exist_ok=True)
    (folder / "blueprint.yaml").write_text(manifest, encoding="utf-8")
    return folder
