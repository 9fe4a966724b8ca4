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
