# SPDX-License-Identifier: Apache-2.0
"""A scheduler has pages mapped in a worker: what passes between them and the daemon, packet by packet.

Honest ones first; then those that lie, die, stop, or are somebody else.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field
from typing import Any

import pytest

from harness.broker import Daemon, Programs, eventually
from harness.observer import MIB, Observer, descriptors
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


@pytest.fixture
def pair(programs: Programs, daemon: Daemon, observer: Observer) -> Pair:
    """Under observation: in the end nothing is left of them."""
    assert observer.daemon is daemon
    return start_pair(programs, daemon)


def check_mapped(observer: Observer, pages: int) -> None:
    """So much is granted, to the worker's instance; and others are served."""
    assert observer.info().number("granted_bytes") == pages * PAGE
    observer.is_served()


# ---- As it should be ----


def test_map_and_unmap(pair: Pair, observer: Observer) -> None:
    order = pair.map(7, 3)
    assert (order.name, order.region, order.number) == ("MapOrder", pair.region, 1)
    assert order.pages == [7, 3]
    assert len(set(order.extents)) == 2
    check_mapped(observer, 2)
    undone = pair.unmap(3, extents=order.extents[1:])
    assert (undone.name, undone.number, undone.pages) == ("UnmapOrder", 2, [3])
    check_mapped(observer, 1)
    pair.unmap(7, extents=order.extents[:1])
    check_mapped(observer, 0)


def test_region_is_described_to_the_scheduler(programs: Programs, daemon: Daemon) -> None:
    pair = start_pair(programs, daemon, capacity_pages=77, page_extents=(2, 1, 0, 0))
    assert pair.attached.number("capacity_pages") == 77
    assert pair.attached.numbers("page_extents")[:2] == [2, 1]
    assert pair.attached.number("segments") == 1
    order = pair.map(5, 76)
    assert len(order.extents) == 2 * 3
    assert order.session == pair.attached.number("session")


@pytest.mark.usefixtures("observer")
def test_attaching_waits_for_the_worker(programs: Programs, daemon: Daemon) -> None:
    """Of its own instance; another's region of the same numbers is none of its business."""
    scheduler = start_member(programs, daemon, "SCHEDULER")
    request = scheduler.post("RegionAttach", group=1, rank=2)
    stranger = start_member(programs, daemon, "WORKER", "stranger")
    stranger.open_ordered(group=1, rank=2)
    worker = start_member(programs, daemon, "WORKER")
    worker.open_ordered(group=1, rank=1)
    worker.open_ordered(group=2, rank=2)
    assert scheduler.next(within=0.1).name == "nothing"
    region = worker.open_ordered(group=1, rank=2)
    attached = scheduler.next()
    assert attached.name == "RegionAttached", attached.text
    assert attached.number("request") == request
    pair = Pair(scheduler, worker, attached, region)
    assert pair.map(0).region == region
    assert stranger.next(within=0).name == "nothing"


def test_scheduler_that_waits_and_dies(programs: Programs, daemon: Daemon, observer: Observer) -> None:
    scheduler = start_member(programs, daemon, "SCHEDULER")
    scheduler.post("RegionAttach")
    survivor = start_member(programs, daemon, "SCHEDULER")
    survivor.post("RegionAttach")
    scheduler.kill()
    eventually(lambda: observer.instances().count("raw") == 1)
    eventually(lambda: observer.info().number("peers") == 2)
    worker = start_member(programs, daemon, "WORKER")
    worker.open_ordered()
    assert survivor.next().name == "RegionAttached"


def test_map_of_many_packets(pair: Pair, observer: Observer) -> None:
    order = pair.map(*range(200))
    assert len(set(order.extents)) == 200
    check_mapped(observer, 200)
    pair.unmap(*range(200), extents=order.extents)


def test_orders_arrive_in_order(pair: Pair) -> None:
    """However many packets one takes, and though nobody waits for answers."""
    names = ["Map", "Unmap", "Map", "Map", "Unmap", "Unmap", "Map"]
    requests = [pair.post(name, *range(i * 100, i * 100 + 70)) for i, name in enumerate(names)]
    orders = [pair.worker.next_order() for _ in names]
    assert [order.name.removesuffix("Order") for order in orders] == names
    assert [order.number for order in orders] == list(range(1, len(names) + 1))
    for order in reversed(orders):
        pair.worker.report(order)
    for request, name in reversed(list(zip(requests, names, strict=True))):
        pair.check_answer({"Map": "Mapped", "Unmap": "Unmapped"}[name], request)


