"""ONNX Runtime: the encoder exported, its attention and norms fused by its own optimizer; int8 by dynamic quantization.

Run by `benchmarks.systems`: python -m benchmarks.peers.onnx_runtime FOLDER PRECISION THREADS
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.models import CACHE, ROOT
from benchmarks.peers.environment import TORCH, environment, run
from benchmarks.protocol import serve_encoder

PACKAGES = ["onnxruntime==1.31.1", "onnx==1.23.2", "onnxscript==0.7.2", "transformers==5.23.0"]
MODULE = "benchmarks.peers.onnx_runtime"


def command(folder: Path, precision: str, threads: int) -> list[str]:
    """The child's command line; installs and exports first."""
    python = str(environment("onnxruntime", [TORCH], PACKAGES) / "python")
    exported = CACHE / "models" / f"{folder.name}-onnx"
    if not (exported / f"{precision}.onnx").exists():
        run(["env", f"PYTHONPATH={ROOT}", python, "-m", MODULE, "export", str(folder), str(exported)])
    return [python, "-m", MODULE, "serve", str(folder), str(exported / f"{precision}.onnx"), str(threads)]


def export(folder: Path, exported: Path) -> None:
    """Writes `fp32.onnx` and `int8.onnx`."""
    # Only the peer's environment has them.
    import torch

    transformers: Any = import_module("transformers")
    optimizer: Any = import_module("onnxruntime.transformers.optimizer")
    quantization: Any = import_module("onnxruntime.quantization")
    exported.mkdir(parents=True, exist_ok=True)
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    plain = exported / "plain.onnx"
    names = ["input_ids", "attention_mask", "token_type_ids"]
    example = torch.ones(2, 8, dtype=torch.int64)

    class Graph(torch.nn.Module):
        """The encoder with its arguments by name; by position it takes others."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder = model

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
            return self.encoder(**given).last_hidden_state

    torch.onnx.export(
        Graph(),
        (example, example, torch.zeros_like(example)),
        str(plain),
        input_names=names,
        output_names=["last_hidden_state"],
        dynamic_axes={name: {0: "batch", 1: "tokens"} for name in [*names, "last_hidden_state"]},
        dynamo=False,
    )
    config = model.config
    fused = optimizer.optimize_model(
        str(plain), model_type="bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size
    )
    print(fused.get_fused_operator_statistics(), file=sys.stderr)
    fused.save_model_to_file(str(exported / "fp32.onnx"))
    quantization.quantize_dynamic(
        str(exported / "fp32.onnx"),
        str(exported / "int8.onnx"),
        # One scale per tensor and an int8 embedding, its defaults, are no faster and lose a fifth of a cosine.
        per_channel=True,
        op_types_to_quantize=["MatMul", "Attention"],
        # The types behind operators of its own domain are not inferred: 1 is float.
        extra_options={"DefaultTensorType": 1},
    )


class OnnxRuntime:
    """A `TextEncoder`."""

    def __init__(self, folder: Path, file: Path, threads: int) -> None:
        self._batches: Any = import_module("benchmarks.peers.padded_batches")
        runtime: Any = import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._names = {entry.name for entry in self._session.get_inputs()}
        self._tokenizer = self._batches.load_tokenizer(folder)
        precision = f"{file.stem}, fused by its optimizer, sorted, batches of {self._batches.BATCH_SIZE} padded"
        self.settings = f"onnxruntime {runtime.__version__}, {precision}, {threads} threads"

    def encode(self, texts: Sequence[str]) -> list[bytes]:
        vectors = [b""] * len(texts)
        for places, inputs in self._batches.padded_batches(self._tokenizer, texts):
            given = {name: values for name, values in inputs.items() if name in self._names}
            (hidden,) = self._session.run(["last_hidden_state"], given)
            for place, vector in zip(places, self._batches.pooled(hidden, inputs["attention_mask"]), strict=True):
                vectors[place] = vector
        return vectors


if __name__ == "__main__":
    if sys.argv[1] == "export":
        export(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        serve_encoder(lambda: OnnxRuntime(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])))
