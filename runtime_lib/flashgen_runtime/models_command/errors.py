"""What verbs raise beside the runtime's own errors.

ServingError
├── UsageError         the command cannot mean what it says: exit 2
└── AttentionError     something on this machine needs a person: exit 3
"""

from flashgen_runtime.errors import ServingError

# What a shell reports for a process that SIGINT ended.
EXIT_INTERRUPTED = 130


class UsageError(ServingError):
    """The command cannot mean what it says."""


class AttentionError(ServingError):
    """Something on this machine needs a person."""
