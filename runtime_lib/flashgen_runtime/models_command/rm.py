"""`models rm`."""

from argparse import Namespace

from flashgen_runtime.loader.sources import canonical_uri
from flashgen_runtime.loader.store import PreparedElsewhere, Store, StoredModel
from flashgen_runtime.models_command.errors import UsageError
from flashgen_runtime.models_command.models import store_of, uri_of
from flashgen_runtime.models_command.terminal import readable_bytes, say


def rm(options: Namespace) -> int:
    """Removes what the options name, and says how much room that made."""
    store = store_of(options)
    if options.leftovers:
        if options.models:
            raise UsageError("`--leftovers` is about pulls that did not end, and takes no model")
        say(f"removed {readable_bytes(store.clean_up())} that unfinished pulls had left")
        return 0
    if not (options.models or options.prepared):
        raise UsageError("name a model, `--prepared` or `--leftovers`")
    uris = [uri_of(text) for text in options.models]
    # All of them are looked up before the first is removed.
    if options.prepared:
        _remove_prepared(store, _prepared(store, uris, options.revision))
    else:
        _remove(store, [model for uri in uris for model in _found(store, uri, options.revision)])
    return 0


def _remove(store: Store, models: list[StoredModel]) -> None:
    for model in models:
        freed = store.remove(model)
        say(f"removed {model.manifest.uri} at {model.manifest.revision[:12]}: {readable_bytes(freed)}")


def _remove_prepared(store: Store, models: list[StoredModel | PreparedElsewhere]) -> None:
    for model in models:
        checkpoint = model.manifest.uri if isinstance(model, StoredModel) else model.checkpoint or model.name
        say(f"removed prepared files of {checkpoint}: {readable_bytes(store.remove_prepared(model))}")


def _prepared(store: Store, uris: list[str], revision: str | None) -> list[StoredModel | PreparedElsewhere]:
    """What was prepared: from these models and folders, or at all."""
    elsewhere = store.prepared_elsewhere()
    if not uris:
        return [*(model for model in store.models() if store.prepared_files(model)), *elsewhere]
    chosen: list[StoredModel | PreparedElsewhere] = []
    for uri in uris:
        others = [found for found in elsewhere if canonical_uri(uri) == found.checkpoint or uri == found.name]
        chosen += [*store.find_all(uri, revision), *others] or _found(store, uri, revision)
    return chosen


def _found(store: Store, uri: str, revision: str | None) -> list[StoredModel]:
    return store.find_all(uri, revision) or [store.get(uri, revision)]
