# SPDX-License-Identifier: Apache-2.0
"""vLLM with kvcached: the same tokens, and memory that moves between engines.

What is not mapped faults, so an engine that touches a block which it doesn't have dies of it.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from engines.conftest import HERE, SLOW_S, Engine, Engines
from engines.vllm_support import (
    FEW_CACHED,
    GPU,
    GROWING,
    MIB,
    MIXED,
    PAGE,
    TOKENS,
    check_all_memory_is_to_be_had,
    finish,
    prompts,
    run,
    serve,
)
from harness.blocks import Kvctl, listed, used_bytes
from harness.broker import Daemon, Programs, eventually, run_program

pytestmark = [pytest.mark.emulator, pytest.mark.timeout(900)]

MANY = prompts(20, 12)
OTHERS = prompts(40, 12)


@pytest.fixture(scope="session")
def plain(all_engines: Engines) -> dict[str, list[int]]:
    """What vLLM says without kvcached, of all prompts."""
    engine = all_engines.get("plain", ENABLE_KVCACHED="false")
    engine.begin(None, num_gpu_blocks_override=600, gpu_memory_utilization=0.1)
    everything = MIXED | MANY | OTHERS | GROWING
    tokens = engine.call("generate", list(everything.values()), TOKENS)
    engine.kill()
    return dict(zip(everything, tokens, strict=True))


def test_the_same_tokens(engines: Engines, daemon: Daemon, kvctl: Kvctl, plain: dict[str, list[int]]) -> None:
    engine = engines.get("alpha")
    assert engine.begin(daemon) == "InprocClient"
    assert engine.call("pool")["class"] == "ElasticBlockPool"
    run(engine, plain, MIXED)
    assert engine.call("metrics")["vllm:prefix_cache_hits"] == 0
    run(engine, plain, MIXED)
    assert engine.call("metrics")["vllm:prefix_cache_hits"] > 1000
    assert used_bytes(kvctl, "alpha") >= 4 * PAGE
    engine.end()
    assert kvctl("list", "--json").json() == []


def test_capacity_is_the_gpus_whatever_others_use(engines: Engines, daemon: Daemon) -> None:
    engine = engines.get("alpha")
    engine.begin(daemon)
    assert engine.call("pool")["blocks"] == 256 * MIB // (PAGE // 16)
    assert engine.call("span") == 256 * MIB
    engine.end()
    engine.begin(daemon, num_gpu_blocks_override=160)
    assert engine.call("pool")["blocks"] == 160
    engine.end()
    engine.begin(daemon, kv_cache_memory_bytes=43 * MIB)
    assert engine.call("span") == 40 * MIB


def test_blocks_that_are_no_whole_pages_are_refused(engines: Engines, daemon: Daemon) -> None:
    engine = engines.get("alpha")
    answer = engine.answer("start", {"KVCACHED_SOCKET": str(daemon.socket)}, {"num_gpu_blocks_override": 100})
    assert "set --num-gpu-blocks-override to a multiple of 16, such as 96" in answer["error"]
    engine.kill()


def test_holes_fault(engines: Engines, daemon: Daemon, plain: dict[str, list[int]]) -> None:
    engine = engines.get("alpha")
    engine.begin(daemon)
    run(engine, plain, prompts(20, 1))
    span = engine.call("span")
    readable = [engine.call("touch", at) for at in (0, span // 2 - 1, span // 2, span - 1)]
    assert readable == [True, False, True, False]


def test_preempted_requests_say_the_same(
    engines: Engines, daemon: Daemon, kvctl: Kvctl, plain: dict[str, list[int]]
) -> None:
    engine = engines.get("alpha")
    engine.begin(daemon)
    assert kvctl("limit", "alpha", str(3 * PAGE)).rc == 0
    run(engine, plain, GROWING)
    assert engine.call("metrics")["vllm:num_preemptions"] > 0
    assert used_bytes(kvctl, "alpha") <= 3 * PAGE


def test_two_engines_peak_in_turn(
    engines: Engines, daemon: Daemon, kvctl: Kvctl, plain: dict[str, list[int]]
) -> None:
    alpha, beta = engines.get("alpha"), engines.get("beta")
    alpha.begin(daemon, FEW_CACHED)
    beta.begin(daemon, FEW_CACHED)
    for engine, idle, asked in ((alpha, beta, MANY), (beta, alpha, OTHERS), (alpha, beta, OTHERS)):
        peak = 0

        def look(engine: Engine = engine) -> None:
            nonlocal peak
            peak = max(peak, used_bytes(kvctl, engine.instance))

        ended = serve(engine, asked, look, lambda: False)
        assert ended == {name: plain[name] for name in asked}
        assert peak > GPU // 2
        assert used_bytes(kvctl, idle.instance) < GPU // 2
    assert alpha.call("metrics")["vllm:num_preemptions"] == 0


def test_a_limit_lowered_in_the_middle_is_met(
    engines: Engines, daemon: Daemon, kvctl: Kvctl, plain: dict[str, list[int]]
) -> None:
    engine = engines.get("alpha")
    engine.begin(daemon)
    ended = serve(engine, MANY, lambda: None, lambda: used_bytes(kvctl, "alpha") > GPU // 2)
    limit = 6 * PAGE
    assert kvctl("limit", "alpha", str(limit)).rc == 0
    left = len(MANY) - len(ended)
    while left and used_bytes(kvctl, "alpha") > limit:
        step = engine.call("step", 1)
        ended |= step["ended"]
        left = step["left"]
    assert left > 0, "the limit was met by requests that ended"
    assert used_bytes(kvctl, "alpha") <= limit
    finish(engine, plain, MANY, ended)
    assert used_bytes(kvctl, "alpha") <= limit


def test_a_limit_lowered_while_idle_is_met_without_a_step(
    engines: Engines, daemon: Daemon, kvctl: Kvctl, plain: dict[str, list[int]]
) -> None:
    engine = engines.get("alpha")
    engine.begin(daemon)
    run(engine, plain, MANY)
    assert used_bytes(kvctl, "alpha") > GPU // 2
    assert kvctl("limit", "alpha", str(3 * PAGE)).rc == 0
    eventually(lambda: used_bytes(kvctl, "alpha") <= 3 * PAGE)
    run(engine, plain, prompts(20, 3))


def test_a_killed_engine_leaves_its_memory_to_the_other(
    engines: Engines, daemon: Daemon, kvctl: Kvctl, plain: dict[str, list[int]]
) -> None:
    alpha, beta = engines.get("alpha"), engines.get("beta")
    beta.begin(daemon)
    serve(beta, MANY, lambda: None, lambda: used_bytes(kvctl, "beta") > GPU // 2)
    alpha.begin(daemon, FEW_CACHED)
    ended = serve(alpha, OTHERS, lambda: None, lambda: True)
    assert used_bytes(kvctl, "alpha") < GPU // 2
    beta.kill()
    eventually(lambda: not listed(kvctl, "beta"))
    peak = 0
    step: dict[str, Any] = {"left": 1}
    while step["left"]:
        step = alpha.call("step", 1)
        ended |= step["ended"]
        peak = max(peak, used_bytes(kvctl, "alpha"))
    assert ended == {name: plain[name] for name in OTHERS}
    assert peak > GPU // 2


def test_requests_go_on_without_the_daemon(
    engines: Engines, daemon: Daemon, kvctl: Kvctl, plain: dict[str, list[int]]
) -> None:
    """In the memory that is mapped."""
    engine = engines.get("alpha")
    engine.begin(daemon)
    ended = serve(engine, MANY, lambda: None, lambda: used_bytes(kvctl, "alpha") > GPU // 4)
    daemon.kill()
    finish(engine, plain, MANY, ended)
    run(engine, plain, prompts(20, 3))
    engine.kill()


def test_sleep_gives_everything_back(
    engines: Engines, programs: Programs, daemon: Daemon, kvctl: Kvctl, plain: dict[str, list[int]]
) -> None:
    engine = engines.get("alpha")
    engine.begin(daemon)
    run(engine, plain, MIXED)
    engine.call("sleep", 1)
    check_all_memory_is_to_be_had(programs, daemon)
    assert engine.call("span") == 256 * MIB
    engine.call("wake")
    run(engine, plain, MIXED)
    assert engine.call("reset")
    assert engine.call("pool")["held"] == 0
    assert used_bytes(kvctl, "alpha") > 0


@pytest.mark.parametrize("ranks", [1, 2])
def test_workers_in_other_processes(
    engines: Engines,
    programs: Programs,
    daemon: Daemon,
    kvctl: Kvctl,
    plain: dict[str, list[int]],
    ranks: int,
) -> None:
    """Two workers are on one GPU here, and have a half of each block."""
    engine = engines.get("crew", VLLM_ENABLE_V1_MULTIPROCESSING="1", VLLM_CPU_OMP_THREADS_BIND="nobind")
    assert engine.begin(daemon, tensor_parallel_size=ranks) == "SyncMPClient"
    run(engine, plain, MIXED)
    assert kvctl("limit", "crew", str(3 * PAGE)).rc == 0
    eventually(lambda: used_bytes(kvctl, "crew") <= 3 * PAGE)
    run(engine, plain, GROWING)
    assert engine.call("metrics")["vllm:num_preemptions"] > 0
    assert 0 < used_bytes(kvctl, "crew") <= 3 * PAGE
    engine.call("sleep", 1)
    check_all_memory_is_to_be_had(programs, daemon)
    engine.call("wake")
    run(engine, plain, prompts(20, 2))
    engine.end()
    eventually(lambda: used_bytes(kvctl, "crew") == 0)


CHECKS = sorted(
    line.split("(")[0].removeprefix("def ")
    for line in (HERE / "vllm_checks.py").read_text().splitlines()
    if line.startswith("def check_")
)


@pytest.fixture(scope="session")
def checks(vllm_python: str, package: Path) -> dict[str, str]:
    done = run_program(
        [vllm_python, str(HERE / "vllm_checks.py")], {**os.environ, "PYTHONPATH": str(package)}, SLOW_S
    )
    assert done.rc == 0, done.err
    answer: dict[str, str] = json.loads(done.out.splitlines()[-1])
    return answer


@pytest.mark.parametrize("name", CHECKS)
def test_books(checks: dict[str, str], name: str) -> None:
    """Of the pool, in vLLM's Python, without an engine or a daemon; see vllm_checks.py."""
    assert checks[name] == ""


def test_versions_that_are_not_known_are_refused(vllm_python: str, package: Path) -> None:
    code = (
        "from vllm.v1.core.block_pool import BlockPool\n"
        "BlockPool.touch = lambda self, of_another_release: None\n"
        "from kvcached.integration.vllm import versions\n"
        "versions.check_scheduler()\n"
    )
    done = subprocess.run(
        [vllm_python, "-c", code],
        env={**os.environ, "PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert (
        "kvcached cannot work with vLLM 0.32.0: BlockPool.touch has parameters ['of_another_release']"
        in done.stderr
    )
