"""How one request is decoded, complete and checked; merges the three sources that say so."""

from dataclasses import dataclass

from flashgen_runtime.errors import RequestError
from flashgen_runtime.messages import GenerationParams

# What each of these is when it does nothing; beam search sets them, since it draws nothing.
_NOT_SAMPLING: dict[str, object] = {"temperature": 0.0, "top_p": 1.0, "top_k": None, "min_p": 0.0, "typical_p": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Complete settings of one request; validated when built.

    Penalties and biases change the logits, then temperature, top_k, top_p, min_p and typical_p apply in this order, as
    in transformers. With more than one beam, temperature and the four filters are not read.
    """

    max_tokens: int

    # 0 is greedy.
    temperature: float = 1.0
    top_p: float = 1.0

    # `None` keeps the whole vocabulary.
    top_k: int | None = None

    # Share of the best token's probability that a token must have.
    min_p: float = 0.0

    # Probability of the tokens kept, those nearest to the expected information first.
    typical_p: float = 1.0

    # Divides the logits of tokens of prompt and completion that are positive, multiplies those that are negative.
    repetition_penalty: float = 1.0

    # Subtracted for tokens of the completion: once, and as often as each occurs.
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    # Token ids and what is added to their logits, by token id.
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop: tuple[str, ...] = ()

    # The same seed gives the same text alone and in any batch; `None` draws one.
    seed: int | None = None

    # Choices.
    n: int = 1

    # More than one: beam search, whose `n` best sequences are the choices.
    num_beams: int = 1

    # Exponent of the length by which beams' scores are divided.
    length_penalty: float = 1.0

    # How many alternatives of each token to report beside its own log probability; `None`: report nothing.
    logprobs: int | None = None

    def __post_init__(self) -> None:
        _require(self.max_tokens >= 1, "max_tokens", "must be at least 1", self.max_tokens)
        _require(0 <= self.temperature <= 2, "temperature", "must be between 0 and 2", self.temperature)
        _require(0 < self.top_p <= 1, "top_p", "must be above 0 and at most 1", self.top_p)
        _require(self.top_k is None or self.top_k >= 1, "top_k", "must be at least 1", self.top_k)
        _require(0 <= self.min_p < 1, "min_p", "must be at least 0 and below 1", self.min_p)
        _require(0 < self.typical_p <= 1, "typical_p", "must be above 0 and at most 1", self.typical_p)
        self._check_changes_of_logits()
        _require(len(self.stop) <= 4, "stop", "takes at most 4 strings", len(self.stop))
        _require(all(self.stop), "stop", "takes no empty string", "")
        _require(1 <= self.n <= 128, "n", "must be between 1 and 128", self.n)
        _require(1 <= self.num_beams <= 16, "num_beams", "must be between 1 and 16", self.num_beams)
        is_possible = self.num_beams == 1 or self.n <= self.num_beams
        _require(is_possible, "n", f"must be at most `num_beams`, which is {self.num_beams}", self.n)
        _require(-5 <= self.length_penalty <= 5, "length_penalty", "must be between -5 and 5", self.length_penalty)
        is_in_range = self.logprobs is None or 0 <= self.logprobs <= 20
        _require(is_in_range, "logprobs", "must be between 0 and 20", self.logprobs)

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0

    @property
    def changes_logits(self) -> bool:
        """Whether penalties or biases apply."""
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return penalties != (1, 0, 0) or bool(self.logit_bias)

    def _check_changes_of_logits(self) -> None:
        is_penalty = 0 < self.repetition_penalty <= 10
        _require(is_penalty, "repetition_penalty", "must be above 0 and at most 10", self.repetition_penalty)
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            _require(-2 <= value <= 2, name, "must be between -2 and 2", value)
        _require(len(self.logit_bias) <= 300, "logit_bias", "takes at most 300 tokens", len(self.logit_bias))
        for token_id, bias in self.logit_bias:
            _require(token_id >= 0, "logit_bias", "takes token ids from 0 up", token_id)
            _require(-100 <= bias <= 100, "logit_bias", "takes values between -100 and 100", bias)


def merge_params(*sources: GenerationParams, room: int, logprobs: int | None = None) -> SamplingParams:
    """Settings of one request; later sources win, field by field.

    With beam search, parameters that draw are refused where the last source sets them, and dropped otherwise.

    Args:
        sources: the checkpoint's, the spec's and the request's parameters, in this order.
        room: tokens that the context window has left after the prompt; the default of `max_tokens`.
        logprobs: as in `SamplingParams`; only a request says it.

    Raises:
        RequestError: a value is out of range, or two contradict each other; names the field.
    """
    merged: dict[str, object] = {"max_tokens": room}
    for source in sources:
        merged.update(_given(source))
    if merged.get("num_beams", 1) != 1:
        _refuse_sampling(sources[-1])
        merged.update(_NOT_SAMPLING)
    if "logit_bias" in merged:
        merged["logit_bias"] = _biases(merged["logit_bias"])  # type: ignore[arg-type]  # as GenerationParams has it
    return SamplingParams(**merged, logprobs=logprobs)  # type: ignore[arg-type]  # the same fields; a test compares them


def check_vocab(params: SamplingParams, vocab_size: int) -> None:
    """Raises `RequestError` for a biased token that the vocabulary does not have."""
    for token_id, _ in params.logit_bias:
        rule = f"takes token ids below {vocab_size}, the size of the model's vocabulary"
        _require(token_id < vocab_size, "logit_bias", rule, token_id)


def _given(source: GenerationParams) -> dict[str, object]:
    values = {field: getattr(source, field) for field in source.__struct_fields__}
    return {field: value for field, value in values.items() if value is not None}


def _refuse_sampling(source: GenerationParams) -> None:
    """Raises for a parameter that draws, set to more than nothing beside beam search."""
    given = _given(source)
    for field, neutral in _NOT_SAMPLING.items():
        is_neutral = given.get(field, neutral) == neutral
        _require(is_neutral, field, "does not go together with beam search (`num_beams` above 1)", given.get(field))


def _biases(by_text: dict[str, float]) -> tuple[tuple[int, float], ...]:
    """OpenAI's form, token ids as text, as pairs in the order of the ids."""
    for text in by_text:
        is_token_id = text.isascii() and text.isdigit() and len(text) < 10
        _require(is_token_id, "logit_bias", "takes token ids as keys", text)
    return tuple(sorted((int(text), bias) for text, bias in by_text.items()))


def _require(holds: bool, param: str, rule: str, found: object) -> None:  # noqa: FBT001  # reads as a sentence
    if not holds:
        raise RequestError(f"`{param}` {rule}, found {found!r}", kind="invalid_request", param=param)
