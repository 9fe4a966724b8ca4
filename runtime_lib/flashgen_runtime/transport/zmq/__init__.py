"""The transport between processes and hosts: ZeroMQ over TCP.

A worker binds a ROUTER that refuses what it cannot queue (`ROUTER_MANDATORY`, finite high-water marks). An API server
has one DEALER per worker, says hello on every connection, and sends requests only after the answer. Both beat, so that
a host that vanished is noticed; a process that ends closes its socket, and the other side's monitor says so at once.
"""

from flashgen_runtime.transport.zmq.connection import ZmqWorkerConnection
from flashgen_runtime.transport.zmq.endpoint import ZmqWorkerEndpoint

__all__ = ["ZmqWorkerConnection", "ZmqWorkerEndpoint"]
