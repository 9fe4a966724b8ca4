"""What is said of weights in formats that are never loaded, with the command that converts them."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PICKLED = ("*.bin", "*.pt", "*.pth")


def foreign_problem(path: Path, config: Mapping[str, Any], *, is_encoder: bool) -> str | None:
    """Why a folder without safetensors cannot be used, if it holds weights of another format.

    Args:
        path: the checkpoint's folder.
        config: what its `config.json` says; empty if there is none.
        is_encoder: whether the model has no head.
    """
    auto_class = "AutoModel" if is_encoder else "AutoModelForCausalLM"
    if config.get("is_encoder_decoder"):
        auto_class = "AutoModelForSeq2SeqLM"
    if name := _first(path, PICKLED):
        problem = f"has no safetensors weights, only `{name}`: pickled files can run code and are never loaded"
        return f"{problem}; if you trust whoever made it, convert it: {_command(path, auto_class)}"
    if name := _first(path, ("*.gguf",)):
        command = _command(path, auto_class, gguf_file=name)
        return f"has no safetensors weights, only `{name}`; convert it (pip install gguf): {command}"
    return None


def _first(path: Path, patterns: tuple[str, ...]) -> str | None:
    return min((file.name for pattern in patterns for file in path.glob(pattern)), default=None)


def _command(path: Path, auto_class: str, **options: str) -> str:
    """One line for a shell: transformers reads both formats and writes safetensors beside them."""
    arguments = "".join(f", {name}={value!r}" for name, value in options.items())
    code = (
        f"from transformers import {auto_class}; "
        f"{auto_class}.from_pretrained({str(path)!r}, dtype='auto'{arguments}).save_pretrained({str(path)!r})"
    )
    return f"python -c {shlex.quote(code)}" if '"' in code else f'python -c "{code}"'
