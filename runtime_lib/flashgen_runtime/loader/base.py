"""What loading a checkpoint gives."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A materialised model on its device, in eval mode, without gradients."""

    module: torch.nn.Module

    # The checkpoint's configuration, as transformers reads it.
    config: Any
    path: Path
    dtype: torch.dtype
    device: torch.device
    weight_bytes: int

    # What a quantised checkpoint was, of which these are the floats: "awq int4 g128".
    quantized_as: str = ""

    @property
    def precision(self) -> str:
        """How its linear layers run, where that is not all that `dtype` says."""
        return f"{self.quantized_as} as {str(self.dtype).removeprefix('torch.')}" if self.quantized_as else ""
