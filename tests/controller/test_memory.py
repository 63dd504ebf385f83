# SPDX-License-Identifier: Apache-2.0
"""kvcached-controller runs for months: what it has answered leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
from itertools import count
from pathlib import Path

import pytest

from bench import proxy, web_clients
from bench.web_clients import Load
from controller.live import Raw, run

HALF = 50_000
CLIENTS = 64
WHOLE, STREAMS, LEAVING, WRONG = 40_000, 8_000, 1_000, 1_000
assert WHOLE + STREAMS + LEAVING + WRONG == HALF
MOST = 1.02
LIMIT_S = 900

_names = count()


def resident(pid: int) -> int:
    """Bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    raise AssertionError("it has ended")


async def leave(address: str) -> None:
    """In the middle of a stream that would go on for minutes."""
    client = await Raw.open(address)
    body = {"model": "model", "prompt": "Hello", "stream": True, "paced": True, "max_tokens": 10_000}
    await client.send("POST", "/v1/completions", body, f"X-Request-Id: id-{next(_names)}")
    assert (await client.head())[0] == 200
    client.abort()


async def ask_wrongly(address: str, n: int) -> None:
    """Each time for another model, that isn't there."""
    client = await Raw.open(address)
    for _ in range(n):
        await client.send("POST", "/v1/completions", {"model": f"model-{next(_names)}"})
        status, headers = await client.head()
        assert status == 404
        await client.reader.readexactly(int(headers["content-length"]))
    await client.close()


async def ask_half(address: str) -> None:
    requests = WHOLE // CLIENTS
    assert len((await web_clients.ask(address, Load(CLIENTS, requests))).first_byte) == WHOLE
    streams = Load(CLIENTS, STREAMS // CLIENTS, tokens=4, paced=False)
    assert len((await web_clients.ask(address, streams)).rates) == STREAMS
    for _ in range(LEAVING // 20):
        await asyncio.gather(*(leave(address) for _ in range(20)))
    await asyncio.gather(*(ask_wrongly(address, WRONG // 10) for _ in range(10)))


async def counted(address: str) -> tuple[int, int]:
    """Requests that came for the model, and those that are under way."""
    client = await Raw.open(address)
    await client.send("GET", "/traffic/stats/model")
    _, headers = await client.head()
    stats = json.loads(await client.reader.readexactly(int(headers["content-length"])))["model_stats"]
    await client.close()
    return stats["total_requests"], stats["requests_in_flight"]


async def settled(address: str, requests: int) -> None:
    while await counted(address) != (requests, 0):
        await asyncio.sleep(0.01)


@pytest.mark.timeout(LIMIT_S)
def test_requests_leave_nothing_behind(tmp_path: Path) -> None:
    async def main(address: str, pid: int) -> tuple[int, int]:
        found = []
        for half in (1, 2):
            await ask_half(address)
            await settled(address, half * (HALF - WRONG))
            found.append(resident(pid))
        return found[0], found[1]

    with proxy.engine() as engine, proxy.controller(tmp_path, engine) as (address, pid):
        half, whole = run(main(address, pid), LIMIT_S)
    print(f"{half} bytes after {HALF} requests, {whole} after {2 * HALF}")
    assert whole <= half * MOST
