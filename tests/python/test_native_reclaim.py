# SPDX-License-Identifier: Apache-2.0
"""The engine's reclaim function: called when a limit is lowered, on a thread of the library, and whatever it
does. And the log, whose sentences come from any thread."""

from __future__ import annotations

import ctypes
import gc
import re
import sys
import threading
import types
import weakref
from typing import Any, Callable

import pytest

from harness.broker import Daemon, Programs, Result, eventually
from kvcached import _native

PAGE = 2 << 20


class Engine:
    """One that has six pages, each a block; calls are what its reclaim function was called with."""

    def __init__(self, on_reclaim: Callable[[Engine], object] = id) -> None:
        self.calls: list[tuple[int, int]] = []
        self.threads: list[int] = []
        self.called = threading.Event()
        self.on_reclaim = on_reclaim
        self.client = _native.Client(instance="engine", min_reserved_pages=0, reclaim=self.reclaim)
        self.region = self.client.open_region(16, PAGE)
        self.blocks = _native.Blocks([self.region], PAGE)
        self.ids = self.blocks.alloc(6)

    def reclaim(self, n_bytes: int, deadline_ms: int) -> None:
        self.calls.append((n_bytes, deadline_ms))
        self.threads.append(threading.get_ident())
        try:
            self.on_reclaim(self)
        finally:
            self.called.set()


@pytest.fixture
def lower(kvcached_environment: pytest.MonkeyPatch, kvctl: Callable[..., Result]) -> Callable[[str], None]:
    def do(limit: str) -> None:
        assert kvctl("limit", "engine", limit).rc == 0

    return do


def test_called(lower: Callable[[str], None]) -> None:
    engine = Engine()
    lower("8M")
    assert engine.called.wait(30)
    n_bytes, deadline_ms = engine.calls[0]
    assert n_bytes == 2 * PAGE
    assert 0 < deadline_ms < 60_000
    assert engine.threads[0] != threading.get_ident()
    assert eventually(lambda: engine.client.status()["over_limit"])
    engine.blocks.free(engine.ids[:2])
    eventually(lambda: not engine.client.status()["over_limit"])
    engine.client.close()


