"""One file per task kind, and the registry that finds it."""
