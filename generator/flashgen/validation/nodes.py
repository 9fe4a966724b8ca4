"""A mapping of the spec as the rules see it: without the entries whose structure is wrong."""

from collections.abc import Iterator
from typing import Any

from flashgen.document import NodePath
from flashgen.validation.problems import Problems


class Node:
    """One mapping and where it is; values that it gives have the type that the schema says."""

    __slots__ = ("broken", "data", "path")

    def __init__(self, data: dict[str, Any], path: NodePath, problems: Problems) -> None:
        self.data = data
        self.path = path
        self.broken = problems.broken

    def get(self, key: str) -> Any:
        """The value of `key`; `None` when it is absent or broken."""
        return None if self.at(key) in self.broken else self.data.get(key)

    def at(self, *keys: str | int) -> NodePath:
        """The path of something below this mapping."""
        return (*self.path, *keys)

    def node(self, key: str, problems: Problems) -> "Node | None":
        """The mapping under `key`, if there is one."""
        value = self.get(key)
        return Node(value, self.at(key), problems) if isinstance(value, dict) else None

    def nodes(self, key: str, problems: Problems) -> list["Node"]:
        """The mappings among the items of the list under `key`."""
        items = self.get(key)
        if not isinstance(items, list):
            return []
        found = [
            Node(item, self.at(key, index), problems) for index, item in enumerate(items) if isinstance(item, dict)
        ]
        return [node for node in found if node.path not in self.broken]

    def texts(self, key: str) -> Iterator[tuple[NodePath, str]]:
        """The texts under `key`, which is one text or a list of them, each with its path."""
        value = self.get(key)
        if isinstance(value, str):
            yield self.at(key), value
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, str) and self.at(key, index) not in self.broken:
                    yield self.at(key, index), item
