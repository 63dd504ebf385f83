# SPDX-License-Identifier: Apache-2.0
"""vLLM with kvcached: several batches under way, in pipelines, whose stages are workers with layers of their
own (on one GPU here), and where the next step is scheduled while one runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engines.conftest import Engines
from engines.vllm_support import (
    GROWING,
    MIB,
    MIXED,
    PAGE,
    Said,
    check_all_memory_is_to_be_had,
    finish,
    run,
    serve,
)
from harness.blocks import Kvctl, used_bytes
from harness.broker import Daemon, Programs, eventually

pytestmark = [pytest.mark.emulator, pytest.mark.timeout(900)]

APART = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


@pytest.mark.parametrize(
    ("kind", "stages", "page", "pages"),
    [("llama3", "2,1", 6 * MIB, 3), ("hybrid", "3,2", 4 * MIB, 5)],
)
def test_pipelines_say_the_same(
    engines: Engines,
    programs: Programs,
    daemon: Daemon,
    kvctl: Kvctl,
    models: Callable[[str], Path],
    says: Callable[[str], Said],
    kind: str,
    stages: str,
    page: int,
    pages: int,
) -> None:
    """stages: how many layers each has. page: over all stages. pages: of the limit."""
    said = says(kind)
    engine = engines.get("stages", **APART)
    options = {"model": str(models(kind)), "pipeline_parallel_size": 2}
    assert engine.begin(daemon, {"VLLM_PP_LAYER_PARTITION": stages}, **options) == "SyncMPClient"
    run(engine, said, MIXED)
    assert used_bytes(kvctl, "stages") % page == 0
    limit = pages * page
    ended = serve(engine, GROWING, lambda: None, lambda: used_bytes(kvctl, "stages") > limit)
    assert kvctl("limit", "stages", str(limit)).rc == 0
    finish(engine, said, GROWING, ended)
    assert engine.call("metrics")["vllm:num_preemptions"] > 0
    eventually(lambda: used_bytes(kvctl, "stages") <= limit)
    engine.call("sleep", 1)
    check_all_memory_is_to_be_had(programs, daemon)
    engine.call("wake")
    run(engine, said, dict(list(MIXED.items())[:4]))
    assert 0 < used_bytes(kvctl, "stages") <= limit
    engine.end()
    eventually(lambda: used_bytes(kvctl, "stages") == 0)


def test_steps_that_are_scheduled_ahead_say_the_same(
    engines: Engines, programs: Programs, daemon: Daemon, kvctl: Kvctl, says: Callable[[str], Said]
) -> None:
    said = says("llama")
    engine = engines.get("ahead")  # of its own: what it stands on is replaced in it
    engine.begin(daemon, async_scheduling=True)
    assert engine.call("pool")["scheduler"] == "ElasticAsyncScheduler"
    run(engine, said, MIXED)
    limit = 3 * PAGE
    ended = serve(engine, GROWING, lambda: None, lambda: used_bytes(kvctl, "ahead") > limit)
    assert kvctl("limit", "ahead", str(limit)).rc == 0
    finish(engine, said, GROWING, ended)
    assert engine.call("metrics")["vllm:num_preemptions"] > 0
    assert 0 < used_bytes(kvctl, "ahead") <= limit
    engine.call("sleep", 1)
    check_all_memory_is_to_be_had(programs, daemon)
    engine.call("wake")
    run(engine, said, MIXED)
    assert engine.call("reset")
    assert engine.call("pool")["held"] == 0
