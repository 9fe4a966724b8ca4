"""Finds ports on this machine that nobody listens on."""

import socket
from contextlib import closing
from errno import EACCES

from flashgen.errors import UsageError

HOST = "127.0.0.1"


class Ports:
    """Hands out ports, each one once."""

    def __init__(self) -> None:
        self._taken: set[int] = set()

    def exactly(self, port: int) -> int:
        """`port`, which the user asked for; raises `UsageError` when it cannot be had."""
        if port in self._taken or not _is_free(port):
            raise UsageError(f"port {port} is in use", hint="another `--port`, or end the process that listens there")
        self._taken.add(port)
        return port

    def near(self, port: int) -> int:
        """`port`, or the next one above it that is free."""
        found = next(free for free in range(port, 2**16) if free not in self._taken and _is_free(free))
        self._taken.add(found)
        return found


def _is_free(port: int) -> bool:
    with closing(socket.socket()) as probe:
        # As servers do: a port in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            if error.errno == EACCES:
                raise UsageError(f"port {port} needs privileges", hint="ports from 1024 up do not") from error
            return False
    return True