def test_regions_of_two_workers(programs: Programs, daemon: Daemon) -> None:
    """One that is slow keeps only its own orders waiting."""
    pair = start_pair(programs, daemon)
    slow = pair.post("Map", 1)
    other = start_member(programs, daemon, "WORKER")
    region = other.open_ordered(rank=1)
    second = Pair(pair.scheduler, other, pair.scheduler.attach(rank=1), region)
    assert second.map(1).region == region
    pair.worker.report(pair.worker.next_order())
    pair.check_answer("Mapped", slow)


def test_worker_that_cannot(pair: Pair, observer: Observer) -> None:
    """It gives the memory back first; the scheduler hears why."""
    for told, heard in (
        ("ERROR_DRIVER", "ERROR_DRIVER"),
        ("ERROR_INVALID", "ERROR_INVALID"),
        ("ERROR_PERMISSION", "ERROR_WORKER"),
        ("77", "ERROR_WORKER"),
    ):
        request = pair.post("Map", 1)
        order = pair.worker.next_order()
        assert pair.worker.give_back(*order.extents).name == "Returned"
        pair.worker.report(order, told, "no \x1b[2J luck")
        pair.scheduler.next().check_refused(heard, "no ?[2j luck", request)
    check_mapped(observer, 0)
    pair.map(1)


def test_worker_gives_no_reason(pair: Pair) -> None:
    request = pair.post("Unmap", 1)
    pair.worker.report(pair.worker.next_order(), "ERROR_WORKER")
    pair.scheduler.next().check_refused("ERROR_WORKER", "could not", request)


def test_limit_holds(programs: Programs) -> None:
    """A Map is refused as a Take would be, and what comes behind it is not."""
    daemon = programs.daemon("1G", config="[instance raw]\nlimit=16M\n")
    pair = start_pair(programs, daemon)
    request = pair.post("Map", *range(9))
    behind = pair.post("Map", *range(8))
    refusal = pair.scheduler.next()
    refusal.check_refused("ERROR_LIMIT", "limit", request)
    assert refusal.number("limit_bytes") == 8 * PAGE
    pair.worker.report(pair.worker.next_order())
    pair.check_answer("Mapped", behind)
    pair.ask("Map", 9).check_refused("ERROR_LIMIT")


def test_capacity_holds(programs: Programs, daemon: Daemon) -> None:
    """A page that is mapped twice is the worker's to refuse, but the region has no more than its pages."""
    pair = start_pair(programs, daemon, capacity_pages=4)
    order = pair.map(0, 1, 2)
    pair.ask("Map", 2, 3).check_refused("ERROR_INVALID", "not so many pages")
    pair.unmap(0, extents=order.extents[:1])
    pair.map(0, 3)


def test_worker_may_take_for_itself(pair: Pair, observer: Observer) -> None:
    held = pair.worker.take(pair.region)
    pair.map(1)
    check_mapped(observer, 2)
    assert pair.worker.give_back(*held).name == "Returned"


def test_closing_leaves_the_pages(pair: Pair, observer: Observer) -> None:
    """The scheduler's number ends, once its orders are answered; the worker's pages stay."""
    request = pair.post("Map", 1)
    number = pair.attached.number("region")
    pair.scheduler.request("RegionClose", region=number).check_refused("ERROR_INVALID", "not been answered")
    pair.worker.report(pair.worker.next_order())
    pair.check_answer("Mapped", request)
    assert pair.scheduler.request("RegionClose", region=number).name == "RegionClosed"
    check_mapped(observer, 1)
    pair.ask("Unmap", 1).check_refused("ERROR_INVALID", "no such region")
    again = pair.scheduler.attach()
    assert again.number("session") > pair.attached.number("session")


