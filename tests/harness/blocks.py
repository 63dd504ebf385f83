# SPDX-License-Identifier: Apache-2.0
"""Engines that hand out blocks: a region in whose pages and blocks tests count, and what is said of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from harness.broker import Daemon, Peer, Programs, Result

MIB = 1 << 20
SLOT = 16 * MIB  # a page: 8 in each of two segments
EACH = 8  # blocks in a page

Kvctl = Callable[..., Result]


def fields(answer: str) -> dict[str, int]:
    """The NAME=NUMBER words of an answer."""
    return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)\b", answer)}


def count(engine: Peer, name: str = "kv") -> dict[str, int]:
    """What the library says of a region's blocks and pages."""
    return fields(engine.do(f"count {name}"))


def mapped(engine: Peer, name: str = "kv") -> int:
    """Pages."""
    return count(engine, name)["mapped"]


def listed(kvctl: Kvctl, instance: str = "engine") -> dict[str, Any]:
    """What the daemon says of an instance; nothing where it doesn't know it."""
    rows = [row for row in kvctl("list", "--json").json() if row["ipc"] == instance]
    assert len(rows) <= 1, rows
    return dict(rows[0]) if rows else {}


def used_bytes(kvctl: Kvctl, instance: str = "engine") -> int:
    return int(listed(kvctl, instance).get("used_bytes", 0))


def open_blocks(engine: Peer, name: str = "kv", options: str = "") -> None:
    engine.do(f"region {name} page={SLOT // 2} pages=32 segments=2")
    engine.do(f"blocks {name} block=1M {options}")


def start(programs: Programs, daemon: Daemon, instance: str = "engine", options: str = "") -> Peer:
    """An engine with the blocks "kv". Without options it keeps nothing that it doesn't use."""
    engine = programs.peer(daemon, instance)
    engine.do(f"open {options}")
    open_blocks(engine)
    return engine
