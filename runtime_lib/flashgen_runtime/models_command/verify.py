"""`models verify`."""

from argparse import Namespace
from collections.abc import Iterator

from flashgen_runtime.errors import WeightsError
from flashgen_runtime.loader.access import WeightAccess
from flashgen_runtime.loader.safetensors_header import read_header
from flashgen_runtime.loader.store import Store, StoredModel
from flashgen_runtime.models_command.errors import AttentionError
from flashgen_runtime.models_command.models import store_of, uri_of
from flashgen_runtime.models_command.terminal import ProgressBar, complain, readable_bytes, say


def verify(options: Namespace) -> int:
    """Reads everything; names each file that is not what it was, and fails if there is one."""
    store = store_of(options)
    models = [found for text in options.models for found in _all_of(store, uri_of(text))]
    problems = sum(_verify(store, model) for model in (models if options.models else store.models()))
    if problems:
        raise AttentionError(f"{problems} {'file is' if problems == 1 else 'files are'} damaged")
    return 0


def _all_of(store: Store, uri: str) -> list[StoredModel]:
    return store.find_all(uri) or [store.get(uri)]


def _verify(store: Store, model: StoredModel) -> int:
    """The number of damaged files."""
    with ProgressBar(model.manifest.uri) as bar:
        bar.start(model.manifest.num_bytes)
        errors = [*store.damaged_files(model, progress=bar.add), *_damaged_prepared(store, model)]
    for error in errors:
        complain(f"error: {error}")
    if not errors:
        manifest = model.manifest
        say(f"{manifest.uri} at {manifest.revision[:12]} is sound: {readable_bytes(manifest.num_bytes)}")
    return len(errors)


def _damaged_prepared(store: Store, model: StoredModel) -> Iterator[WeightsError]:
    access = WeightAccess(store=store, verify="sha256")
    for path in store.prepared_files(model):
        try:
            is_sound = access.is_sound(read_header(path))
        except WeightsError as error:
            yield error
            continue
        if not is_sound:
            yield WeightsError(path, "is not what was prepared; `models rm --prepared` removes it")
