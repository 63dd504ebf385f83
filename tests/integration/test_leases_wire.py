# SPDX-License-Identifier: Apache-2.0
"""Memory that is set aside for a region before it is needed, and notices to give some back: what passes
between client and daemon, in packets and in the words that both can write.

Honest clients first; then those that scribble, forget, stop or die.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

import pytest

from harness.broker import Daemon, Programs, eventually
from harness.observer import MIB, Observer
from harness.raw import LEASES, ORDERS, Message, RawPeer, start_raw
from harness.tasks import stopped

PAGE = 2 * MIB
SMALL = "[instance raw]\nlimit=32M\n"


def start_member(programs: Programs, daemon: Daemon, instance: str = "raw", role: str = "ENGINE") -> RawPeer:
    """A peer that knows leases and orders."""
    peer = start_raw(programs, daemon, instance)
    welcome = peer.open(role=f"ROLE_{role}", features=LEASES | ORDERS)
    assert welcome.number("features") == LEASES | ORDERS
    assert welcome.number("fds") == 2
    return peer


@pytest.fixture
def member(programs: Programs, daemon: Daemon, observer: Observer) -> RawPeer:
    """Under observation: in the end nothing is left of it."""
    assert observer.daemon is daemon
    return start_member(programs, daemon)


@dataclass
class Rivals:
    """Two peers under a budget of 32 pages, and a region of each."""

    owner: RawPeer
    region: int
    other: RawPeer
    wanted: int

    def claim(self, pages: int) -> None:
        """The owner leases 30 pages, and claims so many of them."""
        lease(self.owner, self.region, 30)
        assert self.owner.claim(self.region, pages) == pages

    def want(self) -> int:
        """The other asks for more than is free; its request's id."""
        return self.other.post("Take", region=self.wanted, pages=20)

    def check_got(self, request: int) -> None:
        grant = self.other.next()
        assert grant.number("request") == request
        assert len(self.other.collect(grant)) == 20


@pytest.fixture
def rivals(programs: Programs) -> Rivals:
    daemon = programs.daemon("1G", budget=str(32 * PAGE))
    owner, other = start_member(programs, daemon), start_member(programs, daemon, "other")
    return Rivals(owner, owner.open_region(), other, other.open_region())


@dataclass
class Ordered:
    """A scheduler, its worker, and the region that they share, by the scheduler's number."""

    worker: RawPeer
    scheduler: RawPeer
    region: int


@pytest.fixture
def ordered(programs: Programs, daemon: Daemon, observer: Observer) -> Ordered:
    """Under observation."""
    assert observer.daemon is daemon
    worker = start_member(programs, daemon, role="WORKER")
    worker.open_ordered()
    scheduler = start_member(programs, daemon, role="SCHEDULER")
    return Ordered(worker, scheduler, scheduler.attach().number("region"))


def lease(peer: RawPeer, region: int, pages: int, **fields: object) -> None:
    """Asks for pages, and gets them."""
    leased = peer.request("Lease", region=region, pages=pages, **fields)
    assert leased.name == "Leased", leased.text
    assert leased.number("pages") == pages


def open_small(peer: RawPeer) -> int:
    """A region of four pages."""
    opened = peer.request("RegionOpen", segments=1, capacity_pages=4, page_extents=(1, 0, 0, 0))
    return opened.number("region")


def take_leased(peer: RawPeer, region: int, pages: int) -> list[int]:
    """Spends claims for their extents."""
    assert peer.spend(region, pages)
    return peer.collect(peer.request("Take", region=region, pages=pages, leased=1))


def leased_bytes(observer: Observer) -> int:
    """Of everybody."""
    return observer.info().number("leased_bytes")


def next_notice(peer: RawPeer) -> Message:
    notice = peer.next()
    assert notice.name == "Notice", notice.text
    assert notice.number("request") == 0
    assert notice.number("deadline_ms") > 0
    return notice


# ---- As it should be ----


