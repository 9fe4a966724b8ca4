"""Token counts of one engine step, for the metrics."""

from flashgen_runtime import metrics
from flashgen_runtime.messages import Reply, RequestFailure, TextDelta, is_final
from flashgen_runtime.worker.open_requests import OpenRequest


class TokenCount:
    """Adds up one step's replies, so that a step costs two metric updates however many requests it serves."""

    def __init__(self) -> None:
        self._prompt = 0
        self._generated = 0

    def add(self, request: OpenRequest, reply: Reply) -> None:
        """Counts one reply; prompts count when their request finishes."""
        if isinstance(reply, RequestFailure):
            return
        if isinstance(reply, TextDelta):
            self._generated += reply.completion_tokens - request.completion_tokens[reply.index]
            request.completion_tokens[reply.index] = reply.completion_tokens
        if is_final(reply):
            self._prompt += reply.prompt_tokens

    def publish(self, model_id: str) -> None:
        metrics.generation_tokens_total.labels(model_id).inc(self._generated)
        metrics.prompt_tokens_total.labels(model_id).inc(self._prompt)
