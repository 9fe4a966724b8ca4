"""sentence-transformers: sorts by length, pads each batch, runs in fp32 (or bf16).

Run by `benchmarks.systems`: python -m benchmarks.peers.sentence_transformers FOLDER PRECISION THREADS
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.peers.environment import TORCH, environment
from benchmarks.protocol import serve_encoder


def command(folder: Path, precision: str, threads: int) -> list[str]:
    """The child's command line; installs first."""
    python = environment("sentence-transformers", [TORCH], ["sentence-transformers==6.2.0"]) / "python"
    return [str(python), "-m", "benchmarks.peers.sentence_transformers", str(folder), precision, str(threads)]


class SentenceTransformers:
    """A `TextEncoder`."""

    def __init__(self, folder: str, precision: str, threads: int) -> None:
        # Only the peer's environment has to have them.
        import torch

        library: Any = import_module("sentence_transformers")
        torch.set_num_threads(threads)
        dtype = {"fp32": "float32", "bf16": "bfloat16"}[precision]
        self._model = library.SentenceTransformer(folder, device="cpu", model_kwargs={"torch_dtype": dtype})
        versions = f"sentence-transformers {library.__version__}, torch {torch.__version__}"
        self.settings = f"{versions}, {dtype}, sorted, batches of 32 padded, {threads} threads"

    def encode(self, texts: Sequence[str]) -> list[bytes]:
        vectors = self._model.encode(list(texts), batch_size=32, normalize_embeddings=True, show_progress_bar=False)
        return [vector.astype("float32").tobytes() for vector in vectors]


if __name__ == "__main__":
    serve_encoder(lambda: SentenceTransformers(sys.argv[1], sys.argv[2], int(sys.argv[3])))
