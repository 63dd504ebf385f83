# SPDX-License-Identifier: Apache-2.0
"""YAML text as nodes that know where they are in it, so that whatever is wrong with one can be said with its
file, line and key.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import yaml

_FAST = getattr(yaml, "CSafeLoader", None)
_DEPTH = 100


class ConfigError(ValueError):
    """What is wrong. `key` is a path, as in instances[1].engine; empty: the whole file."""

    def __init__(self, file: str, line: int, key: str, problem: str) -> None:
        super().__init__(f"{file}:{line}: {key}{' ' if key else ''}{problem}")
        self.file, self.line, self.key, self.problem = file, line, key, problem


@dataclass(frozen=True)
class Item:
    """A node of the file, and where it is."""

    file: str
    key: str
    node: yaml.Node | None  # None: of something that isn't there
    line: int

    def fail(self, problem: str) -> NoReturn:
        raise ConfigError(self.file, self.line, self.key, problem)

    def refuse(self, accepted: str) -> NoReturn:
        """The value isn't what is accepted."""
        self.fail(f"is {self.shown()}, and must be {accepted}")

    def shown(self) -> str:
        if isinstance(self.node, yaml.ScalarNode):
            return "empty" if self.is_null() else json.dumps(self.node.value[:60], ensure_ascii=False)
        return "a list" if isinstance(self.node, yaml.SequenceNode) else "a mapping"

    def is_null(self) -> bool:
        return isinstance(self.node, yaml.ScalarNode) and self.node.tag == "tag:yaml.org,2002:null"

    def child(self, key: str, node: yaml.Node | None = None) -> Item:
        path = f"{self.key}{'.' if self.key and not key.startswith('[') else ''}{key}"
        return Item(self.file, path, node, self.line if node is None else node.start_mark.line + 1)

    def scalar(self, accepted: str) -> str:
        """As it is written, whatever YAML takes it for: 007 is "007", and on is "on"."""
        if not isinstance(self.node, yaml.ScalarNode) or self.is_null():
            self.refuse(accepted)
        value: str = self.node.value
        return value

    def members(self) -> dict[str, Item]:
        """Of a mapping, which may be empty."""
        if self.is_null():
            return {}
        if not isinstance(self.node, yaml.MappingNode):
            self.refuse("a mapping of keys to values")
        found: dict[str, Item] = {}
        merged: dict[str, Item] = {}
        for key_node, value_node in self.node.value:
            key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "?"
            item = self.child(key, value_node)
            if key_node.tag == "tag:yaml.org,2002:merge":
                merged.update(Item(self.file, self.key, value_node, item.line).members())
                continue
            if key in found:
                Item(self.file, item.key, None, key_node.start_mark.line + 1).fail("is given twice")
            found[key] = item
        return {**merged, **found}

    def elements(self, accepted: str) -> list[Item]:
        if self.is_null():
            return []
        if not isinstance(self.node, yaml.SequenceNode):
            self.refuse(accepted)
        return [self.child(f"[{i}]", node) for i, node in enumerate(self.node.value)]

    def read(self, readers: Mapping[str, Reader]) -> dict[str, Any]:
        """The values of the keys that are given."""
        values = {}
        for key, item in self.members().items():
            if key not in readers:
                item.fail(f"is unknown ({item.shown()}); keys are {', '.join(readers)}")
            values[key] = readers[key](item)
        return values


Reader = Callable[[Item], Any]


def document(text: str, file: str) -> Item:
    try:
        node = _compose(text, file)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise ConfigError(file, line, "", f"is not YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ConfigError(file, 1, "", f"is not YAML: {' '.join(str(error).split())}") from None
    return Item(file, "", node or yaml.ScalarNode("tag:yaml.org,2002:null", ""), 1)


def _compose(text: str, file: str) -> yaml.Node | None:
    """libyaml is ten times as fast, where it is there; the other one says more clearly what is wrong, and the
    same everywhere."""
    if _FAST is not None:
        try:
            return _compose_with(_FAST, text, file)
        except yaml.YAMLError:
            pass
    return _compose_with(yaml.SafeLoader, text, file)


def _compose_with(loader: Any, text: str, file: str) -> yaml.Node | None:
    """Nodes are made by functions that call themselves, some of them in C: so depth is looked at before."""
    depth = 0
    for event in yaml.parse(text, Loader=loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEPTH:
            raise ConfigError(file, event.start_mark.line + 1, "", "is nested too deeply")
    node: yaml.Node | None = yaml.compose(text, Loader=loader)
    return node
