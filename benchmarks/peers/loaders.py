"""Readers of weights as their documentation says, on a processor: until there are tensors, or a first token.

Run: python -m benchmarks.peers.loaders LOADER FOLDER
"""

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.load_run import report_first_token, report_load
from benchmarks.peers.environment import TORCH, environment

PACKAGES = ["fastsafetensors==0.5.0", "runai-model-streamer==0.17.0", "safetensors==0.8.0"]
PROMPT = list(range(100, 116))

# The same tensors as a pickle, beside the safetensors files.
PICKLED = "weights.pt"

# A checkpoint beside the others, for what has to be loaded once before it is measured.
TINY = "tiny"

Load = Callable[[], Any]


def command(loader: str, folder: Path) -> list[str]:
    """The command line of a loader's child; what is no dependency of ours has an environment of its own."""
    is_foreign = loader in ("fastsafetensors", "runai")
    python = str(environment("loaders", [TORCH, "numpy"], PACKAGES) / "python") if is_foreign else sys.executable
    return [python, "-m", "benchmarks.peers.loaders", loader, str(folder)]


def safetensors(folder: Path) -> Load:
    """`load_file`, which maps."""
    load_file = import_module("safetensors.torch").load_file
    return lambda: _merged(load_file(file) for file in _files(folder))


def torch_load(folder: Path) -> Load:
    torch = import_module("torch")
    return lambda: torch.load(folder / PICKLED, weights_only=True)


def torch_load_mapped(folder: Path) -> Load:
    torch = import_module("torch")
    return lambda: torch.load(folder / PICKLED, weights_only=True, mmap=True)


def from_pretrained(folder: Path) -> Load:
    """Parameters of the model; those that are tied are one."""
    load = _model_loader(folder)
    return lambda: dict(load().named_parameters())


def first_token(folder: Path) -> Callable[[], int]:
    """`from_pretrained` and a forward pass."""
    torch = import_module("torch")

    def run(folder: Path) -> int:
        model = _model_loader(folder)()
        with torch.inference_mode():
            return int(model(torch.tensor([PROMPT]), logits_to_keep=1).logits[0, -1].argmax())

    run(folder.with_name(TINY))
    _model_loader(folder)
    return lambda: run(folder)


def fastsafetensors(folder: Path) -> Load:
    """Tensors are cloned: they lie in a buffer that ends with the file."""
    fast = import_module("fastsafetensors")

    def load() -> Any:
        with fast.fastsafe_open(filenames=[str(file) for file in _files(folder)], nogds=True, device="cpu") as file:
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)

    return load


def runai(folder: Path) -> Load:
    """Tensors are cloned: their buffers are used again."""
    streamer_class = import_module("runai_model_streamer").SafetensorsStreamer

    def load() -> Any:
        with streamer_class() as streamer:
            streamer.stream_files([str(file) for file in _files(folder)])
            return {name: tensor.clone() for name, tensor in streamer.get_tensors()}

    return load


LOADERS: dict[str, Callable[[Path], Load]] = {
    "safetensors": safetensors,
    "torch.load": torch_load,
    "torch.load mmap": torch_load_mapped,
    "from_pretrained": from_pretrained,
    "fastsafetensors": fastsafetensors,
    "runai": runai,
}


def _model_loader(folder: Path) -> Callable[[], Any]:
    """Imports the class, which takes seconds."""
    transformers: Any = import_module("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    name = transformers.AutoConfig.from_pretrained(folder).architectures[0]
    model_class = getattr(transformers, name)
    return lambda: model_class.from_pretrained(folder, dtype="auto").eval()


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _merged(parts: Any) -> dict[str, Any]:
    return {name: tensor for part in parts for name, tensor in part.items()}


if __name__ == "__main__":
    loader, folder = sys.argv[1], Path(sys.argv[2])
    if loader == "first token":
        report_first_token(first_token(folder), folder)
    else:
        report_load(LOADERS[loader](folder), folder)
