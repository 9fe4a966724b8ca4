"""OpenVINO GenAI: its continuous batching pipeline on models exported by optimum-intel.

Run by `benchmarks.systems`: python -m benchmarks.peers.openvino_genai FOLDER THREADS
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.models import ModelShape, model_folder
from benchmarks.peers.environment import TORCH, environment, run
from benchmarks.protocol import Generated, TokenCounter, serve_generator

# The task's own words for the precision of weights; what it computes in is the processor's best, see `settings`.
WEIGHT_FORMATS = {
    "bf16": ["fp16"],
    "int8": ["int8"],
    "int4": ["int4", "--group-size", "64", "--ratio", "1.0", "--sym"],
}


def command(shape: ModelShape, precision: str, threads: int) -> list[str]:
    """The child's command line; installs and exports first (half a minute to two, once)."""
    folder = model_folder(shape)
    exported = folder.with_name(f"{shape.name}-openvino-{precision}")
    binaries = openvino_environment()
    if not exported.exists():
        partial = exported.with_suffix(".partial")
        export = [str(binaries / "optimum-cli"), "export", "openvino", "-m", str(folder)]
        run(
            [
                *export,
                "--task",
                "text-generation-with-past",
                "--weight-format",
                *WEIGHT_FORMATS[precision],
                str(partial),
            ]
        )
        partial.rename(exported)
    return [str(binaries / "python"), "-m", "benchmarks.peers.openvino_genai", str(exported), str(threads)]


def openvino_environment() -> Path:
    """Its packages; torchvision comes along and breaks the export if it does not fit torch."""
    packages = ["optimum-intel[openvino]==2.2.0", "openvino-genai==2026.4.1.0", "nncf==3.4.0"]
    return environment("openvino", [TORCH], packages, without=["torchvision"])


class OpenVINOGenAI:
    """A `Generator`; token counts come from its own results."""

    def __init__(self, folder: Path, threads: int) -> None:
        # Only the peer's environment has them.
        import openvino  # type: ignore[import-not-found]  # in the peer's environment
        import openvino_genai  # type: ignore[import-not-found]  # as above

        self._openvino: Any = openvino
        self._genai: Any = openvino_genai
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = 512
        scheduler.max_num_seqs = 64
        scheduler.cache_size = 2
        scheduler.dynamic_split_fuse = True
        scheduler.enable_prefix_caching = False
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            str(folder), scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads}
        )
        properties = ["INFERENCE_PRECISION_HINT", "KV_CACHE_PRECISION", "DYNAMIC_QUANTIZATION_GROUP_SIZE"]
        core = openvino.Core()
        defaults = ", ".join(f"{name.lower()} {_text(core.get_property('CPU', name))}" for name in properties)
        self.settings = f"openvino_genai {openvino_genai.__version__}, {threads} threads, defaults: {defaults}"
        self._num_requests = 0

    def generate(self, prompts: Sequence[Sequence[int]], output_lengths: Sequence[int]) -> Generated:
        """Adds all requests, then steps until they are finished."""
        import numpy as np

        counter = TokenCounter(len(prompts))
        handles = []
        for prompt, length in zip(prompts, output_lengths, strict=True):
            config = self._genai.GenerationConfig()
            config.max_new_tokens = length
            config.min_new_tokens = length
            config.ignore_eos = True
            # The models have none; without one it takes -1 and refuses that.
            config.set_eos_token_id(0)
            config.do_sample = False
            ids = self._openvino.Tensor(np.array([prompt], dtype=np.int64))
            handles.append(self._pipeline.add_request(self._num_requests, ids, config))
            self._num_requests += 1
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            for request, handle in enumerate(handles):
                if handle.can_read():
                    outputs = handle.read()
                    counter.add(request, sum(len(output.generated_ids) for output in outputs.values()))
        return counter.result()


def _text(value: Any) -> str:
    """A property's value; types print as `<Type: …>`."""
    return str(value.get_type_name()) if hasattr(value, "get_type_name") else str(value)


if __name__ == "__main__":
    serve_generator(lambda: OpenVINOGenAI(Path(sys.argv[1]), int(sys.argv[2])))
