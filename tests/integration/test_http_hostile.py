# SPDX-License-Identifier: Apache-2.0
"""Clients of the status page that are slow, many, or never done: they hurt neither others nor the broker."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from harness.broker import LIMIT_S, Daemon, Programs, eventually
from harness.control import info, open_control
from harness.quiet import IDLE_S, full_descriptor_table, is_quiet
from harness.raw import start_raw
from harness.web import Web, ask, read_all, start_web

CLIENTS_MAX = 64
REQUEST_S = 10
ANSWER_S = 15
ASKS = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"


@contextlib.contextmanager
def connections(web: Web, n: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(web.connect()) for _ in range(n)]


def end_of(connection: socket.socket, within: float) -> float:
    """How long it takes until the server ends this connection."""
    begun = time.monotonic()
    connection.settimeout(within)
    assert read_all(connection) == b""
    return time.monotonic() - begun


def threads(daemon: Daemon) -> dict[str, int]:
    """The daemon's threads by name."""
    tasks = Path(f"/proc/{daemon.pid}/task").iterdir()
    return {(task / "comm").read_text().strip(): int(task.name) for task in tasks}


def test_a_thread_of_its_own(programs: Programs) -> None:
    """With a lower priority than the broker's."""
    daemon, web = start_web(programs)
    assert web.get("/healthz").status == 200  # so it has begun
    nice = {
        name: int(Path(f"/proc/{daemon.pid}/task/{tid}/stat").read_text().rpartition(")")[2].split()[16])
        for name, tid in threads(daemon).items()
    }
    assert nice["http"] == min(19, nice["kvcachedd"] + 10)


def test_no_thread_where_it_is_off(daemon: Daemon) -> None:
    assert "http" not in threads(daemon)


def test_idle_costs_nothing(programs: Programs) -> None:
    """Neither before anybody has come, nor when all have gone."""
    daemon, web = start_web(programs, config="[daemon]\nidle=0.2\n")
    control = open_control(programs, daemon)
    eventually(lambda: info(control).number("held_bytes") == 0)
    eventually(lambda: is_quiet(daemon))
    assert is_quiet(daemon, 2)
    assert web.get("/metrics").status == 200
    eventually(lambda: is_quiet(daemon))
    assert is_quiet(daemon, IDLE_S)


def test_who_is_slow_is_sent_away(programs: Programs) -> None:
    """Somebody who says nothing, somebody who says a byte now and then, and somebody who asks for much and
    reads nothing: each has its time, and is reset then. Others are answered meanwhile."""
    daemon, web = start_web(programs)
    fds = open_fds(daemon)
    with connections(web, 3) as (silent, slow, next_one), small_window(web) as deaf:
        begun = time.monotonic()
        next_one.sendall(ASKS)
        assert next_one.recv(15) == b"HTTP/1.1 200 OK"
        dripping = threading.Thread(target=drip, args=(slow, begun + REQUEST_S + LIMIT_S))
        dripping.start()
        deaf.settimeout(2)
        with contextlib.suppress(TimeoutError):
            while True:
                deaf.sendall(ASKS * 100)
        assert web.get("/healthz").status == 200
        end_of(silent, LIMIT_S)
        assert REQUEST_S - 1 < time.monotonic() - begun < LIMIT_S
        dripping.join()
        assert REQUEST_S - 1 < time.monotonic() - begun < LIMIT_S
        next_one.settimeout(LIMIT_S)
        read_all(next_one)
        eventually(lambda: open_fds(daemon) <= fds)
        assert time.monotonic() - begun > ANSWER_S - 2
    assert web.get("/healthz").status == 200


