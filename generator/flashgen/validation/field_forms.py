"""The list form of `inputs` and `outputs`, rewritten as the mapping form that the schema can check.

An item with one key is that field: `- prompt: str`. With several keys the field is the one that is no attribute:
`- prompt: str` with `max_length: 100` under it. `name` and `type` together are the long form.
"""

from typing import Any

from flashgen.diagnostics import in_words, quote
from flashgen.document import Document, NodePath
from flashgen.validation.problems import Problems
from flashgen.validation.suggest import nearest

ATTRIBUTES = ("optional", "default", "enum", "min", "max", "min_length", "max_length", "description", "example", "in")

_LIST_KEYS = ("inputs", "outputs")


def with_fields_as_mappings(document: Document, problems: Problems) -> Document:
    """The document with every field as `name: {type: …, attribute: …}`; places follow the fields to their new paths.

    Items that cannot be read are reported and left out.
    """
    apis = document.data.get("apis") if isinstance(document.data, dict) else None
    if not isinstance(apis, list):
        return document
    mover = _Mover(document, problems)
    rewritten = [mover.api(api, ("apis", index)) if isinstance(api, dict) else api for index, api in enumerate(apis)]
    return document._replace(
        data={**document.data, "apis": rewritten},
        value_places=mover.value_places,
        key_places=mover.key_places,
    )


class _Mover:
    def __init__(self, document: Document, problems: Problems) -> None:
        self.problems = problems
        self.value_places = dict(document.value_places)
        self.key_places = dict(document.key_places)

    def api(self, api: dict[str, Any], path: NodePath) -> dict[str, Any]:
        rewritten = dict(api)
        for key in _LIST_KEYS:
            fields = api.get(key)
            if isinstance(fields, list):
                rewritten[key] = self.list_form(fields, (*path, key))
            elif isinstance(fields, dict):
                rewritten[key] = {name: self.short_form(value, (*path, key, name)) for name, value in fields.items()}
        return rewritten

    def short_form(self, value: Any, path: NodePath) -> Any:
        """`prompt: str` is `prompt: {type: str}`."""
        if not isinstance(value, str):
            return value
        self.value_places[*path, "type"] = self.value_places[path]
        self.key_places[*path, "type"] = self.key_places[path]
        return {"type": value}

    def list_form(self, items: list[Any], path: NodePath) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        first_items: dict[str, NodePath] = {}
        for index, item in enumerate(items):
            item_path = (*path, index)
            name = self.name_of(item, item_path)
            if name is None:
                continue
            if name in first_items:
                message = f"field {quote(name)} is declared twice"
                self.problems.at_value(item_path, "FG202", message, other=(first_items[name], "first declared here"))
                continue
            first_items[name] = item_path
            fields[name] = self.item(name, item, item_path, (*path, name))
        return fields

    def name_of(self, item: Any, path: NodePath) -> str | None:
        """The name of the field that an item declares; `None` after reporting that it declares none."""
        if not isinstance(item, dict) or not item:
            hint = "write `- NAME: TYPE`, with attributes on the lines below it"
            self.problems.at_value(path, "FG210", "expected a field, found no mapping", hint=hint)
            return None
        if len(item) == 1:
            return str(next(iter(item)))
        if "name" in item and "type" in item:
            return self.long_form_name(item, path)
        names = [key for key in item if key not in ATTRIBUTES and not key.startswith("x-")]
        if len(names) == 1:
            return str(names[0])
        self.report_ambiguous(item, names, path)
        return None

    def long_form_name(self, item: dict[str, Any], path: NodePath) -> str | None:
        name = item["name"]
        if isinstance(name, str):
            return name
        self.problems.at_value((*path, "name"), "FG104", "the name of a field must be a text")
        return None

    def report_ambiguous(self, item: dict[str, Any], names: list[str], path: NodePath) -> None:
        long_form = "the long form is `- {name: NAME, type: TYPE, …}`"
        if not names:
            message = f"this item names no field: {in_words(list(item)[:6])} are attributes"
            self.problems.at_value(path, "FG210", message, hint=f"add `NAME: TYPE`; {long_form}")
            return
        # The first one is the field if each of the others is a misspelt attribute.
        misspelt = {name: known for name in names[1:] if (known := nearest(name, ATTRIBUTES))}
        if len(misspelt) == len(names) - 1:
            for name, known in misspelt.items():
                message = f"{quote(name)} is no attribute of a field"
                self.problems.at_key((*path, name), "FG101", message, hint=f"did you mean `{known}`?")
            return
        readings = f"it reads as field {quote(names[0])} with the attribute {quote(names[1])}, or the other way round"
        message = f"this item names {len(names)} fields: {in_words(names[:6])}"
        hint = f"{readings}\ngive each field its own `- `; {long_form}"
        self.problems.at_value(path, "FG210", message, hint=hint)

    def item(self, name: str, item: dict[str, Any], old: NodePath, new: NodePath) -> Any:
        """The mapping form of an item, with the places of its entries."""
        is_long = len(item) > 1 and "name" in item and "type" in item
        type_key = "type" if is_long else name
        self.value_places[new] = self.value_places[old]
        self.key_places[new] = self.value_places[(*old, "name")] if is_long else self.key_places[(*old, name)]
        if not is_long and isinstance(item[name], dict):
            return self.mapping_item(name, item, old, new)
        rewritten = {}
        for key, value in item.items():
            if is_long and key == "name":
                continue
            new_key = "type" if key == type_key else key
            rewritten[new_key] = value
            self.move((*old, key), (*new, new_key), value)
        return rewritten

    def mapping_item(self, name: str, item: dict[str, Any], old: NodePath, new: NodePath) -> Any:
        """`- prompt: {type: str, …}`: the mapping form inside the list form."""
        if len(item) > 1:
            message = f"the attributes of {quote(name)} stand in two places"
            self.problems.at_value(old, "FG210", message, hint=f"move all of them under {quote(name)}")
        self.move((*old, name), new, item[name])
        return item[name]

    def move(self, old: NodePath, new: NodePath, value: Any) -> None:
        self.value_places[new] = self.value_places[old]
        self.key_places[new] = self.key_places.get(old, self.value_places[old])
        if isinstance(value, dict):
            for key, child in value.items():
                self.move((*old, key), (*new, key), child)
        elif isinstance(value, list):
            for index, child in enumerate(value):
                self.move((*old, index), (*new, index), child)
