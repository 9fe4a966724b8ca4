"""Words of the language's grammar that this version does not build: refused by name, never ignored.

A word leaves this table on the day its capability arrives in the schema; a test keeps the two apart.
"""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Keys, by the title of the object's schema.
KEYS: dict[str, frozenset[str]] = {
    "spec": _words("trainers"),
    "api": _words("prompt system route steps mode timeout retries circuit_breaker max_queue auth rate_limit"),
    "model": _words("device_map load_params tokenizer adapters trust_remote_code token parameter_count eval"),
    "server": _words("handler external scaling timeout"),
    "engine": _words("backend parallel attention compile offload gpu_memory_utilization optimize log_level"),
    "resources": _words("gpu_type cuda accelerator instance storage"),
    "container": _words("image dockerfile python packages system_packages exclude_packages run volumes"),
    "deploy": _words(
        "registry tag platform namespace regions ingress port api_workers manifests metrics tracing queue environments"
        " docs"
    ),
}

# Values, by the key that holds them.
VALUES: dict[str, frozenset[str]] = {
    "protocol": _words(
        "custom openai.responses openai.transcriptions openai.images openai.files openai.batches openai.decisions"
        " rerank tokenize"
    ),
    "method": _words("PUT PATCH DELETE HEAD OPTIONS"),
    "type": _words(
        "text-classification token-classification text-ranking rerank automatic-speech-recognition"
        " image-classification object-detection image-to-image text-to-image"
    ),
    "quantization": _words("fp8"),
    "targets": _words("local"),
    "in": _words("query path header form"),
}

# Beginnings of a model's uri.
URI_SCHEMES = ("s3://", "gs://", "https://")

# Atoms of the type grammar.
TYPES = _words("bytes file image audio")

# Attributes that the language gives to fields; an output of a protocol can keep none of these.
OUTPUT_ATTRIBUTES = _words("default enum min max min_length max_length in")


def is_value_not_built(key: str, value: object) -> bool:
    """Whether `value` is a word of the grammar under `key` that is not built; `-` and `_` are equal in types."""
    if not isinstance(value, str):
        return False
    word = value.replace("_", "-") if key == "type" else value
    return word in VALUES.get(key, frozenset())