def test_lease_claim_and_take(member: RawPeer, observer: Observer) -> None:
    region = member.open_region()
    lease(member, region, 8)
    assert member.lease(region).offered == 8
    assert leased_bytes(observer) == 8 * PAGE
    assert member.claim(region, 5) == 5
    held = take_leased(member, region, 3)
    assert len(set(held)) == 3
    assert (member.lease(region).offered, member.lease(region).claimed) == (3, 2)
    assert (leased_bytes(observer), observer.info().number("granted_bytes")) == (5 * PAGE, 3 * PAGE)
    assert member.give_back(*held).name == "Returned"
    lease(member, region, 1)
    assert member.lease(region).offered == 4
    assert member.request("RegionClose", region=region).name == "RegionClosed"
    assert leased_bytes(observer) == 0


def test_leased_is_used(member: RawPeer, programs: Programs, daemon: Daemon) -> None:
    lease(member, member.open_region(), 8)
    listing = programs.kvctl("list", "raw", "--json", daemon=daemon).json()
    assert [(it["used_bytes"], it["leased_bytes"], it["granted_bytes"]) for it in listing] == [
        (8 * PAGE, 8 * PAGE, 0)
    ]
    assert "leased" in programs.kvctl("info", "raw", daemon=daemon).out


def test_pages_of_several_classes(member: RawPeer, observer: Observer) -> None:
    region = member.open_region(2, 1, 0, 0)
    lease(member, region, 3)
    assert leased_bytes(observer) == 3 * (2 * 2 + 8) * MIB
    assert member.claim(region, 9) == 3
    assert len(set(take_leased(member, region, 2))) == 2 * 3
    assert leased_bytes(observer) == (2 * 2 + 8) * MIB


def test_a_number_that_is_used_again_has_a_clean_line(member: RawPeer) -> None:
    region = member.open_region()
    lease(member, region, 4)
    member.hint(region, 7, 9)
    assert member.request("RegionClose", region=region).name == "RegionClosed"
    assert member.open_region() == region
    line = member.lease(region)
    assert (line.offered, line.claimed, line.cached, line.pinned) == (0, 0, 0, 0)


def test_what_is_offered_goes_to_who_needs_it(rivals: Rivals) -> None:
    """At once, and by itself; what is claimed does not."""
    owner, region, other, wanted = rivals.owner, rivals.region, rivals.other, rivals.wanted
    rivals.claim(10)
    held = other.take(wanted, 20)
    assert (owner.lease(region).offered, owner.lease(region).claimed) == (2, 10)
    assert owner.unclaim(region, 10) == 10
    assert other.take(wanted, 12)
    assert owner.lease(region).offered == 0
    assert other.give_back(*held).name == "Returned"


def test_notice_frees_claims(rivals: Rivals) -> None:
    """Somebody waits for what another promises itself; that is asked, and gives it up."""
    rivals.claim(30)
    request = rivals.want()
    notice = next_notice(rivals.owner)
    assert notice["courtesy"] == "1"
    assert notice.number("bytes") >= 18 * PAGE
    assert rivals.owner.unclaim(rivals.region, 25) == 25
    rivals.owner.post("NoticeAck", number=notice.number("number"))
    rivals.check_got(request)


def test_notice_frees_what_is_cached(rivals: Rivals) -> None:
    owner, region = rivals.owner, rivals.region
    held = owner.take(region, 30)
    owner.hint(region, 30)
    request = rivals.want()
    notice = next_notice(owner)
    owner.hint(region, 0)
    assert owner.give_back(*held).name == "Returned"
    owner.post("NoticeAck", number=notice.number("number"))
    rivals.check_got(request)


def test_notice_that_brings_nothing(rivals: Rivals) -> None:
    """After the acknowledgement there is nothing left to hope for."""
    rivals.claim(30)
    request = rivals.want()
    rivals.owner.post("NoticeAck", number=next_notice(rivals.owner).number("number"))
    rivals.other.next().check_refused("ERROR_BUDGET", request=request)


def test_courtesy_asks_nobody(rivals: Rivals) -> None:
    rivals.claim(30)
    refusal = rivals.other.request("Lease", region=rivals.wanted, pages=20, courtesy=1)
    refusal.check_refused("ERROR_BUDGET")
    assert rivals.owner.next(within=0.1).name == "nothing"


