"""`/generate/`: a prompt in, the text after it out, without further ado."""

from collections.abc import Sequence

from fastapi import Request, Response
from pydantic import BaseModel, Field

from flashgen_runtime.errors import RequestError
from flashgen_runtime.messages import TokenLogprob
from flashgen_runtime.server.generation import AnswerHead, Prompt, answer
from flashgen_runtime.server.hooks import Generation, Hooks
from flashgen_runtime.server.sampling import SamplingBody
from flashgen_runtime.server.usage import usage_of


class GenerateBody(SamplingBody):
    """A text to be continued."""

    prompt: str = Field(description="The text to be continued.")


class Generated(BaseModel):
    """The answer of an api that declares no outputs of its own."""

    prompt: str
    response: str


class _GenerateForm:
    """Writes just the declared fields; a stream brings the response piece by piece."""

    def __init__(self, head: AnswerHead, *, prompt: str, outputs: Sequence[str]) -> None:
        self._head = head
        self._prompt = prompt
        self._outputs = outputs

    def whole(self, generations: Sequence[Generation]) -> object:
        generation = generations[0]  # the first choice
        known: dict[str, object] = {
            "prompt": self._prompt,
            "response": generation.text,
            "responses": [one.text for one in generations],
            "model": self._head.model,
            "finish_reason": generation.finish_reason,
            "usage": usage_of(generations),
        }
        return {name: known[name] for name in self._outputs}

    def first_chunk(self, index: int) -> None:  # noqa: ARG002  # nothing precedes the text
        return None

    def chunk(self, index: int, text: str, logprobs: Sequence[TokenLogprob]) -> object:  # noqa: ARG002  # not declared
        return {**self._choice(index), "response": text}

    def last_chunk(self, index: int, finish_reason: str) -> object | None:
        if "finish_reason" not in self._outputs:
            return None
        return {**self._choice(index), "response": "", "finish_reason": finish_reason}

    def usage_chunk(self, generations: Sequence[Generation]) -> object | None:
        return {"response": "", "usage": usage_of(generations)} if "usage" in self._outputs else None

    def _choice(self, index: int) -> dict[str, object]:
        """Which choice a chunk belongs to, where there may be several."""
        return {"index": index} if "responses" in self._outputs else {}


async def generate(
    request: Request, body: GenerateBody, *, api: str, hooks: Hooks, outputs: type[BaseModel] = Generated
) -> Response:
    """Continues a text, streamed or whole.

    Args:
        outputs: the answer has exactly this model's fields, of `prompt`, `response`, `responses`, `model`,
            `finish_reason` and `usage`. Only with `responses` may there be several choices.
    """
    names = tuple(outputs.model_fields)
    if "responses" not in names:
        body = _with_one_choice(body)
    return await answer(
        request,
        body,
        [Prompt(text=body.prompt)],
        api=api,
        hooks=hooks,
        id_prefix="gen",
        form=lambda head: _GenerateForm(head, prompt=body.prompt, outputs=names),
    )


def _with_one_choice(body: GenerateBody) -> GenerateBody:
    """The body with `n: 1`, whatever the spec's default is; raises `RequestError` for one that wants more."""
    if body.n is not None and body.n > 1:
        message = "`n` must be 1: this api answers with one `response`, not with `responses`"
        raise RequestError(message, kind="invalid_request", param="n")
    return body.model_copy(update={"n": 1})
