"""Carries messages between API servers and workers; never drops one silently."""
