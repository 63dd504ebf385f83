# SPDX-License-Identifier: Apache-2.0
"""What kvcached adds to a step of vLLM's scheduler: a part of ./dev bench.

The same requests are served by vLLM alone and by vLLM with kvcached, in turns. Of each turn the median over
its steps is written to $KVCACHED_BENCH_OUTPUT, a line of SIDE NANOSECONDS each: of schedule() and
update_from_output() together (alone, kvcached), how much more that is than alone (added), and of the whole
step (alone-step, kvcached-step). KVCACHED_BENCH_TURNS says how many turns."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engines.conftest import DEVICE_SIZE, Engines
from harness.broker import Programs

pytestmark = [pytest.mark.emulator, pytest.mark.timeout(900)]

REQUESTS = 12
LENGTH = 300
TOKENS = 120


def test_cost_of_a_step(engines: Engines, programs: Programs) -> None:
    daemon = programs.daemon(DEVICE_SIZE)
    work = [[(7 * i * i + 3 * i + 11 * k + 1) % 250 for i in range(LENGTH)] for k in range(REQUESTS)]
    alone = engines.get("alone", ENABLE_KVCACHED="false")
    alone.begin(None, num_gpu_blocks_override=600, gpu_memory_utilization=0.1)
    kvcached = engines.get("kvcached")
    kvcached.begin(daemon)
    lines = []
    for _ in range(int(os.environ.get("KVCACHED_BENCH_TURNS", "1"))):
        scheduler_us = []
        for engine in (alone, kvcached):
            engine.call("reset")
            medians = engine.call("time_schedule", work, TOKENS)
            assert medians["steps"] >= TOKENS
            scheduler_us.append(medians["scheduler_us"])
            lines.append(f"{engine.instance} {medians['scheduler_us'] * 1000:.0f}")
            lines.append(f"{engine.instance}-step {medians['step_us'] * 1000:.0f}")
        lines.append(f"added {(scheduler_us[1] - scheduler_us[0]) * 1000:.0f}")
    for engine in (alone, kvcached):
        engine.kill()
    output = os.environ.get("KVCACHED_BENCH_OUTPUT")
    if output:
        Path(output).write_text("\n".join(lines) + "\n")
