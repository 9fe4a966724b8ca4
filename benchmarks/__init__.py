"""Measurements with their ceilings, peers side by side; each prints a table and, last, one JSON object."""
