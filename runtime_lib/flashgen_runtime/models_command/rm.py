"""`models rm`."""

from argparse import Namespace

from flashgen_runtime.loader.store import Store, StoredModel
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
    for model in _chosen(store, options):
        freed = store.remove_prepared(model) if options.prepared else store.remove(model)
        what = "prepared files of " if options.prepared else ""
        say(f"removed {what}{model.manifest.uri} at {model.manifest.revision[:12]}: {readable_bytes(freed)}")
    return 0


def _chosen(store: Store, options: Namespace) -> list[StoredModel]:
    """All of them are looked up before the first is removed."""
    if not options.models:
        return [model for model in store.models() if store.prepared_files(model)]
    uris = [uri_of(text) for text in options.models]
    return [
        model for uri in uris for model in store.find_all(uri, options.revision) or [store.get(uri, options.revision)]
    ]
