"""Continuous batching over a paged KV cache.

Shapes: `B` sequences, `T` tokens of a flattened batch, `H` attention heads, `D` head size, `V` vocabulary.
Importing this package, `engine.base`, `engine.request` or `engine.sampling_params` does not import torch.
"""
