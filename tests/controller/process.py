# SPDX-License-Identifier: Apache-2.0
"""kvcached-controller as a process."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from controller.live import eventually
from controller.standins.engine import StandIn

PYTHON = str(Path(__file__).resolve().parents[2] / "python")
COMMAND = [sys.executable, "-m", "kvcached.controller.main"]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": PYTHON, **more}


def write_config(path: Path, stand_ins: dict[str, StandIn], **sections: Any) -> Path:
    instances = [
        {"name": f"i{i}", "model": name, "engine": "vllm", "url": stand_in.address}
        for i, (name, stand_in) in enumerate(stand_ins.items())
    ]
    router = {"router_port": 0, "max_connections": 256}  # for which any machine has descriptors
    text = {"router": router, "instances": instances, **sections}
    path.write_text(json.dumps(text))
    return path


class Process:
    """The command, and what it has said so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.log = ""
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stderr
        while data := await self.process.stderr.read(1 << 16):
            self.log += data.decode()

    def address(self, whose: str = "user") -> str:
        found = re.search(rf"Listening on (http://[\d.:]+) \({whose}\)", self.log)
        return found[1] if found else ""

    async def says(self, words: str) -> None:
        await eventually(lambda: words in self.log, what=words)

    async def end(self) -> int:
        status = await asyncio.wait_for(self.process.wait(), 20)
        await self._reading
        return status


@asynccontextmanager
async def controller(
    config: Path,
    *words: str,
    begin: Callable[[], None] | None = None,
    command: Sequence[str] = COMMAND,
    **variables: str,
) -> AsyncIterator[Process]:
    """Listening. begin: what it does first."""
    process = Process(
        await asyncio.create_subprocess_exec(
            *command,
            "--config",
            str(config),
            *words,
            env=environment(**variables),
            stderr=asyncio.subprocess.PIPE,
            preexec_fn=begin,
        )
    )
    try:
        await eventually(lambda: bool(process.address()) or process.process.returncode is not None)
        yield process
    finally:
        if process.process.returncode is None:
            process.process.kill()
        await process.end()
