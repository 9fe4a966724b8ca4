"""Messages to frames and back."""

from contextlib import suppress

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flashgen_runtime.errors import FrameError
from flashgen_runtime.messages import (
    Cancel,
    Embeddings,
    EmbedRequest,
    GenerateRequest,
    GenerationParams,
    Hello,
    ModelStatus,
    RepliesLost,
    RequestFailure,
    StepOutputs,
    TextDelta,
    TokenLogprob,
    WorkerStatus,
    is_final,
)
from flashgen_runtime.transport import codec

TO_WORKER = [
    Hello(),
    GenerateRequest(request_id="r", model="m", prompt="text", params=GenerationParams(stop=("a", "b"), seed=3)),
    GenerateRequest(request_id="r", model="m", prompt=[1, 2, 3]),
    GenerateRequest(request_id="r", model="m", messages=[{"role": "user", "content": [{"type": "text", "text": "é"}]}]),
    GenerateRequest(
        request_id="r", model="m", prompt="text", params=GenerationParams(logit_bias={"5": -1.5}, n=2), logprobs=3
    ),
    EmbedRequest(request_id="r", model="m", inputs=["one", "two"]),
    EmbedRequest(request_id="r", model="m", inputs=[[1], [2, 3]]),
    Cancel(request_id="r"),
]
FROM_WORKER = [
    WorkerStatus(epoch="e", state="ready", models=(ModelStatus(id="m", aliases=("n",), max_context=9),)),
    StepOutputs(epoch="e", replies=[TextDelta(request_id="r", text="\0\n😀", finish_reason="stop")]),
    StepOutputs(
        epoch="e",
        replies=[
            TextDelta(
                request_id="r", index=1, open_choices=2, logprobs=[TokenLogprob("a", 97, -0.5, [("b", 98, -1.0)])]
            ),
            TextDelta(request_id="r", logprobs=[TokenLogprob("\ufffd", 5, float("-inf"), [], b"\xc3")]),
        ],
    ),
    StepOutputs(epoch="e", replies=[Embeddings(request_id="r", vectors=[b"\x00\x01"], prompt_tokens=2)]),
    StepOutputs(epoch="e", replies=[RequestFailure(request_id="r", kind="overloaded", message="no", param="p")]),
    RepliesLost(),
]


@pytest.mark.parametrize("message", TO_WORKER, ids=repr)
def test_messages_to_a_worker_survive_the_wire(message):
    """Every kind of message to a worker is the same after encoding and decoding."""
    frame = codec.encode(message)

    assert codec.decode_to_worker(frame) == message


@pytest.mark.parametrize("message", FROM_WORKER, ids=repr)
def test_messages_from_a_worker_survive_the_wire(message):
    """Every kind of message from a worker is the same after encoding and decoding."""
    frame = codec.encode(message)

    assert codec.decode_from_worker(frame) == message


@given(st.binary(max_size=200))
@example(b"")
@example(b"\x91" * 100_000)
@example(b"\x96\xafGenerateRequest\xa1r\xa1m\xc0\x91\x81\xa1a" + b"\x91" * 100_000)
@example(codec.encode(TO_WORKER[1])[:-3])
@example(msgspec.msgpack.encode(["Cancel", 7]))
@example(msgspec.msgpack.encode(["FromTheFuture"]))
@example(b"\x92\xa6Cancel\xa2\xff\xfe")
def test_any_bytes_are_a_message_or_a_frame_error(frame):
    """Whatever arrives, decoding raises nothing but `FrameError`."""
    for decode in (codec.decode_to_worker, codec.decode_from_worker):
        with suppress(FrameError):
            decode(frame)


def test_fields_of_a_newer_version_are_ignored():
    """A worker understands an API server whose messages have one field more."""
    frame = msgspec.msgpack.encode(["Cancel", "r", "field of a later version"])

    assert codec.decode_to_worker(frame) == Cancel(request_id="r")


@pytest.mark.parametrize(
    ("finish_reason", "open_choices", "is_last"),
    [(None, 0, False), (None, 1, False), ("stop", 1, False), ("stop", 0, True)],
)
def test_a_request_ends_with_its_last_choice(finish_reason, open_choices, is_last):
    """Other choices that end first leave it open."""
    assert is_final(TextDelta(request_id="r", finish_reason=finish_reason, open_choices=open_choices)) == is_last


def test_text_that_is_not_unicode_is_refused_when_sent():
    """A lone surrogate, which JSON can carry and UTF-8 cannot, is a frame error and not a crash."""
    request = GenerateRequest(request_id="r", model="m", prompt="\ud800")

    with pytest.raises(FrameError, match="cannot be written"):
        codec.encode(request)


def test_a_frame_beyond_the_limit_is_refused_when_sent(monkeypatch):
    """The sender learns that its message is too large, before the receiver would drop the connection."""
    monkeypatch.setattr(codec, "MAX_FRAME_BYTES", 100)

    with pytest.raises(FrameError, match="larger than the limit of 100"):
        codec.encode(GenerateRequest(request_id="r", model="m", prompt="x" * 101))
