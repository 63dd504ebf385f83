# SPDX-License-Identifier: Apache-2.0
"""A scheduler has pages mapped in a worker: what passes between them and the daemon, packet by packet.

Those that lie, die or stop: test_hostile_orders.py.
"""

from __future__ import annotations

import pytest

from harness.broker import Daemon, Programs, Site, eventually
from harness.observer import Observer
from harness.pair import PAGE, Pair, check_mapped, start_member, start_pair
from harness.raw import RawPeer

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
    answer = pair.scheduler.next()
    answer.check_refused("ERROR_WORKER", "closed", first)
    assert answer.number("over") == 1
    again = pair.worker.open_ordered()
    pair.ask("Map", 1).check_refused("ERROR_WORKER", "gone")
    assert Pair(pair.scheduler, pair.worker, pair.scheduler.attach(), again).map(1)


def test_what_is_over_and_what_is_not(pair: Pair, programs: Programs, daemon: Daemon) -> None:
    """A scheduler is told whether it is of any use to go on."""
    request = pair.post("Map", 1)
    pair.worker.report(pair.worker.next_order(), "ERROR_WORKER", "not today")
    failed = pair.scheduler.next()
    failed.check_refused("ERROR_WORKER", "today", request)
    assert failed.number("over") == 0
    pair.map(1)
    later = Pair(
        pair.scheduler, pair.worker, start_member(programs, daemon, "SCHEDULER").attach(), pair.region
    )
    assert pair.ask("Map", 2).number("over") == 1
    successor = Pair(pair.scheduler, pair.worker, pair.scheduler.attach(), pair.region)
    assert successor.attached.number("session") > later.attached.number("session")
    sent = successor.post("Map", 3)
    assert pair.worker.next_order().pages == [3]
    pair.worker.kill()
    answer = pair.scheduler.next()
    answer.check_refused("ERROR_WORKER", "gone", sent)
    assert answer.number("over") == 1
    assert successor.ask("Unmap", 3).number("over") == 1
    assert successor.ask("Map", 4, 4).number("over") == 0


def test_worker_cannot_close_what_is_mapped(pair: Pair) -> None:
    """Whatever is on its way besides; nor what it has taken for itself."""
    order = pair.map(*range(100))
    pair.worker.request("RegionClose", region=pair.region).check_refused("ERROR_INVALID", "not been returned")
    pair.post("Map", 100)
    late = pair.worker.next_order()
    pair.worker.request("RegionClose", region=pair.region).check_refused("ERROR_INVALID", "not been returned")
    assert pair.worker.give_back(*order.extents, *late.extents).name == "Returned"
    pair.worker.report(late, "ERROR_INVALID")
    pair.scheduler.next().check_refused("ERROR_INVALID")
    pair.worker.take(pair.region)
    pair.worker.request("RegionClose", region=pair.region).check_refused("ERROR_INVALID", "not been returned")


def test_worker_closes_its_region_while_memory_is_made(programs: Programs, site: Site) -> None:
    """Of an order that waits for memory nothing comes any more."""
    costs = site.run / "costs"
    costs.write_text("cuMemCreate call:200000\n")
    daemon = programs.daemon(
        config="[daemon]\nreserve=0\n", environment={"KVCACHED_EMULATE_COSTS": str(costs)}
    )
    pair = start_pair(programs, daemon)
    requests = [pair.post("Map", *range(10)), pair.post("Unmap", 30)]
    assert pair.worker.request("RegionClose", region=pair.region).name == "RegionClosed"
    for request in requests:
        answer = pair.scheduler.next()
        answer.check_refused("ERROR_WORKER", "gone", request)
        assert answer.number("over") == 1
    assert pair.worker.open_region() == pair.region
    assert programs.kvctl("list", "--json", daemon=daemon).json()[0]["used_bytes"] == 0
    assert pair.worker.next(within=0.1).name == "nothing"


@pytest.mark.parametrize("acknowledged", [0, 1, 2])
def test_worker_closes_its_region_under_an_order(pair: Pair, observer: Observer, acknowledged: int) -> None:
    """What has begun to leave comes whole, and goes back; the region ends with it. The rest is dropped."""
    sent = pair.post("Map", *range(100))
    packets = [pair.worker.next()]
    for _ in range(acknowledged):
        pair.worker.post("GrantAck", packets[0].number("request"))
        if len(packets) < 2:
            packets.append(pair.worker.next())
    waiting = [] if acknowledged else [pair.post("Map", 100), pair.post("Unmap", 1)]
    assert pair.worker.request("RegionClose", region=pair.region).name == "RegionClosed"
    for request in waiting:
        pair.scheduler.next().check_refused("ERROR_WORKER", "gone", request)
    assert pair.ask("Map", 101).number("over") == 1
    check_mapped(observer, 100)
    twice = pair.worker.request("RegionClose", region=pair.region)
    twice.check_refused("ERROR_INVALID", "no such region")
    taken = pair.worker.request("Take", region=pair.region, pages=1)
    taken.check_refused("ERROR_INVALID", "no such region")
    again = pair.worker.open_ordered()
    assert again != pair.region
    while len(packets) < 2:
        pair.worker.post("GrantAck", packets[0].number("request"))
        packets.append(pair.worker.next())
    if acknowledged < 2:
        pair.worker.post("GrantAck", packets[0].number("request"))
    extents = [extent for packet in packets for extent in packet.numbers("extents")]
    assert {packet.number("region") for packet in packets} == {pair.region}
    assert pair.worker.give_back(*extents[1:]).name == "Returned"
    pair.worker.post("OrderDone", packets[0].number("request"), error="ERROR_WORKER", reason="closed")
    pair.scheduler.next().check_refused("ERROR_WORKER", "closed", sent)
    assert pair.worker.open_region() not in (again, pair.region)
    assert pair.worker.give_back(extents[0]).name == "Returned"
    assert pair.worker.open_region() == pair.region
    check_mapped(observer, 0)
    later = Pair(pair.scheduler, pair.worker, pair.scheduler.attach(), again)
    assert later.map(1).region == again


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
