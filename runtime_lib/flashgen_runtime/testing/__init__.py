"""Fakes with simple laws, for the tests of generated projects and for benchmarks. Never imports torch."""
