"""The worker process: a loop that feeds the engine and carries its outputs to the API servers."""