def test_limit_notice(programs: Programs) -> None:
    """An administrator lowers the limit: who has pages is told, and the miss is shown until it has obeyed."""
    daemon = programs.daemon("1G")
    member = start_member(programs, daemon)
    held = member.take(member.open_region(), 16)
    assert programs.kvctl("limit", "raw", "8M", daemon=daemon).rc == 0
    notice = next_notice(member)
    assert notice["courtesy"] == "0"
    assert notice.number("bytes") == 12 * PAGE
    member.post("NoticeAck", number=notice.number("number"))

    def missed() -> bool:
        (instance,) = programs.kvctl("list", "raw", "--json", daemon=daemon).json()
        return bool(instance["missed_notice"])

    eventually(missed)
    assert "Missed notice" in programs.kvctl("info", "raw", daemon=daemon).out
    assert member.give_back(*held[:12]).name == "Returned"
    assert not missed()


def test_limit_holds(programs: Programs) -> None:
    daemon = programs.daemon("1G", config=SMALL)
    member = start_member(programs, daemon)
    region = member.open_region()
    lease(member, region, 16)
    refusal = member.request("Lease", region=region, pages=1)
    refusal.check_refused("ERROR_LIMIT", "limit")
    assert refusal.number("used_bytes") == 16 * PAGE
    assert member.claim(region, 16) == 16
    assert take_leased(member, region, 16)


def test_two_race_for_the_last_page(programs: Programs) -> None:
    """Each time exactly one of them gets it."""
    daemon = programs.daemon("1G", budget="16M")
    peers = [start_member(programs, daemon, name) for name in ("one", "two")]
    regions = [peer.open_region() for peer in peers]
    filler = start_member(programs, daemon, "filler")
    filler.take(filler.open_region(), 7)
    for _ in range(50):
        for peer, region in zip(peers, regions, strict=True):
            peer.send(f"send Lease 7 region={region} pages=1")
        for peer in peers:
            assert peer.receive() == "ok"
        answers = [peer.next() for peer in peers]
        claimed = [peer.claim(region, 1) for peer, region in zip(peers, regions, strict=True)]
        assert sum(claimed) <= 1, [answer.text for answer in answers]
        assert [answer.name for answer in answers].count("Leased") >= 1
        for peer, region, n in zip(peers, regions, claimed, strict=True):
            if n:
                assert peer.give_back(*take_leased(peer, region, 1)).name == "Returned"
        eventually(lambda: all(peer.next(within=0).name != "Notice" for peer in peers))


def test_scheduler_leases_for_its_worker(ordered: Ordered, observer: Observer) -> None:
    """What it has claimed is mapped in the worker without asking again."""
    worker, scheduler, region = ordered.worker, ordered.scheduler, ordered.region
    lease(scheduler, region, 4)
    assert scheduler.claim(region, 3) == 3
    assert scheduler.spend(region, 2)
    scheduler.post("Map", region=region, number=1, pages=(5, 6), leased=1)
    order = worker.next_order()
    assert len(order.extents) == 2
    worker.report(order)
    assert scheduler.next().name == "Mapped"
    assert (leased_bytes(observer), observer.info().number("granted_bytes")) == (2 * PAGE, 2 * PAGE)
    scheduler.kill()
    eventually(lambda: leased_bytes(observer) == 0)
    assert observer.info().number("granted_bytes") == 2 * PAGE


# ---- Who may what ----


def test_old_client_is_as_before(raw: RawPeer, observer: Observer) -> None:
    """One descriptor, no notices, and no such messages."""
    welcome = raw.open()
    assert (welcome.number("features"), welcome.number("fds")) == (0, 1)
    held = raw.take(raw.open_region(), 2)
    observer.is_served()
    assert raw.give_back(*held).name == "Returned"


def test_leased_means_nothing_to_an_old_daemon(raw: RawPeer) -> None:
    """So without the feature the field is ignored."""
    raw.open(features=ORDERS)
    assert raw.collect(raw.request("Take", region=raw.open_region(), pages=1, leased=1))


@pytest.mark.parametrize("features", [0, ORDERS])
@pytest.mark.parametrize("name", ["Lease", "NoticeAck"])
def test_without_the_feature_there_is_no_such_message(raw: RawPeer, name: str, features: int) -> None:
    raw.open(features=features)
    raw.post(name)
    raw.check_ended("ERROR_PROTOCOL", "no place")


