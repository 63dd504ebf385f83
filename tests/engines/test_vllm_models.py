# SPDX-License-Identifier: Apache-2.0
"""vLLM with kvcached: models whose layers, or some of them, see a window of the last tokens only.

vLLM's hybrid manager has several groups of layers for these, each with blocks of its own; all are blocks of
one pool, and lie on top of each other. What a window has left is free while its request runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engines.conftest import Engines
from engines.vllm_support import (
    GROWING,
    LONG,
    LONG_TOKENS,
    MIXED,
    PAGE,
    Said,
    check_all_memory_is_to_be_had,
    run,
)
from harness.blocks import Kvctl, used_bytes
from harness.broker import Daemon, Programs, eventually

pytestmark = [pytest.mark.emulator, pytest.mark.timeout(900)]


@pytest.mark.parametrize(
    ("kind", "groups", "options"),
    [
        ("window", 1, {}),
        ("hybrid", 3, {}),
        ("hybrid", 1, {"disable_hybrid_kv_cache_manager": True}),
    ],
)
def test_the_same_tokens_with_windows(
    engines: Engines,
    daemon: Daemon,
    kvctl: Kvctl,
    models: Callable[[str], Path],
    says: Callable[[str], Said],
    kind: str,
    groups: int,
    options: dict[str, Any],
) -> None:
    said = says(kind)
    engine = engines.get("alpha")
    engine.begin(daemon, model=str(models(kind)), **options)
    pool = engine.call("pool")
    assert (pool["class"], pool["groups"], pool["blocks"] % 16) == ("ElasticBlockPool", groups, 0)
    run(engine, said, MIXED)
    assert engine.call("metrics")["vllm:prefix_cache_hits"] == 0
    run(engine, said, MIXED)
    assert engine.call("metrics")["vllm:prefix_cache_hits"] > 1000
    span = engine.call("span")
    readable = [engine.call("touch", at) for at in (0, span - 1)]
    assert readable == [True, False]
    engine.end()
    assert kvctl("list", "--json").json() == []


@pytest.mark.parametrize(("kind", "n", "pages"), [("window", 8, 4), ("hybrid", 6, 12)])
def test_what_a_window_has_left_serves_others(
    engines: Engines,
    daemon: Daemon,
    kvctl: Kvctl,
    models: Callable[[str], Path],
    says: Callable[[str], Said],
    kind: str,
    n: int,
    pages: int,
) -> None:
    """In the end these requests have 430 tokens each: 14 blocks in each group of layers, of which a window
    needs 4. There is not memory for all of them, and nobody has to wait for it."""
    said = says(kind)
    engine = engines.get("alpha")
    engine.begin(daemon, model=str(models(kind)))
    assert pages * 16 < 14 * n * engine.call("pool")["groups"]
    assert kvctl("limit", "alpha", str(pages * PAGE)).rc == 0
    run(engine, said, dict(list(LONG.items())[:n]), LONG_TOKENS)
    assert engine.call("metrics")["vllm:num_preemptions"] == 0
    assert 0 < used_bytes(kvctl, "alpha") <= pages * PAGE


def test_a_hybrid_model_under_limits_and_asleep(
    engines: Engines,
    programs: Programs,
    daemon: Daemon,
    kvctl: Kvctl,
    models: Callable[[str], Path],
    says: Callable[[str], Said],
) -> None:
    said = says("hybrid")
    engine = engines.get("alpha")
    engine.begin(daemon, model=str(models("hybrid")))
    run(engine, said, MIXED)
    limit = 5 * PAGE
    assert used_bytes(kvctl, "alpha") > limit
    assert kvctl("limit", "alpha", str(limit)).rc == 0
    eventually(lambda: used_bytes(kvctl, "alpha") <= limit)
    run(engine, said, GROWING)
    assert engine.call("metrics")["vllm:num_preemptions"] > 0
    assert 0 < used_bytes(kvctl, "alpha") <= limit
    engine.call("sleep", 1)
    check_all_memory_is_to_be_had(programs, daemon)
    engine.call("wake")
    run(engine, said, GROWING)
    assert engine.call("reset")
    assert engine.call("pool")["held"] == 0


def test_guessed_tokens_change_nothing(
    engines: Engines, daemon: Daemon, kvctl: Kvctl, says: Callable[[str], Said]
) -> None:
    """Guesses are looked up in what was said before; blocks are taken for all of them."""
    said = says("llama")
    engine = engines.get("alpha")
    guess = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2, "prompt_lookup_min": 1}
    engine.begin(daemon, speculative_config=guess)
    assert kvctl("limit", "alpha", str(3 * PAGE)).rc == 0
    run(engine, said, dict(list(LONG.items())[:4]), LONG_TOKENS)
    metrics = engine.call("metrics")
    drafts, accepted = (metrics[f"vllm:spec_decode_num_{which}_tokens"] for which in ("draft", "accepted"))
    assert drafts > accepted > 0
    assert metrics["vllm:num_preemptions"] > 0
    assert engine.call("reset")
    assert engine.call("pool")["held"] == 0
