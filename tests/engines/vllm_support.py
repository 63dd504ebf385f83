# SPDX-License-Identifier: Apache-2.0
"""What tests of vLLM's integration share: prompts, and engines that serve them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from harness.broker import Daemon, Programs

if TYPE_CHECKING:
    from engines.conftest import Engine

MIB = 1 << 20
GPU = 64 * MIB  # of a daemon's budget
PAGE = 4 * MIB  # over both layers; 16 blocks of 32 tokens, a request of 512
TOKENS = 40

# What is cached is not given up for other engines' needs.
FEW_CACHED = {"KVCACHED_MAX_CACHED_TOKENS": "2048"}

Prompts = dict[str, list[int]]
Said = dict[str, list[int]]


def prompts(first: int, n: int, length: int = 440) -> Prompts:
    """Of which no two begin alike."""
    return {
        f"r{k}": [(7 * i * i + 3 * i + 11 * k + 1) % 250 for i in range(length)]
        for k in range(first, first + n)
    }


MIXED = prompts(0, 4, 100) | prompts(4, 4, 310)
GROWING = prompts(60, 12, 130)  # from 5 blocks to 6
LONG = prompts(80, 8, 130)  # to 14
LONG_TOKENS = 300


def same(plain: Said, asked: Prompts, got: list[list[int]]) -> None:
    assert dict(zip(asked, got, strict=True)) == {name: plain[name] for name in asked}


def run(engine: Engine, plain: Said, asked: Prompts, tokens: int = TOKENS) -> None:
    same(plain, asked, engine.call("generate", list(asked.values()), tokens))


def serve(
    engine: Engine,
    asked: Prompts,
    look: Callable[[], Any],
    enough: Callable[[], bool],
    tokens: int = TOKENS,
) -> dict[str, Any]:
    """Steps until it is enough; look() after each. Requests that have ended by then."""
    engine.call("add", asked, tokens)
    ended: dict[str, Any] = {}
    while True:
        step = engine.call("step", 1)
        ended |= step["ended"]
        look()
        if enough() or not step["left"]:
            return ended


def finish(engine: Engine, plain: Said, asked: Prompts, ended: dict[str, Any]) -> None:
    step = engine.call("step", -1)
    assert step["left"] == 0
    assert ended | step["ended"] == {name: plain[name] for name in asked}


def check_all_memory_is_to_be_had(programs: Programs, daemon: Daemon) -> None:
    """What the daemon only holds ready for somebody counts as theirs until others want it."""
    other = programs.peer(daemon, "other")
    other.do("open")
    other.do(f"region kv page=2M pages={GPU // (2 * MIB)}")
    other.do(f"map kv 0-{GPU // (2 * MIB) - 1}")
    other.close()
