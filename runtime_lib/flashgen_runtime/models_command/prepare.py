"""`models prepare`."""

import time
from argparse import Namespace
from pathlib import Path

from flashgen_runtime.config import DType, Quantization
from flashgen_runtime.engine.prepare import PreparedInfo, best_layout
from flashgen_runtime.engine.prepare import prepare as prepare_weights
from flashgen_runtime.loader.prepared import Layout
from flashgen_runtime.loader.sources import canonical_uri, is_folder
from flashgen_runtime.loader.store import Store
from flashgen_runtime.models_command.arguments import GENERIC
from flashgen_runtime.models_command.models import store_of, uri_of
from flashgen_runtime.models_command.terminal import complain, readable_bytes, say


def prepare(options: Namespace) -> int:
    """Writes one prepared file of a model of the store, or of a folder elsewhere."""
    store = store_of(options)
    uri = uri_of(options.model)
    stored = store.find(uri)
    path = Path(canonical_uri(uri)) if stored is None and is_folder(uri) else store.get(uri).path
    prepare_visibly(store, path, dtype=options.dtype, quantization=options.quantization, processor=options.processor)
    return 0


def prepare_visibly(
    store: Store, path: Path, *, dtype: DType, quantization: Quantization | None, processor: str | None
) -> PreparedInfo | None:
    """Prepares what a processor wants, `None` being this one; gives nothing where nothing would be faster."""
    layout = _layout(path, processor)
    if layout is None and quantization is None:
        complain("nothing to prepare: no kernels of ours run this model on this processor; it is served as it is")
        return None
    complain("preparing: weights are written once as kernels want them")
    began = time.monotonic()
    info = prepare_weights(path, store, dtype=dtype, quantization=quantization, layout=layout or "panels")
    kind = info.path.stem
    size = readable_bytes(info.num_bytes)
    say(f"prepared {kind}: {size} in {time.monotonic() - began:.1f} s" if info.is_new else f"{kind} is there: {size}")
    return info


def _layout(path: Path, processor: str | None) -> Layout | None:
    if processor is None:
        return best_layout(path)
    return "generic" if processor == GENERIC else "panels"
