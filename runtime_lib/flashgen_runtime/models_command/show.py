"""`models list` and `models info`."""

import json
from argparse import Namespace
from typing import Any

from flashgen_runtime.loader.store import Store, StoredModel
from flashgen_runtime.models_command.models import store_of, uri_of
from flashgen_runtime.models_command.terminal import readable_bytes, say, table

_HEAD = ("MODEL", "REVISION", "CHECKPOINT", "PREPARED", "PULLED", "NAME")


def list(options: Namespace) -> int:  # noqa: A001 (the verb's name)
    """All models, one a line."""
    store = store_of(options)
    models = [_described(store, model) for model in store.models()]
    if options.json:
        say(json.dumps(models, indent=2))
        return 0
    rows = [
        (
            model["uri"],
            model["revision"][:12],
            readable_bytes(model["checkpoint_bytes"]),
            readable_bytes(model["prepared_bytes"]),
            model["pulled"][:16].replace("T", " "),
            model["name"],
        )
        for model in models
    ]
    for line in table(_HEAD, rows):
        say(line)
    return 0


def info(options: Namespace) -> int:
    """One model with its files."""
    store = store_of(options)
    model = store.get(uri_of(options.model))
    files = [{"name": file.name, "bytes": file.size, "sha256": file.sha256} for file in model.manifest.files]
    prepared = [{"name": path.name, "bytes": path.stat().st_size} for path in store.prepared_files(model)]
    described = {**_described(store, model), "path": str(model.path), "files": files, "prepared": prepared}
    say(json.dumps(described, indent=2) if options.json else _text(described))
    return 0


def _described(store: Store, model: StoredModel) -> dict[str, Any]:
    manifest = model.manifest
    return {
        "name": model.name,
        "uri": manifest.uri,
        "revision": manifest.revision,
        "reference": manifest.reference,
        "pulled": manifest.pulled.isoformat(),
        "checkpoint_bytes": manifest.num_bytes,
        "prepared_bytes": sum(path.stat().st_size for path in store.prepared_files(model)),
    }


def _text(model: dict[str, Any]) -> str:
    asked = f" ({model['reference']})" if model["reference"] else ""
    head = [
        f"model       {model['uri']}",
        f"revision    {model['revision']}{asked}",
        f"pulled      {model['pulled'][:19].replace('T', ' ')} UTC",
        f"name        {model['name']}",
        f"folder      {model['path']}",
        f"checkpoint  {readable_bytes(model['checkpoint_bytes'])}",
        f"prepared    {readable_bytes(model['prepared_bytes'])}",
    ]
    rows = [(file["name"], readable_bytes(file["bytes"]), file["sha256"]) for file in model["files"]]
    prepared = [(file["name"], readable_bytes(file["bytes"]), "prepared") for file in model["prepared"]]
    return "\n".join([*head, "", *table(("FILE", "SIZE", "SHA-256"), [*rows, *prepared])])
