# SPDX-License-Identifier: Apache-2.0
"""A scheduler and a worker that say exactly what a test has them say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from harness.broker import Daemon, Programs
from harness.observer import MIB, Observer
from harness.raw import ORDERS, Message, Order, RawPeer, start_raw

PAGE = 2 * MIB
OPEN_MAX = 64


@dataclass
class Pair:
    """A scheduler and a worker of one instance, and the region that they share."""

    scheduler: RawPeer
    worker: RawPeer
    attached: Message
    region: int
    numbers: dict[int, int] = field(default_factory=dict)

    def post(self, name: str, *pages: int, region: int | None = None) -> int:
        """Sends Map or Unmap with the next number; its request id."""
        where = self.attached.number("region") if region is None else region
        number = self.numbers.get(where, 0) + 1
        self.numbers[where] = number
        given: dict[str, object] = {"region": where, "number": number}
        if pages:
            given["pages"] = pages
        return self.scheduler.post(name, **given)

    def ask(self, name: str, *pages: int, region: int | None = None) -> Message:
        """Posts an order that is answered without the worker."""
        request = self.post(name, *pages, region=region)
        answer = self.scheduler.next()
        assert answer.number("request") == request, answer.text
        return answer

    def map(self, *pages: int) -> Order:
        """Has pages mapped; the worker obeys."""
        return self.carry_out("Map", "Mapped", *pages)

    def unmap(self, *pages: int, extents: list[int]) -> Order:
        """Has pages unmapped; the worker returns these extents for them."""
        return self.carry_out("Unmap", "Unmapped", *pages, extents=extents)

    def carry_out(self, name: str, answer: str, *pages: int, extents: list[int] | None = None) -> Order:
        request = self.post(name, *pages)
        order = self.worker.next_order()
        if extents:
            assert self.worker.give_back(*extents).name == "Returned"
        self.worker.report(order)
        self.check_answer(answer, request)
        return order

    def check_answer(self, name: str, request: int) -> None:
        answer = self.scheduler.next()
        assert answer.name == name, answer.text
        assert answer.number("request") == request


def start_member(programs: Programs, daemon: Daemon, role: str, instance: str = "raw") -> RawPeer:
    """A peer that knows orders."""
    peer = start_raw(programs, daemon, instance)
    welcome = peer.open(role=f"ROLE_{role}", features=ORDERS)
    assert welcome.number("features") == ORDERS
    return peer


def start_pair(programs: Programs, daemon: Daemon, instance: str = "raw", **region: Any) -> Pair:
    worker = start_member(programs, daemon, "WORKER", instance)
    number = worker.open_ordered(**region)
    scheduler = start_member(programs, daemon, "SCHEDULER", instance)
    return Pair(scheduler, worker, scheduler.attach(), number)


def check_mapped(observer: Observer, pages: int) -> None:
    """So much is granted, to the worker's instance; and others are served."""
    assert observer.info().number("granted_bytes") == pages * PAGE
    observer.is_served()
