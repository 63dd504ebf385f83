# SPDX-License-Identifier: Apache-2.0
"""Clients that go on asking while they are being answered: all is answered, in order, and little is held."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web_protocol

from controller.live import Raw, eventually, run
from controller.standins.answers import answer_text, completion, whole_text
from controller.standins.engine import Behaviour
from controller.standins.vllm import VllmStandIn
from controller.whole import Whole, running
from kvcached.controller.connections import HEAD_BYTES, Connection

COMPLETIONS = "/v1/completions"
GET = b"GET /health HTTP/1.1\r\nHost: x\r\n"
N_MORE = 3 * HEAD_BYTES // len(GET)


@pytest.fixture(params=["bounded by aiohttp", "by us alone"])
def aiohttp_bounds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Newer ones do. Both together are as good."""
    if request.param == "by us alone":
        monkeypatch.setattr(web_protocol, "MAX_MSG_QUEUE_SIZE", 1 << 20, raising=False)


def only_connection(whole: Whole) -> Connection:
    (port,) = whole.controller._ports
    (connection,) = port._all
    return connection


def is_reading(connection: Connection) -> bool:
    assert connection._own_transport is not None
    return connection._own_transport.is_reading()


async def answer(raw: Raw) -> bytes:
    status, headers = await raw.head()
    assert status == 200
    return await raw.reader.readexactly(int(headers["content-length"]))


@pytest.mark.usefixtures("aiohttp_bounds")
@pytest.mark.parametrize("last", [GET + b"\r\n", b""], ids=("all", "cut"))
def test_all_is_answered(last: bytes) -> None:
    """What is behind one that is being answered is left with the client beyond a head's size."""

    async def main() -> None:
        stand_in = VllmStandIn(model="a", behaviour=Behaviour(hold_at=0))
        async with running({"a": stand_in}) as whole:
            raw = await Raw.open(whole.address)
            await raw.send("POST", COMPLETIONS, completion("a", "x", stream=False))
            await eventually(lambda: stand_in.counters.in_flight == 1)
            connection = only_connection(whole)
            raw.writer.write((GET + b"\r\n") * N_MORE + (last or GET))
            await eventually(lambda: not is_reading(connection))
            stand_in.release()
            assert answer_text(await answer(raw)) == whole_text("x", 4)
            for _ in range(N_MORE):
                await answer(raw)
            raw.writer.write(b"\r\n" if not last else b"")
            await answer(raw)
            assert is_reading(connection)
            await raw.close()

    run(main())


@pytest.mark.usefixtures("aiohttp_bounds")
def test_bodies_behind_others() -> None:
    """One that is not there as a whole when its turn comes is read on."""

    async def main() -> None:
        stand_in = VllmStandIn(model="a", behaviour=Behaviour(hold_at=0))
        async with running({"a": stand_in}) as whole:
            raw = await Raw.open(whole.address)
            for identity in ("x", "y", "z"):
                body = completion("a", identity, stream=False)
                await raw.send("POST", COMPLETIONS, {**body, "more": "m" * 5 * HEAD_BYTES})
            await eventually(lambda: stand_in.counters.in_flight == 1)
            stand_in.release()
            for identity in ("x", "y", "z"):
                assert answer_text(await answer(raw)) == whole_text(identity, 4)
            await raw.close()

    run(main())


def test_a_head_that_was_begun_meanwhile() -> None:
    """It has as long as any other, from the answer on."""

    async def main() -> None:
        stand_in = VllmStandIn(model="a", behaviour=Behaviour(hold_at=0))
        async with running({"a": stand_in}, router={"head_timeout_seconds": 0.2}) as whole:
            raw = await Raw.open(whole.address)
            await raw.send("POST", COMPLETIONS, completion("a", "x", stream=False))
            await eventually(lambda: stand_in.counters.in_flight == 1)
            raw.writer.write(GET)
            await eventually(lambda: only_connection(whole)._n_ahead == len(GET))
            stand_in.release()
            await answer(raw)
            assert await asyncio.wait_for(raw.rest(), 10) == b""
            await raw.close()

    run(main())
