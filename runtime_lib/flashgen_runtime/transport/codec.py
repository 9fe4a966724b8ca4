"""Messages to bytes and back: msgpack arrays with the class name in front; `FrameError` for what is not a message."""

import msgspec

from flashgen_runtime.errors import FrameError
from flashgen_runtime.messages import FromWorker, ToWorker

# Room for 2048 vectors of 4096 dimensions, twice. ZeroMQ disconnects a peer that sends more before it costs memory.
MAX_FRAME_BYTES = 64 << 20

_encoder = msgspec.msgpack.Encoder()
_to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
_from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)

# Beside msgspec's own: deep nesting, strings that are not UTF-8, time stamps out of range.
_MALFORMED = (msgspec.MsgspecError, RecursionError, ValueError, OverflowError)


def encode(message: ToWorker | FromWorker) -> bytes:
    """The frame of a message; raises `FrameError` when it exceeds `MAX_FRAME_BYTES` or holds what msgpack cannot."""
    try:
        frame = _encoder.encode(message)
    except (*_MALFORMED, TypeError) as error:
        raise FrameError(f"cannot be written: {error}", num_bytes=0) from error
    if len(frame) > MAX_FRAME_BYTES:
        raise FrameError(f"is larger than the limit of {MAX_FRAME_BYTES}", num_bytes=len(frame))
    return frame


def decode_to_worker(frame: bytes) -> ToWorker:
    """The message that an API server sent; raises `FrameError`."""
    try:
        return _to_worker.decode(frame)
    except _MALFORMED as error:
        raise FrameError(f"is not a message to a worker: {error}", num_bytes=len(frame)) from error


def decode_from_worker(frame: bytes) -> FromWorker:
    """The message that a worker sent; raises `FrameError`."""
    try:
        return _from_worker.decode(frame)
    except _MALFORMED as error:
        raise FrameError(f"is not a message from a worker: {error}", num_bytes=len(frame)) from error