def test_frees_inside(lower: Callable[[str], None], kvctl: Callable[..., Result]) -> None:
    def free(engine: Engine) -> None:
        engine.blocks.free([engine.ids.pop() for _ in range(engine.calls[-1][0] // PAGE)])

    engine = Engine(free)
    lower("8M")
    assert engine.called.wait(30)
    eventually(lambda: kvctl("info", "engine", "--json").json()["used_bytes"] == 4 * PAGE)
    assert engine.blocks.status()["used_blocks"] == 4
    engine.client.close()


def test_raises(lower: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(engine: Engine) -> None:
        raise LookupError("mine")

    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: unraisable.append((args.exc_type, args.object)))
    engine = Engine(fail)
    lower("8M")
    eventually(lambda: unraisable)
    assert unraisable[0] == (LookupError, engine.reclaim)
    unraisable.clear()
    engine.blocks.free(engine.ids)
    assert engine.blocks.alloc(1)
    engine.client.close()


def test_wrong_signature(lower: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: unraisable.append(args.exc_type))
    client = _native.Client(instance="engine", reclaim=lambda: None)  # type: ignore[arg-type, misc]
    region = client.open_region(8, PAGE)
    region.map(range(6))
    lower("8M")
    eventually(lambda: unraisable)
    assert unraisable == [TypeError]
    client.close()


def test_inside_dispatch(lower: Callable[[str], None]) -> None:
    calls: list[int] = []
    client = _native.Client(
        instance="engine",
        own_thread=False,
        reclaim=lambda *_: calls.append(threading.get_ident()),
    )
    region = client.open_region(8, PAGE)
    region.map(range(6))
    lower("8M")

    def called() -> list[int]:
        client.dispatch()
        return calls

    eventually(called)
    assert calls == [threading.get_ident()]
    client.close()


# ---- Endings ----


def gone(kvctl: Callable[..., Result]) -> bool:
    """Nobody is connected, and nothing is used."""
    used: int = sum(i["used_bytes"] + len(i["peers"]) for i in kvctl("list", "--json").json())
    return used == 0


def test_closes_its_client(lower: Callable[[str], None], kvctl: Callable[..., Result]) -> None:
    """The library's thread cannot end itself."""
    engine = Engine(lambda engine: engine.client.close())
    lower("8M")
    assert engine.called.wait(30)
    assert engine.client.closed
    eventually(lambda: gone(kvctl))
    with pytest.raises(_native.InvalidError, match="closed"):
        engine.blocks.alloc(1)


def test_closes_its_client_inside_dispatch(
    lower: Callable[[str], None], kvctl: Callable[..., Result]
) -> None:
    clients: list[_native.Client] = []
    client = _native.Client(instance="engine", own_thread=False, reclaim=lambda *_: clients.pop().close())
    clients.append(client)
    region = client.open_region(8, PAGE)
    region.map(range(6))
    lower("8M")

    def closed() -> bool:
        if not client.closed:
            client.dispatch()
        return client.closed

    eventually(closed)
    assert gone(kvctl)
    assert region.closed


def test_drops_the_last_reference(lower: Callable[[str], None], kvctl: Callable[..., Result]) -> None:
    holder: list[Any] = []
    done = threading.Event()

    def drop(n_bytes: int, deadline_ms: int) -> None:
        holder.clear()
        done.set()

    client = _native.Client(instance="engine", reclaim=drop)
    region = client.open_region(8, PAGE)
    region.map(range(6))
    holder += [client, region]
    del client, region
    lower("8M")
    assert done.wait(30)
    eventually(lambda: gone(kvctl))


def test_collects_garbage_of_its_own(lower: Callable[[str], None], kvctl: Callable[..., Result]) -> None:
    """A collection on the library's thread, with the client in a cycle that nobody else refers to."""
    done = threading.Event()

    def collect(engine: Engine) -> None:
        gc.collect()
        done.set()

    gc.disable()
    try:
        engine: Engine | None = Engine(collect)
        lower("8M")
        assert done.wait(30)
        engine = None
        assert engine is None
        eventually(lambda: gc.collect() >= 0 and gone(kvctl))
    finally:
        gc.enable()


def test_closed_while_it_runs(lower: Callable[[str], None], kvctl: Callable[..., Result]) -> None:
    """close() waits for it, without the interpreter's lock."""
    begun = threading.Event()

    def wait(engine: Engine) -> None:
        begun.set()
        eventually(lambda: engine.client.closed)
        with pytest.raises(_native.InvalidError, match="closed"):
            engine.blocks.free(engine.ids)

    engine = Engine(wait)
    lower("8M")
    assert begun.wait(30)
    engine.client.close()
    assert engine.called.is_set()
    assert gone(kvctl)


def test_cycle_is_collected(kvcached_environment: pytest.MonkeyPatch, kvctl: Callable[..., Result]) -> None:
    """The client has the function, which has the engine, which has the client."""
    engine = Engine()
    seen = weakref.ref(engine)
    del engine
    gc.collect()
    assert seen() is None
    assert gone(kvctl)


def test_cycle_that_only_the_client_can_break(
    kvcached_environment: pytest.MonkeyPatch, kvctl: Callable[..., Result]
) -> None:
    """A method's object and a tuple cannot be emptied."""
    marker = object()
    references = sys.getrefcount(marker)
    client = _native.Client.__new__(_native.Client)
    reclaim = types.MethodType(print, (client, marker))
    client.__init__(instance="engine", reclaim=reclaim)  # type: ignore[misc]
    del client, reclaim
    gc.collect()
    assert gone(kvctl)
    assert sys.getrefcount(marker) == references


def test_function_is_released(kvcached_environment: pytest.MonkeyPatch) -> None:
    def reclaim(n_bytes: int, deadline_ms: int) -> None:
        pass

    references = sys.getrefcount(reclaim)
    client = _native.Client(instance="engine", reclaim=reclaim)
    assert sys.getrefcount(reclaim) == references + 1
    del client
    assert sys.getrefcount(reclaim) == references
    with pytest.raises(FileNotFoundError):
        _native.Client(socket="/nowhere.sock", reclaim=reclaim)
    gc.collect()
    assert sys.getrefcount(reclaim) == references


# ---- The log ----


@pytest.fixture
def said() -> Any:
    sentences: list[tuple[int, str]] = []
    _native.set_log_handler(lambda level, sentence: sentences.append((level, sentence)))
    yield sentences
    _native.set_log_handler(None)


def test_log(client: _native.Client, daemon: Daemon, said: list[tuple[int, str]]) -> None:
    """The library's thread has something to say when the daemon dies; the main thread says it."""
    where: list[int] = []

    def hear(level: int, sentence: str) -> None:
        where.append(threading.get_ident())
        said.append((level, sentence))

    _native.set_log_handler(hear)
    daemon.kill()
    eventually(lambda: said)
    level, sentence = said[0]
    assert level in (2, 3)
    assert "kvcachedd" in sentence or "connection" in sentence
    assert set(where) == {threading.get_ident()}


def test_log_handler_that_raises(
    client: _native.Client, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(level: int, sentence: str) -> None:
        raise LookupError("mine")

    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: unraisable.append(args.exc_type))
    _native.set_log_handler(fail)
    try:
        daemon.kill()
        eventually(lambda: unraisable)
        assert unraisable[0] is LookupError
    finally:
        _native.set_log_handler(None)


def test_log_handler_that_replaces_itself(client: _native.Client, daemon: Daemon) -> None:
    calls: list[str] = []

    def once(level: int, sentence: str) -> None:
        _native.set_log_handler(None)
        calls.append(sentence)

    _native.set_log_handler(once)
    references = sys.getrefcount(once)
    daemon.kill()
    eventually(lambda: calls)
    assert sys.getrefcount(once) == references - 1


def test_no_log_handler(client: _native.Client, daemon: Daemon, capfd: pytest.CaptureFixture[str]) -> None:
    _native.set_log_handler(None)
    daemon.kill()
    eventually(lambda: not client.status()["connected"])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("wrong", [3, "print", object()])
def test_log_handler_of_a_wrong_type(said: list[tuple[int, str]], wrong: Any) -> None:
    with pytest.raises(TypeError, match="callable"):
        _native.set_log_handler(wrong)


def test_many_sentences_at_once(
    programs: Programs, daemon: Daemon, kvcached_environment: pytest.MonkeyPatch, said: list[Any]
) -> None:
    """More clients lose their daemon than are kept for the main thread, which is elsewhere: none is forgotten
    silently."""
    clients = [_native.Client(instance=f"engine-{i}") for i in range(100)]

    def count() -> int:
        lost = [re.match(r"(\d+) more messages were lost", sentence) for _, sentence in said]
        return sum(int(found[1]) if found else 1 for found in lost)

    daemon.kill()
    ctypes.PyDLL(None).usleep(300_000)
    eventually(lambda: count() == 100)
    for client in clients:
        client.close()
    assert count() == 100
    assert {level for level, _ in said} <= {1, 2, 3}
