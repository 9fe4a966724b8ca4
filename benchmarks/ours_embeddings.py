"""flashgen's embeddings as the peers are run: a served model in a child process, called directly.

Run by `benchmarks.systems`: python -m benchmarks.ours_embeddings FOLDER PRECISION THREADS
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch

from benchmarks.ours import SIZES, model_config
from benchmarks.protocol import serve_encoder
from flashgen_runtime import __version__
from flashgen_runtime.kernels.library import set_num_threads
from flashgen_runtime.messages import Embeddings, EmbedRequest
from flashgen_runtime.models.registry import load_served_model


class FlashgenEmbeddings:
    """A `TextEncoder`; all texts are one request."""

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        torch.set_num_threads(threads)
        set_num_threads(threads)
        sizes = msgspec.structs.replace(SIZES, max_num_batched_tokens=1024)
        config = model_config(folder, precision, task="feature-extraction")
        self._model = load_served_model(config, sizes, folder)
        status = self._model.status
        path = f"path {status.path}" + (f" ({status.path_reason})" if status.path_reason else "")
        weights = status.quantization or status.dtype
        self.settings = (
            f"flashgen-runtime {__version__}, {path}, kernels {status.kernels}, weights {weights}, {threads} threads, "
            f"{sizes.max_num_batched_tokens} tokens per step without padding"
        )

    def encode(self, texts: Sequence[str]) -> list[bytes]:
        self._model.add(self._model.prepare(EmbedRequest(request_id="all", model="", inputs=list(texts))))
        while self._model.has_work:
            for reply in self._model.step():
                assert isinstance(reply, Embeddings), reply
                return list(reply.vectors)
        raise RuntimeError("no answer")


if __name__ == "__main__":
    serve_encoder(lambda: FlashgenEmbeddings(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