@pytest.mark.parametrize("name", ["Leased", "Notice"])
def test_answers_are_no_requests(member: RawPeer, name: str) -> None:
    member.post(name)
    member.check_ended("ERROR_PROTOCOL", "no place")


def test_control_socket_has_no_leases(raw: RawPeer, daemon: Daemon) -> None:
    raw.connect(daemon.control)
    welcome = raw.hello(features=LEASES | ORDERS)
    assert (welcome.number("features"), welcome.number("fds")) == (0, 0)


# ---- Nonsense ----


@pytest.mark.parametrize("region", [0, 2, 257, 2**32 - 1])
def test_region_that_is_not_there(member: RawPeer, region: int) -> None:
    member.open_region()
    member.request("Lease", region=region, pages=1).check_refused("ERROR_INVALID", "no such region")


@pytest.mark.parametrize("pages", [0, 2**20 + 1, 2**32 - 1, 65537])
def test_absurd_lease(member: RawPeer, pages: int) -> None:
    region = member.open_region()
    member.request("Lease", region=region, pages=pages).check_refused("ERROR_INVALID")
    lease(member, region, 1)


def test_capacity_holds(member: RawPeer) -> None:
    """Of what is held and what is leased, together."""
    region = open_small(member)
    member.take(region, 2)
    member.request("Lease", region=region, pages=3).check_refused("ERROR_INVALID", "not so many pages")
    lease(member, region, 2)
    member.request("Lease", region=region, pages=1).check_refused("ERROR_INVALID", "not so many pages")


@pytest.mark.parametrize("issued", [0, 1, 4])
def test_take_of_more_than_is_leased(member: RawPeer, observer: Observer, issued: int) -> None:
    region = member.open_region()
    if issued:
        lease(member, region, issued)
    member.request("Take", region=region, pages=issued + 1, leased=1).check_refused(
        "ERROR_INVALID", "not leased"
    )
    assert observer.info().number("granted_bytes") == 0


def test_map_of_more_than_is_leased(ordered: Ordered, observer: Observer) -> None:
    refusal = ordered.scheduler.request("Map", region=ordered.region, number=1, pages=(1,), leased=1)
    refusal.check_refused("ERROR_INVALID", "not leased")
    assert observer.info().number("granted_bytes") == 0


def test_leased_request_that_is_refused_gives_its_pages_up(ordered: Ordered, observer: Observer) -> None:
    """They are in no word any more, so they would be lost to everybody."""
    scheduler, region = ordered.scheduler, ordered.region
    lease(scheduler, region, 4)
    assert scheduler.claim(region, 4) == 4
    assert scheduler.spend(region, 2)
    scheduler.request("Map", region=region, number=1, pages=(1, 1), leased=1).check_refused(
        "ERROR_INVALID", "named twice"
    )
    assert leased_bytes(observer) == 2 * PAGE
    ordered.worker.kill()
    eventually(lambda: observer.info().number("peers") == 2)
    assert scheduler.spend(region, 2)
    scheduler.request("Map", region=region, number=2, pages=(1, 2), leased=1).check_refused("ERROR_WORKER")
    assert leased_bytes(observer) == 0


def test_leased_take_that_is_refused_gives_its_pages_up(member: RawPeer, observer: Observer) -> None:
    """Whatever it is refused for; what it asks for beyond them doesn't matter."""
    region = open_small(member)
    lease(member, region, 4)
    assert member.claim(region, 4) == 4
    assert member.spend(region, 1)
    member.request("Take", region=region, pages=5, leased=1).check_refused("ERROR_INVALID", "not so many")
    assert leased_bytes(observer) == 3 * PAGE
    assert member.spend(region, 1)
    member.request("Take", region=region, pages=2, leased=1).check_refused("ERROR_INVALID", "not leased")
    assert leased_bytes(observer) == 2 * PAGE
    assert len(take_leased(member, region, 2)) == 2


def test_acknowledgement_of_nothing(member: RawPeer) -> None:
    for number in (0, 1, 2**32 - 1):
        member.post("NoticeAck", number=number)
    lease(member, member.open_region(), 1)


