"""`python -m flashgen_runtime models …`, which `flashgen models …` executes: one module per group of verbs.

Results go to stdout, everything else to stderr. Nothing here imports torch before a verb needs it.
"""
