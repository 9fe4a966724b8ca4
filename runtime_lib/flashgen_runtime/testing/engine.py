"""An engine without a model: it repeats the prompt's characters, one per step."""

import time
from itertools import islice

from flashgen_runtime.engine.base import EngineOutput, EngineRequest
from flashgen_runtime.engine.stop_strings import StopStrings
from flashgen_runtime.messages import FinishReason, TokenLogprob
from flashgen_runtime.testing.tokenizer import CharacterTokenizer


class FakeEngine:
    """Implements `engine.base.Engine` by a simple law.

    A request's tokens are its prompt's, from the first, again and again until `max_tokens`; every step gives each
    running request one of them. Its second choice begins with the prompt's second token, and so on. The log
    probability of every token is -0.5; the likeliest in its place are the tokens from it on, each 1 below the last.
    Stop strings and `abort` work as in the real engine; `temperature` and its like change nothing.

    Args:
        max_context: longest prompt plus completion.
        max_num_seqs: requests that run together; the others wait.
        delay_seconds: how long a step takes.
        fail_after: steps after which `step` raises `RuntimeError`.
    """

    def __init__(
        self,
        *,
        max_context: int = 4096,
        max_num_seqs: int = 256,
        delay_seconds: float = 0.0,
        fail_after: int | None = None,
    ) -> None:
        self._max_context = max_context
        self._max_num_seqs = max_num_seqs
        self._delay_seconds = delay_seconds
        self._fail_after = fail_after
        self._requests: dict[str, _Running] = {}
        self.num_steps = 0

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    @property
    def max_context(self) -> int:
        return self._max_context

    @property
    def request_ids(self) -> tuple[str, ...]:
        """Requests that hold something, in order of arrival."""
        return tuple(self._requests)

    def add_request(self, request: EngineRequest) -> None:
        self._requests[request.request_id] = _Running(request)

    def close(self) -> None:
        assert not self._requests, "nobody closes an engine that has work"

    def step(self) -> list[EngineOutput]:
        if self.num_steps == self._fail_after:
            raise RuntimeError(f"the fake engine fails after {self._fail_after} steps")
        self.num_steps += 1
        if self._delay_seconds:
            time.sleep(self._delay_seconds)
        running = list(islice(self._requests.values(), self._max_num_seqs))
        outputs = [output for request in running for output in request.next_outputs()]
        for output in outputs:
            if output.finish_reason is not None and output.open_choices == 0:
                del self._requests[output.request_id]
        return outputs

    def abort(self, request_id: str) -> None:
        self._requests.pop(request_id, None)


class _Running:
    """One request and how far it is."""

    def __init__(self, request: EngineRequest) -> None:
        self._request = request
        self._open = [_Choice(request, index) for index in range(request.params.n)]

    def next_outputs(self) -> list[EngineOutput]:
        """One more character of every choice that is open."""
        outputs = []
        for choice in tuple(self._open):
            output = choice.next_output()
            if output.finish_reason is not None:
                self._open.remove(choice)
            outputs.append(output._replace(open_choices=len(self._open)))
        return outputs


class _Choice:
    """One choice of a request and how far it is."""

    def __init__(self, request: EngineRequest, index: int) -> None:
        self._request = request
        self._index = index
        self._text = CharacterTokenizer().decode(request.prompt_ids)
        self._stop_strings = StopStrings(request.params.stop)
        self._num_generated = 0

    def next_output(self) -> EngineOutput:
        """One more character."""
        place = self._index + self._num_generated
        self._num_generated += 1
        scan = self._stop_strings.push(self._character(place))
        if scan.is_stopped:
            return self._output(scan.text, "stop", place)
        if self._num_generated == self._request.params.max_tokens:
            return self._output(scan.text + self._stop_strings.flush(), "length", place)
        return self._output(scan.text, None, place)

    def _output(self, text: str, finish_reason: FinishReason | None, place: int) -> EngineOutput:
        return EngineOutput(
            request_id=self._request.request_id,
            text=text,
            finish_reason=finish_reason,
            prompt_tokens=len(self._request.prompt_ids),
            completion_tokens=self._num_generated,
            index=self._index,
            logprobs=self._logprobs(place),
        )

    def _character(self, place: int) -> str:
        return self._text[place % len(self._text)]

    def _logprobs(self, place: int) -> list[TokenLogprob]:
        """Of the character at `place`, if the request asks."""
        number = self._request.params.logprobs
        if number is None:
            return []
        characters = [self._character(place + rank) for rank in range(number)]
        top = [(character, ord(character), -0.5 - rank) for rank, character in enumerate(characters)]
        character = self._character(place)
        return [TokenLogprob(character, ord(character), -0.5, top)]
