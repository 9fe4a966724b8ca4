"""`models list` and `models info`."""

import json
from argparse import Namespace
from typing import Any

from flashgen_runtime.loader.store import PreparedElsewhere, Store, StoredModel
from flashgen_runtime.models_command.models import store_of, uri_of
from flashgen_runtime.models_command.terminal import readable_bytes, say, table
from flashgen_runtime.models_command.worker import list_models

_HEAD = ("MODEL", "REVISION", "CHECKPOINT", "PREPARED", "PULLED", "NAME")
_WORKER_HEAD = ("MODEL", "RESIDENCY", "MEMORY", "PRECISION", "PROBLEM")


def list(options: Namespace) -> int:  # noqa: A001 (the verb's name)
    """All models, one a line: of the store, or of a worker with where they are."""
    if options.url is not None:
        return _list_of_worker(options)
    store = store_of(options)
    models = [_described(store, model) for model in store.models()]
    models += [_described_elsewhere(found) for found in store.prepared_elsewhere()]
    if options.json:
        say(json.dumps(models, indent=2))
        return 0
    rows = [
        (
            model["uri"],
            model["revision"][:12] or "-",
            readable_bytes(model["checkpoint_bytes"]) if model["pulled"] else "-",
            readable_bytes(model["prepared_bytes"]),
            (model["pulled"] or "not in the store")[:16].replace("T", " "),
            model["name"],
        )
        for model in models
    ]
    for line in table(_HEAD, rows):
        say(line)
    return 0


def _list_of_worker(options: Namespace) -> int:
    models = list_models(options.url)
    if options.json:
        say(json.dumps(models, indent=2))
        return 0
    rows = [
        (
            str(model["id"]),
            str(model["residency"]),
            readable_bytes(model["memory_bytes"]) if model["memory_bytes"] else "-",
            "-".join(filter(None, (model.get("dtype"), model.get("quantization")))) or "-",
            str(model.get("problem") or ""),
        )
        for model in models
    ]
    for line in table(_WORKER_HEAD, rows):
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


def _described_elsewhere(found: PreparedElsewhere) -> dict[str, Any]:
    """Prepared files without a checkpoint in the store, in the same form."""
    return {
        "name": found.name,
        "uri": found.checkpoint,
        "revision": "",
        "reference": "",
        "pulled": None,
        "checkpoint_bytes": 0,
        "prepared_bytes": sum(path.stat().st_size for path in found.files),
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
