"""Names that come out of users' names: DNS labels, Python modules and classes, environment variables.

All functions are pure and give the same name for the same text. A text without any letter or digit gives an empty
DNS label; `stages.validate` asks the user for a name then.
"""

import builtins
import keyword
import re
import unicodedata

# Kubernetes allows 63; the rest is for what stands around a name: `<project>-worker-…`, hash suffixes of pods.
MAX_LABEL_LENGTH = 40

_NOT_LABEL = re.compile(r"[^a-z0-9]+")
_VERSION_SEGMENT = re.compile(r"v[0-9]+")
_BUILTINS = frozenset(dir(builtins))


def dns_label(text: str) -> str:
    """`mistralai Mistral-7B-v0.1` as a DNS label: `mistralai-mistral-7b-v0-1`; "" when nothing of the text remains."""
    plain = unicodedata.normalize("NFKD", text[:1000]).encode("ascii", "ignore").decode("ascii")
    label = _NOT_LABEL.sub("-", plain.lower()).strip("-")
    if label[:1].isdigit():
        label = f"n-{label}"  # names of Kubernetes services begin with a letter
    return label[:MAX_LABEL_LENGTH].rstrip("-")


def python_name(text: str, *, reserved: frozenset[str] = frozenset()) -> str:
    """A name for a module, package or function: `chat-service` becomes `chat_service`, `import` becomes `import_`.

    Keywords, built-in names and `reserved` ones get an underscore at the end.
    """
    name = dns_label(text).replace("-", "_")
    if keyword.iskeyword(name) or name in _BUILTINS or name in reserved:
        return f"{name}_"
    return name


def class_name(text: str) -> str:
    """`chat_completions` becomes `ChatCompletions`."""
    return "".join(word.capitalize() for word in dns_label(text).split("-"))


def environment_name(text: str) -> str:
    """`mistral-7b-v0-1` becomes `MISTRAL_7B_V0_1`."""
    return dns_label(text).replace("-", "_").upper()


def api_name(path: str) -> str:
    """The name of an api without `name`: `/v1/chat/completions` gives `chat_completions`, `/` gives `root`."""
    segments = [segment for segment in path.split("/") if segment]
    if len(segments) > 1 and _VERSION_SEGMENT.fullmatch(segments[0]):
        del segments[0]
    return dns_label("-".join(segments)).replace("-", "_") or "root"


def last_part(uri: str) -> str:
    """What a model's uri is called: `Mistral-7B-v0.1` of `mistralai/Mistral-7B-v0.1`, `coder` of `../models/coder/`."""
    parts = [part for part in uri.removeprefix("file:").split("/") if part not in ("", ".", "..")]
    return parts[-1] if parts else ""
