"""One choice's way from tokens to text: detokenised piece by piece, cut at its stop strings. Free of torch."""

from collections.abc import Sequence

from flashgen_runtime.engine.stop_strings import StopScan, StopStrings
from flashgen_runtime.engine.tokenizer import Detokenizer


class ChoiceText:
    """Takes a choice's tokens in order and gives the text that they make certain.

    Args:
        detokenizer: at the prompt's end.
        stop: strings that end the text.
        eos_ids: tokens without text.
    """

    def __init__(self, detokenizer: Detokenizer, *, stop: tuple[str, ...], eos_ids: frozenset[int]) -> None:
        self._detokenizer = detokenizer
        self._stop_strings = StopStrings(stop)
        self._eos_ids = eos_ids

    def push(self, token_id: int, *, is_last: bool) -> StopScan:
        """The text that one more token brings; nothing may follow the last one, or a stop string."""
        text = "" if token_id in self._eos_ids else self._detokenizer.push(token_id)
        if is_last:
            text += self._detokenizer.flush()
        scan = self._stop_strings.push(text)
        if scan.is_stopped or not is_last:
            return scan
        return StopScan(scan.text + self._stop_strings.flush(), is_stopped=False)

    def push_all(self, token_ids: Sequence[int]) -> StopScan:
        """The text of a whole completion."""
        text = ""
        for position, token_id in enumerate(token_ids, start=1):
            scan = self.push(token_id, is_last=position == len(token_ids))
            text += scan.text
            if scan.is_stopped:
                return StopScan(text, is_stopped=True)
        return StopScan(text, is_stopped=False)
