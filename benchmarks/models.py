"""The two models every engine is measured with: their shapes, where their files lie, and what a token costs.

The weights are random (seed 0), so nothing is downloaded and nothing is learned: speed depends on shapes alone.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "flashgen-bench"


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder-only transformer with grouped-query attention and a gated MLP."""

    name: str
    family: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int

    # The head is the embedding.
    is_tied: bool

    # Entries of the tokenizer, at most `vocab_size`.
    tokenizer_size: int
    max_context: int = 4096

    @property
    def layer_weights(self) -> int:
        """Matrix entries of all layers; norms are left out."""
        attention = self.hidden_size * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)
        return self.num_layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    @property
    def head_weights(self) -> int:
        return self.hidden_size * self.vocab_size

    def decode_bytes(self, weight_bytes: float, head_bytes: float, *, kv_bytes: float, context: float) -> float:
        """Bytes read for one step with `context` tokens of all its sequences in the KV cache."""
        kv = 2 * self.num_layers * self.num_kv_heads * self.head_dim * kv_bytes
        return self.layer_weights * weight_bytes + self.head_weights * head_bytes + kv * context

    def operations(self, tokens: int, *, sampled: int, attended: float) -> float:
        """Multiplications and additions of `tokens` rows, `sampled` of which get logits.

        `attended`: how many pairs of a token and one that it sees, over all tokens.
        """
        attention = 4 * self.num_layers * self.num_heads * self.head_dim * attended
        return 2 * self.layer_weights * tokens + 2 * self.head_weights * sampled + attention


S = ModelShape(
    name="S",
    family="llama",
    num_layers=8,
    hidden_size=512,
    num_heads=8,
    num_kv_heads=4,
    head_dim=64,
    intermediate_size=1536,
    vocab_size=8192,
    is_tied=False,
    tokenizer_size=8192,
)

# The shape of Qwen3-0.6B.
M = ModelShape(
    name="M",
    family="qwen3",
    num_layers=28,
    hidden_size=1024,
    num_heads=16,
    num_kv_heads=8,
    head_dim=128,
    intermediate_size=3072,
    vocab_size=151_936,
    is_tied=True,
    tokenizer_size=32_768,
)

# The shape of Qwen3-1.7B.
L = ModelShape(
    name="L",
    family="qwen3",
    num_layers=28,
    hidden_size=2048,
    num_heads=16,
    num_kv_heads=8,
    head_dim=128,
    intermediate_size=6144,
    vocab_size=151_936,
    is_tied=True,
    tokenizer_size=32_768,
)

SHAPES = {shape.name: shape for shape in (S, M, L)}


def model_folder(shape: ModelShape) -> Path:
    """The checkpoint: bf16 safetensors, configuration and tokenizer; made on the first call (a minute for M)."""
    folder = CACHE / "models" / shape.name
    if not (folder / "model.safetensors").exists():
        subprocess.run([sys.executable, "-m", "benchmarks.make_model", shape.name, str(folder)], cwd=ROOT, check=True)
    return folder
