"""`/generate/`: a prompt in, the text after it out, without further ado."""

from collections.abc import Sequence

from fastapi import Request, Response
from pydantic import BaseModel, Field

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
        generation = generations[0]
        known: dict[str, object] = {
            "prompt": self._prompt,
            "response": generation.text,
            "model": self._head.model,
            "finish_reason": generation.finish_reason,
            "usage": usage_of(generations),
        }
        return {name: known[name] for name in self._outputs}

    def first_chunk(self, index: int) -> None:  # noqa: ARG002  # nothing precedes the text
        return None

    def chunk(self, index: int, text: str) -> object:  # noqa: ARG002  # there is one prompt
        return {"response": text}

    def last_chunk(self, index: int, finish_reason: str) -> object | None:  # noqa: ARG002  # there is one prompt
        return {"response": "", "finish_reason": finish_reason} if "finish_reason" in self._outputs else None

    def usage_chunk(self, generations: Sequence[Generation]) -> object | None:
        return {"response": "", "usage": usage_of(generations)} if "usage" in self._outputs else None


async def generate(
    request: Request, body: GenerateBody, *, api: str, hooks: Hooks, outputs: type[BaseModel] = Generated
) -> Response:
    """Continues a text, streamed or whole.

    Args:
        outputs: the answer has exactly this model's fields, of `prompt`, `response`, `model`, `finish_reason` and
            `usage`.
    """
    names = tuple(outputs.model_fields)
    return await answer(
        request,
        body,
        [Prompt(text=body.prompt)],
        api=api,
        hooks=hooks,
        id_prefix="gen",
        form=lambda head: _GenerateForm(head, prompt=body.prompt, outputs=names),
    )
