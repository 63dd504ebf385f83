# SPDX-License-Identifier: Apache-2.0
"""Peers that keep to the protocol's form and ask for what cannot be, or never read what they asked for.

Each is refused with a reason and goes on; nobody else notices.
"""

from __future__ import annotations

import pytest

from harness.broker import Daemon, Programs, eventually
from harness.observer import MIB, Observer, resident_bytes
from harness.raw import RawPeer, start_raw

# ---- Regions and memory ----


@pytest.mark.parametrize(
    "region",
    [
        {"segments": 0},
        {"segments": 4097},
        {"segments": 2**32 - 1},
        {"capacity_pages": 2**63, "page_extents": (1, 1, 0, 0)},
        {"page_extents": ()},
        {"page_extents": (1, 0, 0, 0, 0)},
        {"page_extents": (0, 0, 0, 0)},
        {"page_extents": (2**32 - 1,) * 4},
        {"page_extents": (1,) * 8000},
        {"flags": 1},
        {"flags": 2**31},
    ],
)
def test_impossible_region(raw: RawPeer, region: dict[str, object]) -> None:
    raw.open()
    possible: dict[str, object] = {"segments": 1, "capacity_pages": 8, "page_extents": (1, 0, 0, 0)}
    wanted = {field: value for field, value in (possible | region).items() if value != ()}
    raw.request("RegionOpen", **wanted).check_refused("ERROR_INVALID")
    assert raw.take(raw.open_region())


def test_too_many_regions(raw: RawPeer) -> None:
    """A bounded number, and a reason for the next one."""
    raw.open()
    for _ in range(2000):
        opened = raw.request("RegionOpen", segments=1, capacity_pages=8, page_extents=(1, 0, 0, 0))
        if opened.name != "RegionOpened":
            break
    opened.check_refused("ERROR_RESOURCES", "256 regions")
    assert raw.request("RegionClose", region=1).name == "RegionClosed"
    raw.open_region()


@pytest.mark.parametrize("region", [0, 2, 7, 257, 2**32 - 1])
def test_region_that_is_not_there(raw: RawPeer, region: int) -> None:
    raw.open()
    assert raw.open_region() not in (0, 2)
    raw.request("Take", region=region, pages=1).check_refused("ERROR_INVALID")
    raw.request("RegionClose", region=region).check_refused("ERROR_INVALID")


@pytest.mark.parametrize("pages", [0, 2**20 + 1, 2**31, 2**32 - 1])
def test_absurd_take(raw: RawPeer, observer: Observer, pages: int) -> None:
    raw.open()
    region = raw.open_region()
    assert raw.request("Take", region=region, pages=pages).name == "Refused"
    observer.is_served()
    assert raw.give_back(*raw.take(region)).name == "Returned"


@pytest.mark.parametrize("page_extents", [(0, 0, 0, 2**16), (2**16, 0, 0, 0)])
def test_page_that_no_gpu_holds(raw: RawPeer, page_extents: tuple[int, ...]) -> None:
    raw.open()
    answer = raw.request("RegionOpen", segments=1, capacity_pages=2**32, page_extents=page_extents)
    answer.check_refused("ERROR_BUDGET", "larger than the GPU")


def test_more_than_the_budget(raw: RawPeer, observer: Observer) -> None:
    raw.open()
    refusal = raw.request("Take", region=raw.open_region(), pages=1024)
    refusal.check_refused("ERROR_BUDGET")
    assert refusal.number("used_bytes") <= refusal.number("limit_bytes") < 2048 * MIB
    observer.is_served()


@pytest.mark.parametrize("extents", [(0,), (1,), (2**64 - 1,), (2**32, 2**33), tuple(range(4096))])
def test_return_of_what_nobody_gave(raw: RawPeer, extents: tuple[int, ...]) -> None:
    raw.open()
    held = raw.take(raw.open_region(), 2)
    unknown = [extent for extent in extents if extent not in held]
    raw.give_back(*unknown).check_refused("ERROR_INVALID")
    raw.give_back(held[0], *unknown[:4000]).check_refused("ERROR_INVALID")
    assert raw.give_back(*held).name == "Returned"


def test_double_return(raw: RawPeer) -> None:
    raw.open()
    held = raw.take(raw.open_region(), 2)
    raw.give_back(held[0], held[0]).check_refused("ERROR_INVALID")
    raw.give_back(*held, held[1]).check_refused("ERROR_INVALID")
    assert raw.give_back(*held).name == "Returned"
    raw.give_back(held[0]).check_refused("ERROR_INVALID")


@pytest.mark.parametrize("n", [4097, 8189])
def test_overlong_return(raw: RawPeer, n: int) -> None:
    """One more than is allowed, and as many as a packet holds."""
    raw.open()
    held = raw.take(raw.open_region())
    raw.give_back(*held * n).check_refused("ERROR_INVALID")
    assert raw.give_back(*held).name == "Returned"


def test_empty_return(raw: RawPeer) -> None:
    raw.open()
    raw.request("Return").check_refused("ERROR_INVALID")
    assert raw.take(raw.open_region())


@pytest.mark.parametrize("instance", ["raw", "decent", "thief"])
def test_return_of_what_another_holds(
    raw: RawPeer, programs: Programs, daemon: Daemon, instance: str
) -> None:
    """Not even a peer of the same instance may."""
    raw.open()
    held = raw.take(raw.open_region(), 2)
    thief = start_raw(programs, daemon, instance)
    thief.open()
    thief.give_back(held[0]).check_refused("ERROR_INVALID")
    assert raw.give_back(*held).name == "Returned"


