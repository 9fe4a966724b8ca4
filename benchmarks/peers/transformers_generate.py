"""transformers: its continuous batching, `generate` on a padded batch, and `generate` one request after another.

Run by `benchmarks.systems`: python -m benchmarks.peers.transformers_generate FOLDER DTYPE MODE THREADS
"""

import sys
import time
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from benchmarks.models import ModelShape, model_folder
from benchmarks.peers.environment import TORCH, environment
from benchmarks.protocol import Generated, serve_generator

PACKAGES = ["transformers[serving]==5.23.0", "accelerate"]

# Places in the KV cache for 12,288 tokens, and a token budget as ours; on a CPU both have to be given.
PAGE_SIZE = 32
NUM_BLOCKS = 384
MAX_BATCH_TOKENS = 512


def continuous(shape: ModelShape, precision: str, threads: int) -> list[str]:
    """The command line of its continuous batching."""
    return _command(shape, precision, "continuous", threads)


def padded(shape: ModelShape, precision: str, threads: int) -> list[str]:
    """The command line of `generate` on all requests, padded to the longest prompt, run to the longest output."""
    return _command(shape, precision, "padded", threads)


def one_by_one(shape: ModelShape, precision: str, threads: int) -> list[str]:
    """The command line of `generate` on one request after another."""
    return _command(shape, precision, "one_by_one", threads)


def serve_command(shape: ModelShape, precision: str, port: int) -> list[str]:
    """The command line of `transformers serve` with continuous batching, which speaks OpenAI's API."""
    binary = environment("transformers", [TORCH], PACKAGES) / "transformers"
    sizes = {"block-size": PAGE_SIZE, "num-blocks": NUM_BLOCKS, "max-batch-tokens": MAX_BATCH_TOKENS}
    options = [part for name, value in sizes.items() for part in (f"--cb-{name}", str(value))]
    model = str(model_folder(shape))
    dtype = {"fp32": "float32", "bf16": "bfloat16"}[precision]
    serve = [str(binary), "serve", model, "--continuous-batching", "--device", "cpu", "--dtype", dtype, *options]
    return [*serve, "--host", "127.0.0.1", "--port", str(port)]


def _command(shape: ModelShape, precision: str, mode: str, threads: int) -> list[str]:
    python = str(environment("transformers", [TORCH], PACKAGES) / "python")
    dtype = {"fp32": "float32", "bf16": "bfloat16"}[precision]
    module = "benchmarks.peers.transformers_generate"
    return [python, "-m", module, str(model_folder(shape)), dtype, mode, str(threads)]


class Transformers:
    """A `Generator`; `mode` is "continuous", "padded" or "one_by_one"."""

    def __init__(self, folder: str, dtype: str, mode: str, threads: int) -> None:
        # Only the peer's environment has to have them.
        import torch

        transformers: Any = import_module("transformers")
        torch.set_num_threads(threads)
        transformers.logging.set_verbosity_error()
        self._torch: Any = torch
        self._transformers = transformers
        self._mode = mode
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        self._num_requests = 0
        versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
        self.settings = f"{versions}, {dtype}, {mode.replace('_', ' ')}, {threads} threads"
        if mode == "continuous":
            self.settings += f", page {PAGE_SIZE}, {NUM_BLOCKS} blocks, {MAX_BATCH_TOKENS} tokens per batch"
            self._manager = self._start_manager()

    def generate(self, prompts: Sequence[Sequence[int]], output_lengths: Sequence[int]) -> Generated:
        started = time.perf_counter()
        with self._torch.inference_mode():
            num_tokens = getattr(self, f"_{self._mode}")(prompts, output_lengths)
        return Generated(seconds=time.perf_counter() - started, num_tokens=num_tokens)

    def _start_manager(self) -> Any:
        config = self._transformers.GenerationConfig(eos_token_id=-1, do_sample=False, max_new_tokens=256)
        batching = self._transformers.ContinuousBatchingConfig(
            page_size=PAGE_SIZE, num_blocks=NUM_BLOCKS, max_batch_tokens=MAX_BATCH_TOKENS, allow_block_sharing=False
        )
        manager = self._model.init_continuous_batching(generation_config=config, continuous_batching_config=batching)
        manager.start()
        return manager

    def _continuous(self, prompts: Sequence[Sequence[int]], output_lengths: Sequence[int]) -> list[int]:
        places = {}
        for place, (prompt, length) in enumerate(zip(prompts, output_lengths, strict=True)):
            request_id = f"request-{self._num_requests}"
            self._num_requests += 1
            places[request_id] = place
            self._manager.add_request(list(prompt), request_id=request_id, max_new_tokens=length)
        num_tokens = [0] * len(prompts)
        while places:
            result = self._manager.get_result(timeout=1)
            if result is None:
                # It ends its thread without an exception here.
                if not self._manager.is_running():
                    raise RuntimeError("continuous batching stopped")
            elif result.is_finished():
                num_tokens[places.pop(result.request_id)] = len(result.generated_tokens)
        return num_tokens

    def _padded(self, prompts: Sequence[Sequence[int]], output_lengths: Sequence[int]) -> list[int]:
        longest = max(map(len, prompts))
        ids = self._torch.zeros(len(prompts), longest, dtype=self._torch.int64)
        mask = self._torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = self._torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        generated = self._generate(ids, mask, max(output_lengths)) - longest
        # Tokens beyond a request's length are computed and thrown away.
        return [min(length, generated) for length in output_lengths]

    def _one_by_one(self, prompts: Sequence[Sequence[int]], output_lengths: Sequence[int]) -> list[int]:
        num_tokens = []
        for prompt, length in zip(prompts, output_lengths, strict=True):
            ids = self._torch.tensor([prompt])
            num_tokens.append(self._generate(ids, self._torch.ones_like(ids), length) - len(prompt))
        return num_tokens

    def _generate(self, ids: Any, mask: Any, length: int) -> int:
        """Tokens of a row, the prompt included."""
        output = self._model.generate(
            ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=length,
            min_new_tokens=length,
            eos_token_id=None,
            pad_token_id=0,
        )
        return int(output.shape[1])


if __name__ == "__main__":
    serve_generator(lambda: Transformers(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
