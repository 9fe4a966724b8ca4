"""`models pull`."""

import contextlib
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Iterator

from flashgen_runtime.loader.store import Store, StoredModel
from flashgen_runtime.models_command.errors import EXIT_INTERRUPTED
from flashgen_runtime.models_command.models import store_of, uri_of
from flashgen_runtime.models_command.terminal import ProgressBar, complain, readable_bytes, say


def pull(options: Namespace) -> int:
    """Fetches a model, and prepares it for this processor."""
    store = store_of(options)
    model = pull_visibly(store, uri_of(options.model), options.revision)
    manifest = model.manifest
    say(f"{manifest.uri} at {manifest.revision[:12]}: {readable_bytes(manifest.num_bytes)} in {model.path}")
    if not options.no_prepare:
        _prepare(options, store, model)
    return 0


def pull_visibly(store: Store, uri: str, revision: str | None) -> StoredModel:
    """A pull with a bar, which Ctrl-C ends at once."""
    with _ended_by_interrupt(uri), ProgressBar(uri) as bar:
        return store.pull(
            uri,
            revision,
            on_start=bar.start,
            on_wait=lambda: complain(f"another process is pulling {uri}: waiting for it"),
            progress=bar.add,
        )


def _prepare(options: Namespace, store: Store, model: StoredModel) -> None:
    # Deferred: imports torch, which only fetching does not need.
    from flashgen_runtime.models_command.prepare import prepare_visibly

    prepare_visibly(store, model.path, dtype=options.dtype, quantization=options.quantization, processor=None)


@contextlib.contextmanager
def _ended_by_interrupt(uri: str) -> Iterator[None]:
    """Ends the process at the first Ctrl-C: a pull survives that, and its threads may wait for a silent source."""

    def end(*_: object) -> None:
        # Not through Python's ways of ending, which wait for threads.
        os.write(sys.stderr.fileno(), f"\ninterrupted; pulling {uri} again goes on from here\n".encode())
        os._exit(EXIT_INTERRUPTED)

    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