def test_worker_closes_its_region(pair: Pair) -> None:
    """What was sent is still reported on; what comes later is too late."""
    first = pair.post("Unmap", 1)
    order = pair.worker.next_order()
    assert pair.worker.request("RegionClose", region=pair.region).name == "RegionClosed"
    pair.ask("Map", 1).check_refused("ERROR_WORKER", "gone")
    pair.worker.report(order, "ERROR_INVALID", "closed")
    pair.scheduler.next().check_refused("ERROR_INVALID", "closed", first)
    again = pair.worker.open_ordered()
    pair.ask("Map", 1).check_refused("ERROR_WORKER", "gone")
    assert Pair(pair.scheduler, pair.worker, pair.scheduler.attach(), again).map(1)


def test_worker_cannot_close_what_is_mapped(pair: Pair) -> None:
    pair.post("Map", *range(100))
    pair.worker.next_order()
    pair.worker.request("RegionClose", region=pair.region).check_refused("ERROR_INVALID", "not been returned")


# ---- Who may what ----


@pytest.mark.usefixtures("observer")
@pytest.mark.parametrize(
    ("role", "messages"),
    [
        ("ENGINE", ("RegionAttach", "Map", "Unmap", "OrderDone")),
        ("WORKER", ("RegionAttach", "Map", "Unmap")),
        ("SCHEDULER", ("RegionOpen", "Take", "Return", "OrderDone")),
    ],
)
def test_wrong_role(programs: Programs, daemon: Daemon, role: str, messages: tuple[str, ...]) -> None:
    peer = start_member(programs, daemon, role)
    for name in messages:
        peer.request(name).check_refused("ERROR_PERMISSION", "your role")


@pytest.mark.parametrize("features", [0, 1 << 40])
@pytest.mark.parametrize(
    ("role", "name"),
    [
        ("SCHEDULER", "RegionAttach"),
        ("SCHEDULER", "Map"),
        ("SCHEDULER", "Unmap"),
        ("WORKER", "OrderDone"),
        ("WORKER", "MapOrder"),
        ("ENGINE", "Mapped"),
    ],
)
def test_without_the_feature_there_is_no_such_message(
    raw: RawPeer, role: str, name: str, features: int
) -> None:
    assert raw.open(role=f"ROLE_{role}", features=features).number("features") == 0
    raw.post(name)
    raw.check_ended("ERROR_PROTOCOL", "no place")


@pytest.mark.usefixtures("observer")
def test_answers_are_no_requests(programs: Programs, daemon: Daemon) -> None:
    for name in ("RegionAttached", "Mapped", "Unmapped", "MapOrder", "UnmapOrder"):
        peer = start_member(programs, daemon, "SCHEDULER")
        peer.post(name)
        peer.check_ended("ERROR_PROTOCOL", "no place")


def test_scheduler_of_the_first_release(raw: RawPeer) -> None:
    raw.open(role="ROLE_SCHEDULER")
    raw.request("RegionClose", region=1).check_refused("ERROR_PERMISSION")


def test_worker_of_the_first_release(raw: RawPeer, programs: Programs, daemon: Daemon) -> None:
    """It doesn't know the fields, so they mean nothing; nobody is sent to it."""
    raw.open(role="ROLE_WORKER")
    raw.open_ordered()
    scheduler = start_member(programs, daemon, "SCHEDULER")
    scheduler.post("RegionAttach")
    assert scheduler.next(within=0.1).name == "nothing"


@pytest.mark.usefixtures("observer")
def test_engine_has_no_ordered_regions(programs: Programs, daemon: Daemon) -> None:
    peer = start_member(programs, daemon, "ENGINE")
    peer.request(
        "RegionOpen", segments=1, capacity_pages=1, page_extents=(1, 0, 0, 0), ordered=1
    ).check_refused("ERROR_INVALID", "only a worker")


def test_two_workers_of_one_number(pair: Pair, programs: Programs, daemon: Daemon) -> None:
    rival = start_member(programs, daemon, "WORKER")
    rival.request(
        "RegionOpen", segments=1, capacity_pages=1, page_extents=(1, 0, 0, 0), ordered=1
    ).check_refused("ERROR_INVALID", "this group and rank")
    pair.map(1)


# ---- Nonsense ----


