# SPDX-License-Identifier: Apache-2.0
"""Clients that are slow, say too much or nothing at all, or are many: they keep nobody from being served."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import resource
import socket
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest

from controller.live import Raw, eventually, post, run, serving
from controller.process import controller, write_config
from controller.standins.answers import completion, stream_text, whole_text
from controller.standins.engine import Behaviour
from controller.standins.vllm import VllmStandIn
from controller.test_openapi import fits
from controller.whole import Answer, Whole, running
from kvcached.controller import connections
from kvcached.controller.access import Keys
from kvcached.controller.app import Locks
from kvcached.controller.connections import BACKLOG, FIELD_BYTES, HEAD_BYTES, OTHERS

COMPLETIONS = "/v1/completions"
POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
JSON = b"Content-Type: application/json\r\n"
HEAD = b"GET /health HTTP/1.1\r\nHost: x\r\n"


def number(whole: Whole, name: str, **labels: str) -> float:
    found = whole.controller.node.metrics.registry.get_sample_value(f"kvcached_controller_{name}", labels)
    assert found is not None, (name, labels)
    return found


def ended(whole: Whole, why: str) -> float:
    return number(whole, "connections_ended_total", why=why)


def open_now(whole: Whole) -> float:
    return number(whole, "connections", port="user")


async def read(raw: Raw) -> Answer:
    """An answer after which the connection ends."""
    status, headers = await raw.head()
    return Answer(status, headers, await raw.rest())


async def is_refused(raw: Raw, code: str) -> Answer:
    """As the document has it of what is no request."""
    answer = await read(raw)
    assert fits(answer, "GET", "/nowhere")["error"]["code"] == code
    assert len(answer.data) == int(answer.headers["content-length"])
    await raw.close()
    return answer


async def is_served(raw: Raw) -> None:
    """And the connection stays."""
    status, headers = await raw.head()
    assert status == 200
    await raw.reader.readexactly(int(headers["content-length"]))


async def a_head_is_late(whole: Whole) -> None:
    """More time has passed than there is for a head."""
    raw = await Raw.open(whole.address)
    assert await raw.rest() == b""
    await raw.close()


# ---- Time ----


def test_who_says_nothing() -> None:
    async def main() -> None:
        async with running({"a": VllmStandIn(model="a")}, router={"head_timeout_seconds": 0.2}) as whole:
            raws = [await Raw.open(whole.address) for _ in range(3)]
            for raw in raws:
                assert await raw.rest() == b""
                await raw.close()
            assert ended(whole, "silent") == 3
            await eventually(lambda: open_now(whole) == 0)

    run(main())


@pytest.mark.parametrize("first", [True, False])
def test_a_head_that_comes_byte_by_byte(first: bool) -> None:
    """Of a connection's first request, and of a later one."""

    async def main() -> None:
        async with running({"a": VllmStandIn(model="a")}, router={"head_timeout_seconds": 0.3}) as whole:
            raw = await Raw.open(whole.address)
            if not first:
                raw.writer.write(HEAD + b"\r\n")
                await is_served(raw)
            saying = asyncio.create_task(say_slowly(raw, HEAD + b"X: " + b"y" * 10**6))
            answer = await is_refused(raw, "head_timeout")
            assert answer.status == 408
            saying.cancel()
            assert whole.controller.node.metrics.refusals.labels("", "head_timeout")._value.get() == 1

    run(main())


async def say_slowly(raw: Raw, data: bytes) -> None:
    for i in range(len(data)):
        raw.writer.write(data[i : i + 1])
        await asyncio.sleep(0.01)


def test_who_is_between_two_requests_is_left_alone() -> None:
    async def main() -> None:
        async with running({"a": VllmStandIn(model="a")}, router={"head_timeout_seconds": 0.2}) as whole:
            raw = await Raw.open(whole.address)
            for _ in range(2):
                raw.writer.write(HEAD)
                raw.writer.write(b"\r\n")
                await is_served(raw)
                await a_head_is_late(whole)
            await raw.close()

    run(main())


