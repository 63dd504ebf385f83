# SPDX-License-Identifier: Apache-2.0
"""What runs our tests in C runs the cases that it is asked for, or fails."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from pathlib import Path

import pytest

from harness.broker import eventually


def run_test(build_dir: Path, *cases: str) -> tuple[int, list[str]]:
    command = [str(build_dir / "tests/unit/test-parse"), *cases]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.splitlines()


def test_cases_are_run_by_name(build_dir: Path) -> None:
    _, names = run_test(build_dir, "--list")
    assert len(names) > 1
    assert run_test(build_dir, names[1]) == (0, [f"ok 1 - {names[1]}", "1..1"])


def test_a_case_that_is_not_there_fails(build_dir: Path) -> None:
    _, names = run_test(build_dir, "--list")
    assert run_test(build_dir, names[0], "absent") == (1, ["Bail out! There is no test absent"])


def test_what_a_killed_program_left_is_not_in_the_way(build_dir: Path) -> None:
    """Process numbers come again, and folders are named after them."""
    program = build_dir / "tests/unit/test-parse"
    script = f"f=/dev/shm/kvcached-test-$$-1; mkdir $f && touch $f/socket && echo $f && exec {program}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert not Path(done.stdout.splitlines()[0]).exists()


@pytest.mark.parametrize("signal_", [signal.SIGTERM, signal.SIGINT])
def test_who_is_ended_leaves_nothing(build_dir: Path, signal_: signal.Signals) -> None:
    command = [str(build_dir / "tests/harness/endless")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as runner:
        assert runner.stdout
        folder, child = runner.stdout.readline().split()
        pidfd = os.pidfd_open(int(child))
        assert Path(folder).is_dir()
        runner.send_signal(signal_)
        assert runner.wait(timeout=30) == -signal_
    assert not Path(folder).exists()
    try:
        eventually(lambda: select.select([pidfd], [], [], 0)[0])
    finally:
        os.close(pidfd)