@pytest.mark.parametrize("name", ["Map", "Unmap"])
@pytest.mark.parametrize(
    ("pages", "reason"),
    [
        (tuple(range(1025)), "1 to 1024"),
        ((4096,), "fewer pages"),
        ((0, 2**64 - 1), "fewer pages"),
        ((5, 5), "named twice"),
        ((9, 3, 8, 3), "named twice"),
    ],
)
def test_impossible_pages(pair: Pair, name: str, pages: tuple[int, ...], reason: str) -> None:
    pair.ask(name, *pages).check_refused("ERROR_INVALID", reason)
    pair.map(0)


def test_no_pages(pair: Pair) -> None:
    """Nothing to map makes no sense; nothing to unmap is what a new scheduler begins with."""
    pair.ask("Map").check_refused("ERROR_INVALID", "1 to 1024")
    pair.unmap(extents=[])
    pair.map(0)


@pytest.mark.parametrize("region", [0, 2, 256, 257, 2**32 - 1])
def test_region_that_is_not_attached(pair: Pair, region: int) -> None:
    pair.ask("Map", 1, region=region).check_refused("ERROR_INVALID", "no such region")
    pair.map(1)


@pytest.mark.usefixtures("observer")
def test_map_before_attaching(programs: Programs, daemon: Daemon) -> None:
    worker = start_member(programs, daemon, "WORKER")
    region = worker.open_ordered()
    scheduler = start_member(programs, daemon, "SCHEDULER")
    scheduler.request("Map", region=region, number=1, pages=(1,)).check_refused("ERROR_INVALID")
    assert worker.next(within=0.1).name == "nothing"


@pytest.mark.parametrize("number", [0, 2, 3])
def test_number_that_goes_back(pair: Pair, number: int) -> None:
    region = pair.attached.number("region")
    pair.numbers[region] = 2
    pair.map(1)
    pair.scheduler.request("Unmap", region=region, number=number, pages=(1,)).check_refused(
        "ERROR_INVALID", "upwards"
    )
    pair.numbers[region] = 2**64 - 2
    pair.map(2)
    pair.scheduler.request("Unmap", region=region, number=4, pages=(1,)).check_refused("ERROR_INVALID")


def test_report_out_of_the_blue(pair: Pair) -> None:
    request = pair.post("Map", 1)
    order = pair.worker.next_order()
    pair.worker.post("OrderDone", order.id + 1)
    pair.worker.check_ended("ERROR_PROTOCOL", "nothing that was ordered")
    pair.scheduler.next().check_refused("ERROR_WORKER", "gone", request)


def test_report_twice(pair: Pair) -> None:
    order = pair.map(1)
    pair.worker.report(order)
    pair.worker.check_ended("ERROR_PROTOCOL", "nothing that was ordered")
    pair.ask("Map", 2).check_refused("ERROR_WORKER", "gone")


@pytest.mark.parametrize("pages", [1, 100])
def test_report_before_everything_has_come(pair: Pair, pages: int) -> None:
    """The word of a worker that cannot have all of it yet is not believed."""
    request = pair.post("Map", *range(pages))
    first = pair.worker.next()
    pair.worker.post("OrderDone", first.number("request"))
    pair.worker.check_ended("ERROR_PROTOCOL", "nothing that was ordered")
    pair.scheduler.next().check_refused("ERROR_WORKER", "gone", request)


def test_report_on_an_order_that_waits(pair: Pair) -> None:
    """The number of one that was not sent can be guessed."""
    pair.post("Map", *range(100))
    pair.post("Unmap", 7)
    first = pair.worker.next()
    pair.worker.post("OrderDone", first.number("request") + 1)
    pair.worker.check_ended("ERROR_PROTOCOL", "nothing that was ordered")
    for _ in range(2):
        pair.scheduler.next().check_refused("ERROR_WORKER", "gone")


@pytest.mark.parametrize("offset", [1, 77])
def test_wrong_acknowledgement(pair: Pair, offset: int) -> None:
    request = pair.post("Map", 1)
    order = pair.worker.next()
    pair.worker.post("GrantAck", order.number("request") + offset)
    pair.worker.check_ended("ERROR_PROTOCOL", "acknowledges nothing")
    pair.scheduler.next().check_refused("ERROR_WORKER", "gone", request)


def test_unmap_order_is_not_acknowledged(pair: Pair) -> None:
    pair.post("Unmap", 1)
    pair.worker.post("GrantAck", pair.worker.next_order().id)
    pair.worker.check_ended("ERROR_PROTOCOL", "acknowledges nothing")


