# SPDX-License-Identifier: Apache-2.0
"""Requests' bodies: compressed ones, wrong ones, and more of them than are held."""

from __future__ import annotations

import asyncio
import gzip
import json

import pytest

from controller.live import Raw, eventually, run
from controller.standins.answers import completion, stream_text
from controller.standins.vllm import VllmStandIn
from controller.whole import Whole, running
from kvcached.controller import app
from kvcached.controller.json_text import MOST_PARTS

COMPLETIONS = "/v1/completions"
GZIP = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
MOST = 1 << 16


async def serves(whole: Whole) -> bool:
    return (await whole.ask("POST", COMPLETIONS, completion("a", "x"))).status == 200


def test_compressed() -> None:
    """An engine, which cannot decompress, gets it as if it had been sent plainly."""

    async def main() -> None:
        async with running({"a": VllmStandIn(model="a")}) as whole:
            data = gzip.compress(json.dumps(completion("a", "x")).encode())
            answer = await whole.ask("POST", COMPLETIONS, data=data, headers=GZIP)
            plain = await whole.ask("POST", COMPLETIONS, completion("a", "x"))
            assert answer.status == plain.status == 200
            assert stream_text(answer.data) == stream_text(plain.data)

    run(main())


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (gzip.compress(b" " * (MOST + 1)), 413, "body_too_large"),
        (b"no gzip at all", 400, "invalid_http"),
        (gzip.compress(b"{" * 1000)[:-20], 400, "invalid_json"),
        (gzip.compress(b"{"), 400, "invalid_json"),
    ],
    ids=("bomb", "other", "cut", "wrong"),
)
def test_wrongly_compressed(data: bytes, status: int, code: str, caplog: pytest.LogCaptureFixture) -> None:
    """Which is no fault of the controller's: the log has no traceback."""

    async def main() -> None:
        async with running({"a": VllmStandIn(model="a")}, router={"max_body_bytes": MOST}) as whole:
            answer = await whole.ask("POST", COMPLETIONS, data=data, headers=GZIP)
            assert (answer.status, answer.code) == (status, code)
            assert await serves(whole)

    run(main())
    assert not [record for record in caplog.records if record.exc_info]


def test_wrongly_framed() -> None:
    async def main() -> None:
        async with running({"a": VllmStandIn(model="a")}) as whole:
            raw = await Raw.open(whole.address)
            head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            raw.writer.write(head + b'5\r\n{"mod\r\nnonsense\r\n')
            status, _ = await raw.head()
            assert status == 400
            await raw.close()
            assert await serves(whole)

    run(main())


def test_bodies_that_are_held_are_bounded_while_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that never end, and those without a length: what has come of them counts."""
    monkeypatch.setattr(app, "_BUFFERED_BODIES", 2)

    async def main() -> None:
        async with running({"a": VllmStandIn(model="a")}, router={"max_body_bytes": MOST}) as whole:
            service = whole.controller.service
            head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            slow = [await Raw.open(whole.address) for _ in range(2)]
            for raw in slow:
                raw.writer.write(head + b"%x\r\n%s\r\n" % (MOST, b"x" * MOST))
            await eventually(lambda: service._buffered == 2 * MOST)
            refused = await whole.ask("POST", COMPLETIONS, completion("a", "x"))
            assert (refused.status, refused.code) == (503, "queue_full")
            for raw in slow:
                raw.abort()
            await eventually(lambda: service._buffered == 0)
            assert await serves(whole)

    run(main())


def test_a_client_that_leaves_in_the_middle_of_its_body(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with running({"a": VllmStandIn(model="a")}) as whole:
            for end in (Raw.abort, lambda raw: raw.writer.write_eof()):
                raw = await Raw.open(whole.address)
                raw.writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
                await eventually(lambda: whole.controller.service._buffered == 1)
                end(raw)
                await eventually(lambda: whole.controller.service.n_handlers == 0)
                await asyncio.wait_for(raw.rest(), 5)
            assert await serves(whole)

    run(main())
    assert not [record for record in caplog.records if record.exc_info]


def test_one_of_too_many_parts() -> None:
    """What comes of it would be far larger than the body is. In strings they count, too."""

    async def main() -> None:
        async with running({"a": VllmStandIn(model="a")}) as whole:
            prompts: tuple[object, ...] = ([[]] * (MOST_PARTS // 2), "{" * MOST_PARTS)
            for prompt in prompts:
                body = {**completion("a", "x"), "prompt": prompt}
                answer = await whole.ask("POST", COMPLETIONS, body)
                assert (answer.status, answer.code) == (413, "body_too_complex")
                assert b"more than 1048576 brackets, braces and commas" in answer.data
            assert await serves(whole)

    run(main())


def test_a_name_is_not_said_back_in_full() -> None:
    """Else the answer, which nobody counts, is several times as large as the largest body."""

    async def main() -> None:
        async with running({"a": VllmStandIn(model="a")}) as whole:
            answer = await whole.ask("POST", COMPLETIONS, completion("\u00e9" * 100_000, "x"))
            assert answer.code == "model_not_found"
            assert len(answer.data) < 10_000

    run(main())
