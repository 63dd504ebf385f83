# SPDX-License-Identifier: Apache-2.0
"""What kvcached adds to a step of vLLM's scheduler: python -m pytest tests/engines/measure_vllm.py -s

Medians over the steps of the same requests, served three times by each engine: of schedule() and
update_from_output() together, and of the whole step."""

from __future__ import annotations

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
    plain = engines.get("plain-cost", ENABLE_KVCACHED="false")
    plain.begin(None, num_gpu_blocks_override=600, gpu_memory_utilization=0.1)
    elastic = engines.get("elastic-cost")
    elastic.begin(daemon)
    for _ in range(3):
        for engine in (plain, elastic):
            engine.call("reset")
            print(engine.instance, engine.call("time_schedule", work, TOKENS))
    for engine in (plain, elastic):
        engine.kill()