def test_return_before_everything_has_come(pair: Pair) -> None:
    pair.post("Map", *range(100))
    first = pair.worker.next()
    pair.worker.give_back(*first.numbers("extents")).check_refused("ERROR_INVALID", "not yours")


def test_too_many_orders(pair: Pair, observer: Observer) -> None:
    """A bounded number is open; those that are refused do no harm to the others."""
    for page in range(OPEN_MAX):
        pair.post("Unmap", page)
    pair.ask("Unmap", 77).check_refused("ERROR_RESOURCES", "too many orders")
    observer.is_served()
    orders = [pair.worker.next_order() for _ in range(OPEN_MAX)]
    pair.worker.report(orders[0])
    assert pair.scheduler.next().name == "Unmapped"
    pair.post("Map", 1)
    for order in [*orders[1:], pair.worker.next_order()]:
        pair.worker.report(order)
    answers = [pair.scheduler.next().name for _ in range(OPEN_MAX)]
    assert answers == ["Unmapped"] * (OPEN_MAX - 1) + ["Mapped"]


def test_too_many_attachments(raw: RawPeer, observer: Observer) -> None:
    raw.open(role="ROLE_SCHEDULER", features=ORDERS)
    for rank in range(OPEN_MAX):
        raw.post("RegionAttach", rank=rank)
    raw.request("RegionAttach", rank=0).check_refused("ERROR_RESOURCES", "too many requests")
    observer.is_served()


def test_too_many_attached_regions(pair: Pair) -> None:
    for _ in range(255):
        pair.scheduler.attach()
    pair.scheduler.request("RegionAttach").check_refused("ERROR_RESOURCES", "256 regions")


# ---- Stopping and dying ----


def test_stopped_worker(pair: Pair, observer: Observer) -> None:
    """More is ordered than its socket takes. It loses nothing, and nobody else waits."""
    os.kill(pair.worker.pid, signal.SIGSTOP)
    pages = range(3000, 3000 + 1024)
    for _ in range(OPEN_MAX):
        pair.post("Unmap", *pages)
    observer.is_served()
    pair.ask("Map", 1).check_refused("ERROR_RESOURCES")
    os.kill(pair.worker.pid, signal.SIGCONT)
    orders = [pair.worker.next_order() for _ in range(OPEN_MAX)]
    assert [order.number for order in orders] == list(range(1, OPEN_MAX + 1))
    assert all(order.pages == list(pages) for order in orders)
    for order in orders:
        pair.worker.report(order)
        assert pair.scheduler.next().name == "Unmapped"
    check_mapped(observer, 0)


def test_worker_that_keeps_descriptors_waiting(pair: Pair, daemon: Daemon, observer: Observer) -> None:
    """Its order turns cold, as a grant does, and goes on when it does."""
    before = len(descriptors(daemon.pid))
    request = pair.post("Map", *range(200))
    first = pair.worker.next()
    eventually(lambda: len(descriptors(daemon.pid)) <= before)
    extents = first.numbers("extents")
    while len(extents) < 200:
        pair.worker.post("GrantAck", first.number("request"))
        packet = pair.worker.next()
        assert packet.name == "MapOrder", packet.text
        assert packet.number("fds") == len(packet.numbers("extents"))
        extents += packet.numbers("extents")
    pair.worker.post("GrantAck", first.number("request"))
    pair.worker.post("OrderDone", first.number("request"))
    pair.check_answer("Mapped", request)
    check_mapped(observer, 200)


@pytest.mark.parametrize("acknowledged", [0, 1, 2])
def test_worker_dies(
    pair: Pair, programs: Programs, daemon: Daemon, observer: Observer, acknowledged: int
) -> None:
    """Between packets, or after the last; what was ordered and what will be is refused, until there is
    another."""
    requests = [pair.post("Map", *range(100)), pair.post("Map", 200), pair.post("Unmap", 1)]
    packet = pair.worker.next()
    for _ in range(acknowledged):
        pair.worker.post("GrantAck", packet.number("request"))
        packet = pair.worker.next()
    pair.worker.kill()
    answers = [pair.scheduler.next() for _ in requests]
    for answer in answers:
        answer.check_refused("ERROR_WORKER", "gone")
    assert sorted(answer.number("request") for answer in answers) == requests
    pair.ask("Unmap", 3).check_refused("ERROR_WORKER", "gone")
    eventually(lambda: observer.info().number("granted_bytes") == 0)
    pending = pair.scheduler.post("RegionAttach")
    successor = start_member(programs, daemon, "WORKER")
    region = successor.open_ordered()
    attached = pair.scheduler.next()
    assert attached.number("request") == pending
    assert Pair(pair.scheduler, successor, attached, region).map(3).number == 1


