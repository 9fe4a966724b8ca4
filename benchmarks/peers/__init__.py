"""One file per peer: how it is installed, fed and run."""
