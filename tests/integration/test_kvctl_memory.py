# SPDX-License-Identifier: Apache-2.0
"""kvctl when memory runs out: what it prints is whole, or it says so and prints nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess

import pytest

from harness.broker import Daemon, Programs, Result, Site
from harness.raw import start_holder

DONE, FAILED = 0, 1

KEY = re.compile(r'"(\w+)":')


def run_scarce(site: Site, daemon: Daemon, words: list[str], fail_at: int) -> tuple[Result, int]:
    """kvctl of which one allocation fails (0: none), and how many it asked for."""
    ours, theirs = os.pipe()
    command = [str(site.program("kvctl/kvctl")), "--socket", str(daemon.socket), *words]
    preload = {"LD_PRELOAD": str(site.program("tests/harness/libscarce.so"))}
    try:
        done = subprocess.run(
            command,
            env=site.environment(**preload, SCARCE_AT=str(fail_at), SCARCE_FD=str(theirs)),
            pass_fds=[theirs],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        os.set_blocking(ours, False)
        try:
            count = os.read(ours, 32)
        except BlockingIOError:
            count = b"0"
    finally:
        os.close(ours)
        os.close(theirs)
    return Result(done.returncode, done.stdout, done.stderr), int(count)


@pytest.mark.parametrize(
    "line",
    [
        "list --json",
        "list",
        "info --json",
        "info a --json",
        "why a --json",
        "events --json",
        "version --json",
        "reload --json",
        "limit a 1G --json",
    ],
)
def test_whichever_allocation_fails(site: Site, programs: Programs, daemon: Daemon, line: str) -> None:
    start_holder(programs, daemon, "a", pages=1)
    programs.kvctl("limit", "b", "1M", daemon=daemon)
    words = line.split()
    whole, n = run_scarce(site, daemon, words, 0)
    if n == 0:
        pytest.skip("the program brings an allocator of its own")
    assert (whole.rc, whole.err) == (DONE, "")
    keys = KEY.findall(whole.out)
    failures = 0
    for fail_at in range(1, n + 1):
        result, _ = run_scarce(site, daemon, words, fail_at)
        daemon.notifications.receive()  # who reloads waits for the service manager to read that
        where = f"allocation {fail_at} of {n}: {result}"
        if result.rc == DONE:
            assert (KEY.findall(result.out), result.err) == (keys, ""), where
        else:
            failures += 1
            assert result.rc == FAILED, where
            # Events are of a line each, which are whole.
            assert not result.out or words[0] == "events", where
            assert all(json.loads(text) for text in result.out.splitlines()), where
            assert result.err.startswith("kvctl: "), where
            assert result.err.count("\n") == 1, where
    assert failures > 3
