# SPDX-License-Identifier: Apache-2.0
"""Where measurements take place: a site of their own, and a daemon on one processor."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.broker import Daemon, Site, run_program

COSTS = ("none", "a100", "gb10")


@contextlib.contextmanager
def pinned(processor: int) -> Iterator[None]:
    """What is started inside runs on that processor."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {processor})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def new_site(build: Path) -> Iterator[Site]:
    run = Path(tempfile.mkdtemp(prefix="kvb-", dir="/tmp"))
    memory = Path(tempfile.mkdtemp(prefix="kvcached-bench-", dir="/dev/shm"))
    try:
        yield Site(build=build, run=run, emulate_dir=memory / "devices")
    finally:
        shutil.rmtree(run)
        shutil.rmtree(memory)


class Rig:
    """A daemon on one processor, and what runs against it from another (or the same)."""

    def __init__(self, site: Site, costs: str, daemon_processor: int, processor: int) -> None:
        self.site = site
        self.processor, self.daemon_processor = processor, daemon_processor
        self.environment = {} if costs not in COSTS else {"KVCACHED_EMULATE_COSTS": costs}
        with pinned(daemon_processor):
            self.daemon = Daemon(site, "80G", environment=self.environment)
        self.info = self._kvctl("info", "--json")

    def _kvctl(self, *words: str) -> Any:
        kvctl = str(self.site.program("kvctl/kvctl"))
        result = run_program([kvctl, "--socket", str(self.daemon.socket), *words], self.site.environment())
        if result.rc != 0:
            raise RuntimeError(result.err.strip())
        return result.json()

    def command(self, pages: int, rounds: int) -> list[str]:
        words = [str(self.site.program("tests/bench/bench-map")), "--socket", str(self.daemon.socket)]
        words += ["--uuid", self.info["gpu"]["uuid"], "--pages", str(pages), "--rounds", str(rounds)]
        words += ["--processor", str(self.processor), "--donor-processor", str(self.daemon_processor)]
        if self.info["gpu"]["emulated"]:
            words += ["--driver", str(self.site.program("tests/cuemu/libcuda.so.1"))]
        return words

    def run(self, command: list[str], **environment: str) -> str:
        variables = self.site.environment(**self.environment, **environment)
        result = run_program(command, variables, limit_s=120)
        if result.rc != 0:
            raise RuntimeError(result.err.strip() or f"{command[0]}: status {result.rc}")
        return result.out
