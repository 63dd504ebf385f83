# SPDX-License-Identifier: Apache-2.0
"""What is asked of daemons, and what is let go of, by whoever stands for a daemon."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import pytest

from controller.live import eventually, run
from kvcached.controller.config import Instance
from kvcached.controller.reservation import DaemonReserver, Full, NoRoom, needs_room, together

INSTANCE = Instance(
    name="a",
    model="a",
    engine="vllm",
    url="http://127.0.0.1:8000",
    served_model_name="a",
    ipc_name="llama",
    gpu=(0, 1),
    weight_bytes=300,
    min_kv_bytes=7,
)


class Books:
    """Of all daemons: what is held, by GPU."""

    def __init__(self) -> None:
        self.held: dict[int, tuple[str, int, int]] = {}
        self.full: set[int] = set()
        self.gone: set[int] = set()
        self.silent = threading.Event()
        self.silent.set()
        self.asked = 0

    def make(self, name: str, gpu: int, kv_bytes: int, weight_bytes: int, limit: float) -> Book:
        self.asked += 1
        assert limit > 0
        self.silent.wait(30)
        if gpu in self.gone:
            raise ConnectionError("no daemon")
        if gpu in self.full:
            raise Full("the budget cannot hold it")
        assert gpu not in self.held
        self.held[gpu] = (name, kv_bytes, weight_bytes)
        return Book(self, gpu)


class Book:
    def __init__(self, books: Books, gpu: int) -> None:
        self.books, self.gpu = books, gpu

    def release(self) -> None:
        del self.books.held[self.gpu]


def test_each_gpu_is_asked_for_all_that_is_needed() -> None:
    async def main() -> None:
        books = Books()
        reserver = DaemonReserver(books.make)
        held = await reserver.reserve(INSTANCE, 10)
        assert books.held == {0: ("llama", 7, 300), 1: ("llama", 7, 300)}
        await held.release()
        assert books.held == {}
        await held.release()
        reserver.close()

    run(main())


def test_all_or_nothing() -> None:
    async def main() -> None:
        books = Books()
        books.full = {1}
        reserver = DaemonReserver(books.make)
        with pytest.raises(NoRoom, match="GPU 1 for llama: the budget cannot hold it") as refusal:
            await reserver.reserve(INSTANCE, 10)
        assert refusal.value.missing_bytes == {1: None}
        assert books.held == {}
        assert books.asked == 2
        reserver.close()

    run(main())


def test_all_gpus_that_are_short_are_named() -> None:
    async def main() -> None:
        books = Books()
        books.full = {0, 2}
        reserver = DaemonReserver(books.make)
        with pytest.raises(NoRoom) as refusal:
            await reserver.reserve(replace(INSTANCE, gpu=(0, 1, 2)), 10)
        full = "for llama: the budget cannot hold it"
        assert str(refusal.value) == f"GPU 0 {full}; GPU 2 {full}"
        assert refusal.value.missing_bytes == {0: None, 2: None}
        assert books.held == {}
        reserver.close()

    run(main())


def test_nobody_else_can_help_where_a_daemon_is_gone() -> None:
    """Wherever else there is too little."""

    async def main() -> None:
        for gone in ({0}, {1}, {2}):
            books = Books()
            books.gone = gone
            books.full = {1, 2} - gone
            reserver = DaemonReserver(books.make)
            with pytest.raises(NoRoom, match=f"GPU {min(gone)} for llama: no daemon") as refusal:
                await reserver.reserve(replace(INSTANCE, gpu=(0, 1, 2)), 10)
            assert refusal.value.missing_bytes == {}
            assert books.held == {}
            reserver.close()

    run(main())


def test_together() -> None:
    both = together([NoRoom("a", {0: 1, 1: 2, 2: None}), NoRoom("b", {1: 3, 2: 4, 3: 5})])
    assert str(both) == "a; b"
    assert both.missing_bytes == {0: 1, 1: 5, 2: None, 3: 5}
    assert together([NoRoom("b", {2: 4}), NoRoom("a", {2: None})]).missing_bytes == {2: None}


def test_who_does_not_wait_any_more_keeps_nothing() -> None:
    """Although the daemon answers later."""

    async def main() -> None:
        books = Books()
        books.silent.clear()
        reserver = DaemonReserver(books.make)
        asked = asyncio.create_task(reserver.reserve(INSTANCE, 10))
        await eventually(lambda: books.asked == 1)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        assert asked.cancelled()
        books.silent.set()
        reserver._threads.shutdown(wait=True)
        assert books.held == {}
        assert books.asked == 1

    run(main())


def test_who_needs_none() -> None:
    assert needs_room(INSTANCE)
    for other in (
        replace(INSTANCE, ipc_name=None),
        replace(INSTANCE, weight_bytes=None, min_kv_bytes=None),
        replace(INSTANCE, url="http://10.0.0.7:8000"),
        replace(INSTANCE, url=None, dns=("engines", 8000)),
    ):
        assert not needs_room(other)

    async def main() -> None:
        books = Books()
        reserver = DaemonReserver(books.make)
        held = await reserver.reserve(replace(INSTANCE, ipc_name=None), 10)
        await held.release()
        assert books.asked == 0
        reserver.close()

    run(main())
