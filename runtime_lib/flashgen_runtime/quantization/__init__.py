"""Checkpoints that are quantised already: what their files hold, one scheme per file, in one common form."""