def test_return_of_what_is_on_its_way(raw: RawPeer) -> None:
    """Ids can be guessed, but nothing of an answer is the peer's before the last packet has left."""
    raw.open()
    region = raw.open_region()
    grant = raw.request("Take", region=region, pages=100)
    assert grant.number("remaining") > 0
    received = grant.numbers("extents")
    generation = received[0] >> 32 << 32
    raw.give_back(*received).check_refused("ERROR_INVALID")
    for index in range(300):
        raw.give_back(generation | index).check_refused("ERROR_INVALID")
    raw.request("RegionClose", region=region).check_refused("ERROR_INVALID", "not been returned")
    while grant.number("remaining") > 0:
        raw.post("GrantAck", grant.number("request"))
        grant = raw.next()
        received += grant.numbers("extents")
    raw.post("GrantAck", grant.number("request"))
    assert len(set(received)) == 100
    assert raw.give_back(*received).name == "Returned"


def test_return_of_what_is_not_acknowledged(raw: RawPeer) -> None:
    """What has come whole is the peer's; but it is sent no other descriptors before it has said so."""
    raw.open()
    region = raw.open_region()
    grant = raw.request("Take", region=region, pages=1)
    assert raw.give_back(*grant.numbers("extents")).name == "Returned"
    raw.post("Take", region=region, pages=1)
    assert raw.next(within=0.3).name == "nothing"
    raw.post("GrantAck", grant.number("request"))
    second = raw.next()
    assert second.name == "Grant"
    raw.post("GrantAck", second.number("request"))
    assert raw.give_back(*second.numbers("extents")).name == "Returned"


def test_region_closed_while_in_use(raw: RawPeer) -> None:
    raw.open()
    region = raw.open_region()
    held = raw.take(region)
    raw.request("RegionClose", region=region).check_refused("ERROR_INVALID")
    assert raw.give_back(*held).name == "Returned"
    assert raw.request("RegionClose", region=region).name == "RegionClosed"


# ---- Not reading ----


def test_peer_that_never_reads(raw: RawPeer, daemon: Daemon, observer: Observer) -> None:
    """Its requests stay with it, and when it reads after all, it gets every answer."""
    raw.open()
    before = resident_bytes(daemon.pid)
    sent = int(raw.do("flood 100000 RegionClose 77 region=9"))
    assert sent < 100000
    observer.is_served()
    assert resident_bytes(daemon.pid) - before < 2 * MIB
    for _ in range(sent):
        raw.next().check_refused("ERROR_INVALID", request=77)
    assert raw.take(raw.open_region())


def test_peer_that_leaves_answers_unread(raw: RawPeer, observer: Observer) -> None:
    """It closes the connection and lives on; the daemon sees that, and doesn't go on looking."""
    raw.open()
    raw.do("flood 100000 RegionClose 77 region=9")
    raw.do("close")
    eventually(lambda: observer.count_connections() == observer.connections)


def test_administrator_who_asks_for_many(raw: RawPeer, daemon: Daemon, observer: Observer) -> None:
    """Each name is compared with each instance while everybody waits, so a question has few of them."""
    raw.connect(daemon.control)
    raw.hello()
    name = observer.instances()[0]
    raw.request("List", instances=(name,) * 256)
    raw.request("List", instances=(name,) * 257).check_refused("ERROR_INVALID", "256")
    observer.is_served()


def test_administrator_who_never_reads(raw: RawPeer, daemon: Daemon, observer: Observer) -> None:
    raw.connect(daemon.control)
    raw.hello()
    before = resident_bytes(daemon.pid)
    assert int(raw.do("flood 100000 List 1")) < 100000
    observer.is_served()
    assert resident_bytes(daemon.pid) - before < 2 * MIB


def test_grants_that_nobody_acknowledges(raw: RawPeer, programs: Programs, daemon: Daemon) -> None:
    """One packet of descriptors is under way, no more, and it is this peer's loss."""
    raw.open()
    region = raw.open_region()
    first = raw.request("Take", region=region, pages=100)
    assert first.number("fds") == 64
    assert first.number("remaining") == 36
    for _ in range(10):
        raw.post("Take", region=region, pages=1)
    assert raw.next(within=0.3).name == "nothing"
    other = start_raw(programs, daemon, "other")
    other.open()
    assert other.take(other.open_region(), 70)
    raw.post("GrantAck", first.number("request"))
    second = raw.next()
    assert second.number("request") == first.number("request")
    assert second.number("fds") == 36


def test_too_many_takes_at_once(raw: RawPeer, observer: Observer) -> None:
    """Beyond a bound further ones are refused, the earlier ones are answered."""
    raw.open()
    region = raw.open_region()
    assert int(raw.do(f"flood 300 Take 9 region={region} pages=1")) == 300
    observer.is_served()
    granted = refused = 0
    for _ in range(300):
        answer = raw.next()
        if answer.name == "Grant":
            granted += 1
            raw.post("GrantAck", 9)
        else:
            answer.check_refused("ERROR_RESOURCES", "too many", request=9)
            refused += 1
    assert granted >= 64
    assert refused > 0


@pytest.mark.parametrize("request_name", ["List 1", "Info 1"])
def test_flood_of_requests(raw: RawPeer, daemon: Daemon, observer: Observer, request_name: str) -> None:
    """Somebody who does read his answers, but asks without pause, gets his share and no more."""
    raw.connect(daemon.control)
    raw.hello()
    for _ in range(20):
        sent = int(raw.do(f"flood 100 {request_name}"))
        observer.is_served()
        for _ in range(sent):
            assert raw.next().name in ("ListReply", "InfoReply")