def test_worker_loses_its_connection(pair: Pair, observer: Observer) -> None:
    """Its process lives, and what that was given stays charged."""
    pair.map(1, 2)
    request = pair.post("Map", 3)
    pair.worker.next_order()
    pair.worker.do("close")
    pair.scheduler.next().check_refused("ERROR_WORKER", "gone", request)
    assert observer.info().number("limbo_bytes") == 3 * PAGE


def test_scheduler_dies(pair: Pair, programs: Programs, daemon: Daemon, observer: Observer) -> None:
    """What had left is carried out and answered to nobody; what waited is dropped."""
    for page in range(0, 300, 100):
        pair.post("Map", *range(page, page + 100))
    first = pair.worker.next()
    pair.scheduler.kill()
    successor = start_member(programs, daemon, "SCHEDULER")
    attached = successor.attach()
    assert attached.number("session") > pair.attached.number("session")
    eventually(lambda: observer.info().number("granted_bytes") == 100 * PAGE)
    pair.worker.post("GrantAck", first.number("request"))
    rest = pair.worker.next()
    assert rest.number("request") == first.number("request")
    pair.worker.post("GrantAck", first.number("request"))
    pair.worker.post("OrderDone", first.number("request"))
    later = Pair(successor, pair.worker, attached, pair.region)
    order = later.map(900)
    assert (order.session, order.number) == (attached.number("session"), 1)
    check_mapped(observer, 101)


def test_scheduler_dies_while_its_order_waits_for_memory(programs: Programs) -> None:
    """Nothing stays promised."""
    daemon = programs.daemon("4G", budget="3G")
    pair = start_pair(programs, daemon)
    for _ in range(4):
        pair.post("Map", *range(300))
    pair.scheduler.kill()
    pair.worker.kill()
    eventually(lambda: programs.kvctl("list", "--json", daemon=daemon).json() == [])


def test_another_scheduler_takes_over(pair: Pair, programs: Programs, daemon: Daemon) -> None:
    """What the earlier one still has waiting is refused, as all that comes later; what was sent is done."""
    sent = pair.post("Map", *range(100))
    packet = pair.worker.next()
    waiting = [pair.post("Map", 100), pair.post("Unmap", 5)]
    successor = start_member(programs, daemon, "SCHEDULER")
    later = Pair(successor, pair.worker, successor.attach(), pair.region)
    assert later.attached.number("session") > pair.attached.number("session")
    pair.ask("Map", 101).check_refused("ERROR_WORKER", "taken over")
    request = later.post("Map", 102)
    for _ in range(2):
        pair.worker.post("GrantAck", packet.number("request"))
        packet = pair.worker.next()
    assert packet.number("session") == later.attached.number("session")
    pair.worker.post("GrantAck", packet.number("request"))
    pair.worker.post("OrderDone", packet.number("request"))
    later.check_answer("Mapped", request)
    for waited in waiting:
        pair.scheduler.next().check_refused("ERROR_WORKER", "taken over", waited)
    pair.worker.post("OrderDone", 1)
    pair.check_answer("Mapped", sent)


def test_everybody_dies_at_once(programs: Programs, daemon: Daemon, observer: Observer) -> None:
    """In the middle of everything, several times."""
    for round_ in range(5):
        pair = start_pair(programs, daemon)
        for page in range(round_, 500, 100):
            pair.post("Map", *range(page, page + 70))
        pair.post("Unmap", 1)
        for peer in (pair.scheduler, pair.worker) if round_ % 2 else (pair.worker, pair.scheduler):
            peer.kill()
        eventually(lambda: "raw" not in observer.instances())
