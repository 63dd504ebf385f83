# SPDX-License-Identifier: Apache-2.0
"""./dev bench with a real engine."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from engines.conftest import ROOT

pytestmark = [pytest.mark.emulator, pytest.mark.timeout(900)]


def test_a_step_of_the_scheduler_is_measured(vllm_python: str, build_dir: Path, tmp_run: Path) -> None:
    output = tmp_run / "bench.json"
    done = subprocess.run(
        [ROOT / "tests/bench/bench", "--quick", "--only", "engine", "--json", output],
        env={**os.environ, "KVCACHED_BUILD_DIR": str(build_dir), "KVCACHED_VLLM_PYTHON": vllm_python},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    [series] = json.loads(output.read_text())["series"]
    p50 = {side: timing["p50"] for side, timing in series["timings"].items()}
    assert set(p50) == {"alone", "alone-step", "kvcached", "kvcached-step", "added"}
    assert 0 < p50["alone"] < p50["alone-step"]
    assert 0 < p50["kvcached"] < p50["kvcached-step"]
    assert p50["added"] == pytest.approx(p50["kvcached"] - p50["alone"], abs=2)
