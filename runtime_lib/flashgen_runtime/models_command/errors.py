"""What verbs raise beside the runtime's own errors.

ServingError
├── UsageError         the command cannot mean what it says: exit 2
└── AttentionError     something on this machine needs a person: exit 3
"""

from flashgen_runtime.errors import ServingError


class UsageError(ServingError):
    """The command cannot mean what it says."""


class AttentionError(ServingError):
    """Something on this machine needs a person."""
