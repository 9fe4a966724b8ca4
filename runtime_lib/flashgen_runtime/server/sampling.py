"""The fields of a request that say how text is generated and delivered, whatever it continues."""

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from flashgen_runtime.errors import RequestError
from flashgen_runtime.messages import GenerationParams
from flashgen_runtime.server.fields import Body, RequestBody, unknown_fields

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
StopString = Annotated[str, Field(min_length=1, max_length=1024)]

MAX_CHOICES = 128
MAX_BEAMS = 16

# By token id, as text.
LogitBias = Annotated[
    dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]],
    Field(max_length=300),
]


class StreamOptions(Body):
    """Options of a streamed answer."""

    include_usage: bool | None = Field(None, description="Send one more chunk with the token counts before the end.")


# Those of sub-classes among them.
_INTEGERS = (
    *("max_tokens", "max_completion_tokens", "top_k", "seed", "n", "num_beams"),
    *("logprobs", "top_logprobs"),
)


class SamplingBody(RequestBody):
    """Base of the requests that generate text.

    A sub-class may narrow a field and lose the bounds that are written here: the worker checks them again.
    """

    max_tokens: Count | None = Field(
        None, description="Longest completion in tokens; by default what is left of the model's context."
    )
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(None, description="0 is greedy.")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="Sample among the most likely tokens that together have this probability."
    )
    top_k: Count | None = Field(None, description="Sample among that many most likely tokens.")
    min_p: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="Sample among the tokens that have at least this share of the most likely one's probability."
    )
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="Sample among the tokens of most typical surprise that together have this probability."
    )
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = Field(
        None, description="Above 1, tokens of the prompt and of the text so far become less likely."
    )
    presence_penalty: Penalty | None = Field(
        None, description="Taken from the logits of tokens that the text so far has."
    )
    frequency_penalty: Penalty | None = Field(
        None, description="Taken from the logits of tokens for each time that the text so far has them."
    )
    logit_bias: LogitBias | None = Field(None, description="By token id: added to the token's logit.")
    stop: StopString | Annotated[list[StopString], Field(max_length=4)] | None = Field(
        None, description="Where to end; not part of the text."
    )
    seed: Annotated[int, Field(ge=INT64_MIN, le=INT64_MAX)] | None = Field(
        None, description="The same seed gives the same text."
    )
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = Field(None, description="Number of choices; 1 by default.")
    num_beams: Annotated[int, Field(ge=1, le=MAX_BEAMS)] | None = Field(
        None, description="Above 1: beam search with so many beams, of which the best `n` are the choices."
    )
    length_penalty: Annotated[float, Field(ge=-5, le=5)] | None = Field(
        None, description="Beam search: above 0, longer texts rank higher; below 0, shorter ones."
    )
    stream: bool | None = Field(None, description="Answer with server-sent events.")
    stream_options: StreamOptions | None = None

    @field_validator(*_INTEGERS, mode="after", check_fields=False)
    @classmethod
    def _fit_into_a_message(cls, value: Any) -> Any:
        if isinstance(value, int) and not INT64_MIN <= value <= INT64_MAX:
            raise ValueError("is too large")
        return value

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> "SamplingBody":
        if self.stream_options is not None and not self.stream:
            message = "`stream_options` is only allowed when `stream` is true"
            raise RequestError(message, kind="invalid_request", param="stream_options")
        return self


def includes_usage(body: SamplingBody) -> bool:
    """Whether the caller wants the token counts at the end of the stream."""
    return body.stream_options is not None and body.stream_options.include_usage is True


def ignored_fields(body: SamplingBody) -> list[str]:
    """Names of fields without effect, those of the stream's options among them."""
    options = [] if body.stream_options is None else unknown_fields(body.stream_options)
    return [*unknown_fields(body), *(f"stream_options.{name}" for name in options)]


def params_of(body: SamplingBody) -> GenerationParams:
    """What the caller says about decoding, and nothing else."""
    return GenerationParams(
        max_tokens=body.max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        typical_p=body.typical_p,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=body.logit_bias,
        stop=_stop_strings(body.stop),
        seed=body.seed,
        n=body.n,
        num_beams=body.num_beams,
        length_penalty=body.length_penalty,
    )


def _stop_strings(stop: str | list[str] | None) -> tuple[str, ...] | None:
    if stop is None:
        return None
    return (stop,) if isinstance(stop, str) else tuple(stop)