def small_window(web: Web) -> socket.socket:
    """A connection of which the system keeps little that nobody has read."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((web.host, web.port))
    return connection


def drip(connection: socket.socket, until: float) -> None:
    """A header that never ends, a byte every half second, until the other side has enough of it."""
    tick = threading.Event()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ")
        while time.monotonic() < until:
            connection.sendall(b"x")
            if select.select([connection], [], [], 0)[0]:
                connection.recv(1)
                return
            tick.wait(0.5)


def open_fds(daemon: Daemon) -> int:
    return len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))


def test_more_connections_than_there_may_be(programs: Programs) -> None:
    """Who is too many waits until somebody goes; nothing spins meanwhile, and the broker is not touched."""
    daemon, web = start_web(programs, config="[daemon]\nidle=0.2\n")
    control = open_control(programs, daemon)
    before = open_fds(daemon)
    with connections(web, CLIENTS_MAX) as full, web.connect() as late:
        eventually(lambda: open_fds(daemon) == before + CLIENTS_MAX)
        late.sendall(ASKS)
        eventually(lambda: info(control).number("held_bytes") == 0)
        eventually(lambda: is_quiet(daemon))
        assert is_quiet(daemon, 1)
        assert start_raw(programs, daemon).open().name == "Welcome"
        assert not select.select([late], [], [], 0)[0]
        full[0].close()
        late.settimeout(LIMIT_S)
        assert late.recv(15) == b"HTTP/1.1 200 OK"
    eventually(lambda: open_fds(daemon) <= before + 3)


def test_one_address_does_not_have_all(programs: Programs) -> None:
    """Where others than this machine can come, each of them may have half of the connections."""
    daemon, web = start_web(programs, metrics="0.0.0.0:0")
    before = open_fds(daemon)
    with connections(web, CLIENTS_MAX // 2) as half, web.connect() as one_more:
        assert end_of(one_more, LIMIT_S) < REQUEST_S - 2
        eventually(lambda: open_fds(daemon) == before + len(half))
        half[0].sendall(ASKS)
        assert half[0].recv(15) == b"HTTP/1.1 200 OK"


def test_a_storm_of_scrapes(programs: Programs) -> None:
    """The broker is asked for its state ten times a second at most, however many ask for metrics."""
    daemon, web = start_web(programs)
    first = web.get("/metrics").sample("kvcached_http_states_total")
    begun = time.monotonic()
    errors: list[str] = []

    def storm() -> None:
        client = web.client()
        for _ in range(100):
            answer = ask(client, "GET", "/metrics")
            if answer.status != 200:
                errors.append(answer.text)
        client.close()

    crowd = [threading.Thread(target=storm) for _ in range(16)]
    for thread in crowd:
        thread.start()
    engine = start_raw(programs, daemon)
    engine.open()
    region = engine.open_region()
    while any(thread.is_alive() for thread in crowd):
        engine.give_back(*engine.take(region))
    for thread in crowd:
        thread.join()
    seconds = time.monotonic() - begun
    last = web.get("/metrics")
    assert errors == []
    eventually(lambda: web.get("/metrics").sample("kvcached_http_requests_total") >= 1600)
    assert last.sample("kvcached_http_states_total") - first <= 10 * seconds + 2


def test_a_full_descriptor_table(programs: Programs) -> None:
    """Who comes then is dropped; afterwards all is well again."""
    daemon, web = start_web(programs)
    with full_descriptor_table(daemon):
        with web.connect() as dropped:
            assert end_of(dropped, LIMIT_S) < LIMIT_S
        eventually(lambda: is_quiet(daemon, 1))
    assert eventually(lambda: web.get("/metrics").status == 200)


def test_stops_while_requests_run(programs: Programs) -> None:
    """In the midst of answers, half said requests, and connections that are only open."""
    daemon, web = start_web(programs)
    stopped = threading.Event()

    def keep_asking() -> None:
        while not stopped.is_set():
            with contextlib.suppress(OSError, AssertionError, ValueError), web.connect(5) as connection:
                connection.sendall(ASKS)
                read_all(connection)

    crowd = [threading.Thread(target=keep_asking) for _ in range(4)]
    for thread in crowd:
        thread.start()
    try:
        with connections(web, 8) as some:
            for connection in some[:4]:
                connection.sendall(ASKS[:20])
            daemon.stop()
            for connection in some:
                end_of(connection, LIMIT_S)
    finally:
        stopped.set()
        for thread in crowd:
            thread.join()
