"""OpenVINO on the encoder that optimum-intel exports: one stream per thread, as it advises for throughput.

Run by `benchmarks.systems`: python -m benchmarks.peers.openvino_embeddings FOLDER EXPORTED PRECISION THREADS
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.models import CACHE
from benchmarks.peers.environment import run
from benchmarks.peers.openvino_genai import openvino_environment
from benchmarks.protocol import serve_encoder

# Weights as exported, and what it computes in.
WEIGHT_FORMATS = {"fp32": "fp32", "bf16": "fp16", "int8": "int8"}
INFERENCE_PRECISIONS = {"fp32": "f32", "bf16": "bf16", "int8": "bf16"}


def command(folder: Path, precision: str, threads: int) -> list[str]:
    """The child's command line; installs and exports first."""
    binaries = openvino_environment()
    exported = CACHE / "models" / f"{folder.name}-openvino-{precision}"
    if not exported.exists():
        partial = exported.with_suffix(".partial")
        export = [
            str(binaries / "optimum-cli"),
            "export",
            "openvino",
            "-m",
            str(folder),
            "--task",
            "feature-extraction",
        ]
        run([*export, "--weight-format", WEIGHT_FORMATS[precision], str(partial)])
        partial.rename(exported)
    module = "benchmarks.peers.openvino_embeddings"
    return [str(binaries / "python"), "-m", module, str(folder), str(exported), precision, str(threads)]


class OpenVINO:
    """A `TextEncoder`."""

    def __init__(self, folder: Path, exported: Path, precision: str, threads: int) -> None:
        self._batches: Any = import_module("benchmarks.peers.padded_batches")
        self._openvino: Any = import_module("openvino")
        settings = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": INFERENCE_PRECISIONS[precision],
        }
        self._model = self._openvino.Core().compile_model(str(exported / "openvino_model.xml"), "CPU", settings)
        self._names = {name for port in self._model.inputs for name in port.get_names()}
        self._tokenizer = self._batches.load_tokenizer(folder)
        streams = self._model.get_property("NUM_STREAMS")
        precision = f"weights {WEIGHT_FORMATS[precision]}, computes in {INFERENCE_PRECISIONS[precision]}"
        batches = f"sorted, batches of {self._batches.BATCH_SIZE} padded, {streams} streams, {threads} threads"
        self.settings = f"openvino {self._openvino.__version__}, {precision}, {batches}"

    def encode(self, texts: Sequence[str]) -> list[bytes]:
        vectors = [b""] * len(texts)

        def keep(request: Any, batch: Any) -> None:
            hidden = request.get_output_tensor(0).data
            for place, vector in zip(
                batch.places, self._batches.pooled(hidden, batch.inputs["attention_mask"]), strict=True
            ):
                vectors[place] = vector

        requests = self._openvino.AsyncInferQueue(self._model)
        requests.set_callback(keep)
        for batch in self._batches.padded_batches(self._tokenizer, texts):
            given = {name: values for name, values in batch.inputs.items() if name in self._names}
            requests.start_async(given, batch)
        requests.wait_all()
        return vectors


if __name__ == "__main__":
    folder, exported = Path(sys.argv[1]), Path(sys.argv[2])
    serve_encoder(lambda: OpenVINO(folder, exported, sys.argv[3], int(sys.argv[4])))
