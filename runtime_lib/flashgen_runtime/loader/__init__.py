"""Reads checkpoints: `load_model(path, *, dtype, device) -> LoadedModel`."""
