"""One file per verb; each returns what `cli` prints."""
