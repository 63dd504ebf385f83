# SPDX-License-Identifier: Apache-2.0
"""Schedulers and workers that lie, die or stop, packet by packet; honest ones: test_orders_wire.py."""

from __future__ import annotations

import pytest

from harness.broker import Daemon, Programs, eventually
from harness.observer import Observer, descriptors
from harness.pair import OPEN_MAX, PAGE, Pair, check_mapped, start_member, start_pair
from harness.raw import ORDERS, RawPeer
from harness.tasks import stopped

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
    pages = range(3000, 3000 + 1024)
    with stopped(pair.worker):
        for _ in range(OPEN_MAX):
            pair.post("Unmap", *pages)
        observer.is_served()
        pair.ask("Map", 1).check_refused("ERROR_RESOURCES")
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


@pytest.mark.parametrize("scheduler_dies", [False, True])
def test_worker_dies_after_closing_its_region(pair: Pair, observer: Observer, scheduler_dies: bool) -> None:
    """In the middle of an order, and with another behind it that has come whole."""
    first = pair.post("Map", 200)
    pair.worker.next_order()
    second = pair.post("Map", *range(100))
    pair.worker.next()
    assert pair.worker.request("RegionClose", region=pair.region).name == "RegionClosed"
    check_mapped(observer, 101)
    if scheduler_dies:
        pair.scheduler.kill()
    pair.worker.kill()
    eventually(lambda: observer.info().number("granted_bytes") == 0)
    if scheduler_dies:
        return
    for request in (first, second):
        answer = pair.scheduler.next()
        answer.check_refused("ERROR_WORKER", "gone", request)
        assert answer.number("over") == 1


def test_worker_keeps_what_it_had_when_it_closed(pair: Pair, observer: Observer) -> None:
    """It says done, and returns nothing: it is charged for that, and the number is not given out again."""
    request = pair.post("Map", 1)
    order = pair.worker.next_order()
    assert pair.worker.request("RegionClose", region=pair.region).name == "RegionClosed"
    pair.worker.report(order)
    pair.check_answer("Mapped", request)
    check_mapped(observer, 1)
    assert pair.worker.open_region() != pair.region
    assert pair.worker.give_back(*order.extents).name == "Returned"
    assert pair.worker.open_region() == pair.region


def test_regions_that_are_closed_under_orders(pair: Pair) -> None:
    """They are found by nobody, and count among the peer's until their memory is back."""
    orders = []
    for _ in range(256):
        pair.post("Map", 1)
        orders.append(pair.worker.next_order())
        assert pair.worker.request("RegionClose", region=pair.region).name == "RegionClosed"
        if len(orders) < 256:
            pair.region = pair.worker.open_ordered()
            pair.attached = pair.scheduler.attach()
    assert [order.region for order in orders] == list(range(1, 257))
    pair.worker.request("RegionOpen", segments=1, capacity_pages=1, page_extents=(1, 0, 0, 0)).check_refused(
        "ERROR_RESOURCES", "256 regions"
    )
    for order in orders:
        assert pair.worker.give_back(*order.extents).name == "Returned"
        pair.worker.report(order, "ERROR_WORKER", "closed")
        pair.scheduler.next().check_refused("ERROR_WORKER", "closed")
    assert pair.worker.open_ordered() == 1


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
