"""`models load`, `models unload` and `models list --url`: calls to a running worker's operations port."""

import json
from argparse import Namespace
from http import HTTPStatus
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import Request, urlopen

from flashgen_runtime.models_command.errors import AttentionError, UsageError
from flashgen_runtime.models_command.terminal import readable_bytes, say

LIST_TIMEOUT_SECONDS = 10.0


def load(options: Namespace) -> int:
    """Brings a model into the worker's memory."""
    return _change(options, "load")


def unload(options: Namespace) -> int:
    """Takes a model out of the worker's memory."""
    return _change(options, "unload")


def list_models(text: str) -> list[dict[str, Any]]:
    """The models of a worker, as it says."""
    url = _checked_url(text)
    try:
        return _get_models(url, timeout=LIST_TIMEOUT_SECONDS)
    except HTTPError as error:
        raise UsageError(f"what answers at {url} has no models: name a worker's operations port") from error
    except URLError as error:
        raise AttentionError(f"no worker answers at {url}: {error.reason}") from error
    except (OSError, ValueError) as error:
        raise AttentionError(f"what answers at {url} is no worker: {error}") from error


def _change(options: Namespace, verb: str) -> int:
    url = _checked_url(options.url)
    path = f"/models/{quote(options.model, safe='')}/{verb}"
    done = _call(url, path, "POST", timeout=options.timeout, model=options.model)
    size = f": {readable_bytes(done['memory_bytes'])}" if done["memory_bytes"] else ""
    say(f"{done['id']} is {done['residency']}{size} in {done['seconds']:.2f} s")
    return 0


def _checked_url(text: str) -> str:
    parts = urlsplit(text if "://" in text else f"http://{text}")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UsageError(f"`{text}` is no address of a worker's operations port, such as http://127.0.0.1:7500")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def _call(url: str, path: str, method: str, *, timeout: float, model: str) -> Any:
    """The JSON that a worker answers."""
    try:
        with urlopen(Request(url + path, method=method), timeout=timeout) as response:
            return json.loads(response.read())
    except HTTPError as error:
        raise _refusal(error, url, timeout=timeout, model=model) from error
    except TimeoutError as error:
        raise AttentionError(f"the worker at {url} has not answered after {timeout:g} s; it goes on") from error
    except URLError as error:
        raise AttentionError(f"no worker answers at {url}: {error.reason}") from error
    except (OSError, ValueError) as error:
        raise AttentionError(f"what answers at {url} is no worker: {error}") from error


def _refusal(error: HTTPError, url: str, *, timeout: float, model: str) -> Exception:
    body = error.read()
    if error.code == HTTPStatus.NOT_FOUND:
        known = _known_models(url, timeout=timeout)
        if known is None:
            return UsageError(f"what answers at {url} has no models: name a worker's operations port")
        return UsageError(f"the worker at {url} has no model `{model}`; it has: {', '.join(known) or 'none'}")
    if error.code == HTTPStatus.METHOD_NOT_ALLOWED:
        return UsageError(f"what answers at {url} takes no models: name a worker's operations port")
    return AttentionError(f"`{model}`: {_problem(body) or error.reason}")


def _known_models(url: str, *, timeout: float) -> list[str] | None:
    """The ids of a worker's models; `None` where no worker answers."""
    try:
        return [str(status["id"]) for status in _get_models(url, timeout=timeout)]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _get_models(url: str, *, timeout: float) -> list[dict[str, Any]]:
    with urlopen(f"{url}/models", timeout=timeout) as response:
        models: list[dict[str, Any]] = json.loads(response.read())
        return models


def _problem(body: bytes) -> str | None:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, LookupError, TypeError):
        return None