def test_bodies_and_answers_take_their_time() -> None:
    async def main() -> None:
        stand_in = VllmStandIn(model="a", behaviour=Behaviour(hold_at=2))
        async with running({"a": stand_in}, router={"head_timeout_seconds": 0.2}) as whole:
            body = json.dumps(completion("a", "x")).encode()
            raw = await Raw.open(whole.address)
            raw.writer.write(POST + JSON + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body))
            await a_head_is_late(whole)
            raw.writer.write(body)
            await eventually(lambda: stand_in.counters.in_flight == 1)
            await a_head_is_late(whole)
            stand_in.release()
            status, headers = await raw.head()
            assert (status, headers["transfer-encoding"]) == (200, "chunked")
            assert (await raw.rest()).endswith(b"0\r\n\r\n")
            await raw.close()

    run(main())


def test_who_does_not_take_what_was_asked_for() -> None:
    """Also of the controller's own answers."""

    async def main() -> None:
        async with running({"a": VllmStandIn(model="a")}, router={"idle_timeout_seconds": 0.3}) as whole:
            there = socket.socket()
            there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            host, port = whole.address.removeprefix("http://").split(":")
            there.connect((host, int(port)))
            raw = Raw(*await asyncio.open_connection(sock=there, limit=1))
            raw.writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 2000)
            await eventually(lambda: ended(whole, "stalled") == 1)
            await eventually(lambda: open_now(whole) == 0)
            raw.abort()
            assert (await whole.ask("GET", "/health")).status == 200

    run(main())


# ---- Size ----


def fields(n_bytes: int) -> bytes:
    """So many, of lines that are not too long for one."""
    line = b"X: " + b"y" * 995 + b"\r\n"
    whole, rest = divmod(n_bytes - 10, len(line))
    return line * whole + b"X: " + b"y" * (rest + 5) + b"\r\n"


@pytest.mark.parametrize("piece", [1 << 20, 4096])
def test_large_heads(piece: int) -> None:
    """All of it counts, in however many pieces it comes."""

    async def main() -> None:
        async with running({"a": VllmStandIn(model="a")}) as whole:
            room = HEAD_BYTES - len(HEAD) - 2
            assert len(fields(room)) == room
            raw = await Raw.open(whole.address)
            for _ in range(2):
                await send(raw, HEAD + fields(room) + b"\r\n", piece)
                await is_served(raw)
            await send(raw, HEAD + fields(room + 1) + b"\r\n", piece)
            answer = await is_refused(raw, "head_too_large")
            assert (answer.status, str(HEAD_BYTES) in answer.data.decode()) == (431, True)

    run(main())


async def send(raw: Raw, data: bytes, piece: int) -> None:
    for start in range(0, len(data), piece):
        raw.writer.write(data[start : start + piece])
        await raw.writer.drain()


def test_a_long_line() -> None:
    async def main() -> None:
        async with running({"a": VllmStandIn(model="a")}) as whole:
            for line in (b"GET /%b HTTP/1.1\r\n", b"GET /health HTTP/1.1\r\nHost: x\r\nX: %b\r\n"):
                raw = await Raw.open(whole.address)
                raw.writer.write(line % (b"y" * (FIELD_BYTES + 1)) + b"\r\n")
                answer = await is_refused(raw, "head_too_large")
                assert (answer.status, str(FIELD_BYTES) in answer.data.decode()) == (431, True)

    run(main())


def test_a_head_and_a_body_in_one_piece() -> None:
    """A body may be larger than a head, and requests follow each other without waiting."""

    async def main() -> None:
        stand_in = VllmStandIn(model="a")
        async with running({"a": stand_in}) as whole:
            body = json.dumps({**completion("a", "x", stream=False), "more": "y" * 4 * HEAD_BYTES}).encode()
            head = POST + JSON + b"Content-Length: %d\r\n\r\n" % len(body)
            raw = await Raw.open(whole.address)
            for piece in (1 << 20, 5000):
                await send(raw, (head + body) * 3 + HEAD + b"\r\n", piece)
                for _ in range(4):
                    await is_served(raw)
            await raw.close()
            assert len(stand_in.counters.ids) == 6

    run(main())


