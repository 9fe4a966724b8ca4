"""What steps cost by their number of rows, as measured while they run. Free of torch."""

# What a row more costs of the shortest step, before it has been measured.
ASSUMED_ROW_COST = 0.08

# How much a new measurement counts in a moving average; the first of a kind counts against what was assumed, so that
# one that was disturbed does not rule out that there is a second.
WEIGHT = 0.2


class StepCosts:
    """Moving averages of the seconds of steps that only decode, and of guessing."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._seconds_per_guessed = 0.0

    @property
    def is_known(self) -> bool:
        """Whether any step has been measured."""
        return bool(self._seconds)

    def note_step(self, num_rows: int, seconds: float) -> None:
        before = self._at(num_rows) if self._seconds else seconds
        self._seconds[num_rows] = before + WEIGHT * (seconds - before)

    def note_guesses(self, num_tokens: int, seconds: float) -> None:
        """Guesses of at most `num_tokens` tokens for all requests that wanted some took so long."""
        per_token = seconds / num_tokens
        before = self._seconds_per_guessed or per_token
        self._seconds_per_guessed = before + WEIGHT * (per_token - before)

    def relative(self, num_running: int, *, num_rows: int, num_guessed: int) -> float:
        """A step of `num_rows` rows and the guessing before it, over one with a row for each running request."""
        return (self._at(num_rows) + num_guessed * self._seconds_per_guessed) / self._at(num_running)

    def _at(self, num_rows: int) -> float:
        """On the line through the two measurements around `num_rows`."""
        below = max((rows for rows in self._seconds if rows <= num_rows), default=None)
        above = min((rows for rows in self._seconds if rows >= num_rows), default=None)
        if below is None:
            assert above is not None, "something has been measured"
            return self._seconds[above]
        if above is None:
            shortest = self._seconds[min(self._seconds)]
            return self._seconds[below] + ASSUMED_ROW_COST * shortest * (num_rows - below)
        if above == below:
            return self._seconds[below]
        share = (num_rows - below) / (above - below)
        return self._seconds[below] + share * (self._seconds[above] - self._seconds[below])
