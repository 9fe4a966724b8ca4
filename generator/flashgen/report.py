"""What a command gives to `cli`, which prints it."""

from typing import NamedTuple


class Report(NamedTuple):
    """Lines for stdout, without their line ends, and the exit code of the process."""

    lines: tuple[str, ...]
    exit_code: int = 0

    # Lines for stderr: what the user should know although nothing is wrong.
    notices: tuple[str, ...] = ()
