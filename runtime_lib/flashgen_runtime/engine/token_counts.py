"""How often each token occurs in a request, kept up to date as it grows. Free of torch."""

from array import array

from flashgen_runtime.engine.request import Request


class TokenCounts:
    """The tokens of one request, each once, and how often each is in the completion: what penalties look at.

    A new token costs the same however long the request is. `Request.token_ids` only ever grows, also over a
    preemption; beams are requests of their own.

    Args:
        request: may already have a completion.
        with_prompt: whether tokens that only the prompt has are listed, with the count 0.
    """

    def __init__(self, request: Request, *, with_prompt: bool) -> None:
        self._request = request
        self._num_counted = request.num_prompt_tokens
        prompt = request.token_ids[: request.num_prompt_tokens] if with_prompt else []
        self._places = {token_id: place for place, token_id in enumerate(dict.fromkeys(prompt))}

        # Two arrays side by side, int64.
        self.token_ids = array("q", self._places)
        self.counts = array("q", bytes(8 * len(self._places)))

    def update(self) -> None:
        """Counts the tokens that came since the last call."""
        token_ids = self._request.token_ids
        for position in range(self._num_counted, len(token_ids)):
            self._count(token_ids[position])
        self._num_counted = len(token_ids)

    def _count(self, token_id: int) -> None:
        place = self._places.setdefault(token_id, len(self._places))
        if place == len(self.token_ids):
            self.token_ids.append(token_id)
            self.counts.append(0)
        self.counts[place] += 1