# ---- What is no HTTP ----

PACKED = POST + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}"


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"hello\r\n\r\n",
        b"GET /health HTTP/9\r\n\r\n",
        POST + b"Content-Length: -1\r\n\r\n",
        POST + b"Content-Length: 1, 2\r\n\r\n",
        POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        HEAD + b" folded\r\n\r\n",
        HEAD + b"No colon\r\n\r\n",
        HEAD + b"Expect: wonders\r\n\r\n",
        b"GET /nowhere HTTP/1.1\r\nHost: x\r\nExpect: wonders\r\n\r\n",
        PACKED,
    ],
    ids=range(13),
)
def test_what_is_no_http(data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """It is refused as everything else is, and it is nothing that the log would have to have as a fault."""

    async def main() -> None:
        async with running({"a": VllmStandIn(model="a")}) as whole:
            raw = await Raw.open(whole.address)
            raw.writer.write(data)
            assert (await is_refused(raw, "invalid_http")).status == 400
            await eventually(lambda: open_now(whole) == 0)

    run(main())
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


def test_a_body_that_turns_out_to_be_none(caplog: pytest.LogCaptureFixture) -> None:
    """Once it is waited for; there is one answer."""

    async def main() -> None:
        async with running({"a": VllmStandIn(model="a")}) as whole:
            raw = await Raw.open(whole.address)
            raw.writer.write(POST + b"Transfer-Encoding: chunked\r\n\r\n")
            await eventually(lambda: whole.controller.service.n_handlers == 1)
            raw.writer.write(b"zz\r\n")
            assert (await is_refused(raw, "invalid_http")).status == 400

    run(main())
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


def test_who_leaves_is_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with running({"a": VllmStandIn(model="a")}) as whole:
            raw = await Raw.open(whole.address)
            raw.writer.write(POST + b"Content-Length: 100\r\n\r\nabc")
            await eventually(lambda: whole.controller.service.n_handlers == 1)
            raw.writer.write_eof()
            assert await raw.rest() == b""
            await raw.close()
            await eventually(lambda: whole.controller.service.n_handlers == 0)

    run(main())
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


def test_a_fault_of_the_controllers_own(caplog: pytest.LogCaptureFixture) -> None:
    """Also where no handler was to blame."""

    async def main() -> None:
        async with running({"a": VllmStandIn(model="a")}) as whole:

            async def fail(*_: object) -> None:
                raise ZeroDivisionError

            for server in whole.controller._runners:
                assert server.server
                server.app.router.resolve = fail  # type: ignore[method-assign, assignment]
            answer = await whole.ask("GET", "/v1/models")
            assert (answer.status, answer.code) == (500, "internal_error")

    run(main())
    assert "ZeroDivisionError" in caplog.text


def test_bodies_that_are_packed() -> None:
    """Engines get them as they were."""

    async def main() -> None:
        stand_in = VllmStandIn(model="a")
        async with running({"a": stand_in}) as whole:
            data = gzip.compress(json.dumps(completion("a", "packed")).encode())
            headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
            answer = await whole.ask("POST", COMPLETIONS, data=data, headers=headers)
            assert (answer.status, stream_text(answer.data)) == (200, whole_text("packed", 4))

    run(main())


def test_who_may_not_ask_is_told_so_before_the_body_is_there() -> None:
    async def main() -> None:
        stand_in = VllmStandIn(model="a")
        async with running({"a": stand_in}, locks=Locks(Keys(["key"]), Keys())) as whole:
            raw = await Raw.open(whole.address)
            raw.writer.write(POST + b"Content-Length: 4000000\r\n\r\n" + b"y" * 200000)
            status, headers = await raw.head()
            assert (status, headers["connection"]) == (401, "close")
            error = json.loads(await raw.reader.readexactly(int(headers["content-length"])))
            assert error["error"]["code"] == "invalid_api_key"
            await raw.close()

    run(main())


# ---- Number ----


@pytest.mark.parametrize(
    ("n_descriptors", "most", "found"),
    [
        (1 << 20, 8192, (8192, BACKLOG)),
        (2 * 8192 + BACKLOG + OTHERS, 8192, (8192, BACKLOG)),
        (2 * 8192 + BACKLOG + OTHERS - 1, 8192, (8191, BACKLOG)),
        (1024, 8192, (320, 128)),
        (1024, 50, (50, 128)),
        (64, 8192, (8, 16)),
        (1 << 20, 1, (1, BACKLOG)),
    ],
)
def test_share(n_descriptors: int, most: int, found: tuple[int, int]) -> None:
    assert connections.share(n_descriptors, most) == found


def test_who_asks_for_nothing_makes_way() -> None:
    """In turn; never who is being answered, or has just been."""

    async def main() -> None:
        stand_in = VllmStandIn(model="a", behaviour=Behaviour(hold_at=2))
        async with running({"a": stand_in}, router={"max_connections": 8}) as whole:
            busy = [asyncio.create_task(ask(whole, f"b{i}")) for i in range(6)]
            await eventually(lambda: stand_in.counters.in_flight == 6)
            first, second = await Raw.open(whole.address), await Raw.open(whole.address)
            await eventually(lambda: open_now(whole) == 8)
            third = await Raw.open(whole.address)
            assert await first.rest() == b""
            third.writer.write(HEAD + b"\r\n")
            await is_served(third)
            fourth = await Raw.open(whole.address)
            assert await second.rest() == b""
            third.writer.write(HEAD + b"\r\n")
            await is_served(third)
            assert ended(whole, "crowded") == 2
            stand_in.release()
            for i, answer in enumerate(await asyncio.gather(*busy)):
                assert stream_text(answer.data) == whole_text(f"b{i}", 4)
            for raw in (first, second, third, fourth):
                await raw.close()

    run(main())


async def ask(whole: Whole, identity: str) -> Answer:
    """On a connection of its own."""
    async with aiohttp.ClientSession() as session:
        found = Whole(whole.controller, session, whole.address, whole.admin)
        return await found.ask("POST", COMPLETIONS, completion("a", identity))


def test_who_has_not_got_all_does_not_make_way() -> None:
    """Though the answer has been made."""

    async def main() -> None:
        async def much(accept: str) -> tuple[bytes, str]:
            """More than sockets hold."""
            del accept
            return b"x" * (16 << 20), "text/plain"

        async with running({"a": VllmStandIn(model="a")}, router={"max_connections": 8}) as whole:
            whole.controller.node.metrics.text = much  # type: ignore[method-assign]
            raw = await Raw.open(whole.address)
            await raw.send("GET", "/metrics")
            server = whole.controller._runners[0].server
            assert server
            await eventually(lambda: server.requests_count == 1 and whole.controller.service.n_handlers == 0)
            others = [await Raw.open(whole.address) for _ in range(12)]
            await eventually(lambda: ended(whole, "crowded") == 5)
            await is_served(raw)
            for other in [raw, *others]:
                await other.close()

    run(main())


def test_where_all_are_being_answered(caplog: pytest.LogCaptureFixture) -> None:
    """Who comes then is let in again once there is room. It is said once."""

    async def main() -> None:
        stand_in = VllmStandIn(model="a", behaviour=Behaviour(hold_at=2))
        async with running({"a": stand_in}, router={"max_connections": 8}) as whole:
            busy = [asyncio.create_task(ask(whole, f"b{i}")) for i in range(8)]
            await eventually(lambda: stand_in.counters.in_flight == 8)
            for _ in range(20):
                raw = await Raw.open(whole.address)
                raw.writer.write(HEAD + b"\r\n")
                assert await raw.rest() == b""
                await raw.close()
            stand_in.release()
            answers = await asyncio.gather(*busy)
            assert {answer.status for answer in answers} == {200}
            await eventually(lambda: open_now(whole) == 0)
            assert (await whole.ask("GET", "/health")).status == 200

    run(main())
    said = [record for record in caplog.records if "connections are taken" in record.getMessage()]
    assert len(said) == 1


def test_users_do_not_crowd_administrators_out() -> None:
    async def main() -> None:
        router = {"max_connections": 8, "admin_port": 0}
        async with running({"a": VllmStandIn(model="a")}, router=router) as whole:
            kept = await Raw.open(whole.admin)
            raws = [await Raw.open(whole.address) for _ in range(30)]
            await eventually(lambda: ended(whole, "crowded") == 22)
            kept.writer.write(b"GET /sleep/status HTTP/1.1\r\nHost: x\r\n\r\n")
            await is_served(kept)
            for raw in [kept, *raws]:
                await raw.close()

    run(main())


# ---- Descriptors ----


def limits(soft: int, hard: int) -> Callable[[], None]:
    """For a process that begins."""
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_limit_that_may_be_raised_is(tmp_path: Path) -> None:
    async def main() -> None:
        stand_in = VllmStandIn(model="a")
        config = write_config(
            tmp_path / "c.yaml", {"a": stand_in}, router={"router_port": 0, "max_connections": 300}
        )
        async with serving(stand_in):
            write_config(config, {"a": stand_in}, router={"router_port": 0, "max_connections": 300})
            async with controller(config, begin=limits(256, 4000)) as process:
                soft, hard = resource.prlimit(process.process.pid, resource.RLIMIT_NOFILE)
                assert (soft, hard) == (connections.needed(300), 4000)
                assert "descriptors" not in process.log

    run(main())


def test_who_is_hostile_keeps_nobody_else_out(tmp_path: Path) -> None:
    """There are too few descriptors for all that come, and stay; requests are answered, by engines, too."""

    async def main() -> None:
        stand_in = VllmStandIn(model="a")
        async with serving(stand_in), aiohttp.ClientSession() as session:
            config = write_config(tmp_path / "c.yaml", {"a": stand_in})
            async with controller(config, begin=limits(512, 512)) as process:
                most, _ = connections.share(512, 256)
                await process.says(f"512 descriptors suffice for {most} connections")
                await process.says("Model a is awake")
                raws: list[Raw] = []
                for i in range(600):
                    raws.append(await Raw.open(process.address()))
                    if i % 50 == 0:
                        url = process.address() + COMPLETIONS
                        status, data = await post(session, url, completion("a", f"r{i}"))
                        assert (status, stream_text(data)) == (200, whole_text(f"r{i}", 4))
                assert f"All {most} connections are taken" in process.log
                assert "Too many open files" not in process.log
                for raw in raws:
                    await raw.close()

    run(main())


def test_descriptors_that_run_out_all_the_same(tmp_path: Path) -> None:
    """Because somebody has taken them away. It is said, in a line, and passes."""

    async def main() -> None:
        stand_in = VllmStandIn(model="a")
        async with serving(stand_in), aiohttp.ClientSession() as session:
            router = {"router_port": 0, "head_timeout_seconds": 0.5, "max_connections": 100}
            config = write_config(tmp_path / "c.yaml", {"a": stand_in}, router=router)
            async with controller(config, "--log-format", "json") as process:
                await process.says("Model a is awake")
                pid, hard = (
                    process.process.pid,
                    resource.prlimit(process.process.pid, resource.RLIMIT_NOFILE)[1],
                )
                taken = len([*Path(f"/proc/{pid}/fd").iterdir()])
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (taken + 4, hard))
                raws = [await Raw.open(process.address()) for _ in range(20)]
                await process.says("out of system resource")
                for raw in raws:
                    assert await raw.rest() == b""
                    await raw.close()
                await eventually(lambda: is_answered(session, process.address()))
                process.process.terminate()
                assert await process.end() == 0
            lines = [json.loads(line) for line in process.log.splitlines()]
            assert all(line["message"] and line["level"] for line in lines)

    run(main())


async def is_answered(session: aiohttp.ClientSession, address: str) -> bool:
    return (await post(session, address + COMPLETIONS, completion("a", "x")))[0] == 200