# ---- Scribbling ----


@pytest.mark.parametrize("word", [2**64 - 1, 5, 5 << 32, 1 << 32 | 4, 2**63])
def test_scribble(member: RawPeer, daemon: Daemon, observer: Observer, word: int) -> None:
    """A word that says more than was issued: all of it returns, the region gets no more, and it is said
    once."""
    region, other = member.open_region(), member.open_region()
    lease(member, region, 4)
    member.scribble(region, word)
    member.request("Lease", region=region, pages=1)
    eventually(lambda: leased_bytes(observer) == 0)
    member.request("Lease", region=region, pages=1).check_refused("ERROR_INVALID", "scribbled")
    member.request("Take", region=region, pages=1, leased=1).check_refused("ERROR_INVALID")
    assert f"Process {member.pid}" in daemon.log()
    assert daemon.log().count("scribbled") == 1
    lease(member, other, 1)
    assert member.take(region)


def test_hole_in_the_file(member: RawPeer, observer: Observer) -> None:
    """The words read as zero: what was offered or claimed is the client's loss, until the region closes."""
    region = member.open_region()
    lease(member, region, 4)
    member.do("punch")
    assert member.lease(region).offered == 0
    lease(member, region, 2)
    assert leased_bytes(observer) == 6 * PAGE
    assert member.request("RegionClose", region=region).name == "RegionClosed"
    assert leased_bytes(observer) == 0


def test_file_cannot_be_shortened(member: RawPeer, observer: Observer) -> None:
    assert "not permitted" in member.refused("shorten")
    observer.is_served()


def test_claims_that_are_spent_and_never_taken(member: RawPeer, observer: Observer) -> None:
    """They stay charged to who does so, and return with the region."""
    region = member.open_region()
    lease(member, region, 4)
    assert member.claim(region, 4) == 4
    assert member.spend(region, 4)
    assert leased_bytes(observer) == 4 * PAGE
    assert member.request("RegionClose", region=region).name == "RegionClosed"
    assert leased_bytes(observer) == 0


# ---- Stopping and dying ----


def test_file_outlives_its_peer(member: RawPeer, observer: Observer) -> None:
    """A child has it mapped, too, and goes on; the daemon doesn't look any more."""
    region = member.open_region()
    lease(member, region, 4)
    child = int(member.do("fork"))
    try:
        member.kill()
        eventually(lambda: leased_bytes(observer) == 0)
        observer.is_served()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_connection_ends(member: RawPeer, observer: Observer) -> None:
    """What was leased was never handed over, so it returns at once."""
    region = member.open_region()
    lease(member, region, 4)
    member.do("close")
    eventually(lambda: leased_bytes(observer) == 0)
    assert "limbo_bytes=0" in observer.info().text


def test_dies_while_its_lease_waits(member: RawPeer, observer: Observer) -> None:
    region = member.open_region()
    for _ in range(8):
        member.post("Lease", region=region, pages=40)
    member.kill()
    eventually(lambda: leased_bytes(observer) == 0)


def test_stopped_peer_is_not_waited_for_long(rivals: Rivals) -> None:
    """It doesn't answer its notice; who waits is refused in the end, and not made to wait again."""
    rivals.claim(30)
    with stopped(rivals.owner):
        for _ in range(20):
            rivals.other.request("Take", region=rivals.wanted, pages=20).check_refused("ERROR_BUDGET")
    assert next_notice(rivals.owner).number("number") == 1
    assert rivals.owner.next(within=0).name == "nothing"


def test_many_leases(programs: Programs, daemon: Daemon, observer: Observer) -> None:
    """A thousand regions of four peers; they end with their peers."""
    peers = [start_member(programs, daemon) for _ in range(4)]
    for peer in peers:
        for _ in range(250):
            peer.request("RegionOpen", segments=1, capacity_pages=8, page_extents=(1, 0, 0, 0))
    for number in range(1, 251, 5):
        for peer in peers:
            peer.request("Lease", region=number, pages=1)
    observer.is_served()
    assert leased_bytes(observer) > 0
    for peer in peers:
        peer.kill()
    eventually(lambda: leased_bytes(observer) == 0)
