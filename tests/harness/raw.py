# SPDX-License-Identifier: Apache-2.0
"""rawpeer as a Python object: packets and messages by hand, decent or not. See rawpeer.c for its commands."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from harness.broker import LIMIT_S, Daemon, Peer, Programs, Site

MAGIC = 0x4443564B
HEADER_SIZE = 20
LEASES = 1  # bits of Feature
ORDERS = 2
RESERVATIONS = 8
FRAME_SIZE_MAX = 65536


def frame(
    kind: int,
    body: bytes = b"",
    *,
    magic: int = MAGIC,
    version: int = 1,
    length: int | None = None,
    request: int = 1,
    n_fds: int = 0,
    reserved: int = 0,
) -> bytes:
    """One packet; right unless it is told otherwise."""
    size = len(body) if length is None else length
    return struct.pack("<IHHIIHH", magic, version, kind, size, request, n_fds, reserved) + body


@dataclass(frozen=True)
class Message:
    """What was received. `name` is "closed" at the end of the connection, "nothing" when nothing came."""

    name: str
    text: str

    def __getitem__(self, field: str) -> str:
        """A field of the message itself, not of one inside it; `request` and `fds` are fields, too."""
        outer = self.text
        while "{" in outer:
            outer = re.sub(r"\{[^{}]*\}", "", outer)
        found = re.search(rf" {field}=(\S*)", outer)
        assert found, f"no {field} in: {self.text}"
        return found[1]

    def number(self, field: str) -> int:
        return int(self[field])

    def numbers(self, field: str) -> list[int]:
        return [int(item) for item in self[field].split(",") if item]

    def check_refused(self, error: str, reason: str = "", request: int | None = None) -> None:
        """It is a refusal for this error, with a reason that contains these words."""
        assert self.name == "Refused", self.text
        assert self["error"] == error, self.text
        assert reason.lower() in unquote(self["reason"]).lower(), self.text
        assert request is None or self.number("request") == request, self.text


@dataclass(frozen=True)
class Lease:
    """A line of the lease file, in pages."""

    offered: int
    claimed: int
    cached: int
    pinned: int


@dataclass(frozen=True)
class Order:
    """What a worker was told to do: "MapOrder" or "UnmapOrder"."""

    name: str
    id: int
    region: int
    session: int
    number: int
    pages: list[int]
    extents: list[int]


class RawPeer(Peer):
    """A process with one connection to a daemon, not yet opened."""

    program = "tests/harness/rawpeer"

    def __init__(self, site: Site, socket_path: Path, instance: str = "raw") -> None:
        super().__init__(site, socket_path, instance)
        self.socket_path = socket_path
        self._requests = 0

    def connect(self, path: Path | None = None) -> None:
        self.do(f"connect {path or self.socket_path}")

    def packet(self, data: bytes, n_fds: int = 0) -> None:
        """Sends bytes as they are; a closed connection is no failure (the answer tells why)."""
        answer = self.ask(f"raw {data.hex()} {n_fds}")
        assert answer in ("ok", "error Broken pipe", "error Connection reset by peer"), answer

    def post(self, name: str, request: int | None = None, /, **fields: object) -> int:
        """Sends a message; its request id."""
        self._requests += 1
        number = self._requests if request is None else request
        words = [f"{field}={as_text(value)}" for field, value in fields.items()]
        answer = self.ask(" ".join(["send", name, str(number), *words]))
        assert answer in ("ok", "error Broken pipe", "error Connection reset by peer"), answer
        return number

    def next(self, within: float = LIMIT_S) -> Message:
        """What arrives next."""
        text = self.do(f"receive {int(within * 1000)}", within + LIMIT_S)
        return Message(text.split(" ")[0], text)

    def request(self, name: str, **fields: object) -> Message:
        """Sends a request and returns the next message, which must be an answer to it."""
        number = self.post(name, **fields)
        message = self.next()
        if message.name not in ("closed", "nothing"):
            assert message.number("request") in (number, 0), message.text
        return message

    def hello(self, **fields: object) -> Message:
        """The answer to a Hello that is right unless it is told otherwise."""
        given = {"min_version": 1, "max_version": 1, "role": "ROLE_ENGINE", "instance": self.instance}
        return self.request("Hello", **(given | fields))

    def prove(self, challenge: Message) -> Message:
        """The answer to the proof that a daemon asks for where its kernel doesn't know who connected."""
        self.post("ChallengeReply", challenge.number("request"), nonce=bytes.fromhex(challenge["nonce"]))
        return self.next()

    def open(self, path: Path | None = None, **fields: object) -> Message:
        """Connects and is welcomed."""
        self.connect(path)
        welcome = self.hello(**fields)
        if welcome.name == "Challenge":
            welcome = self.prove(welcome)
        assert welcome.name == "Welcome", welcome.text
        return welcome

    def open_region(self, *page_extents: int) -> int:
        """A region whose page has so many extents of each class; its number."""
        opened = self.request(
            "RegionOpen", segments=1, capacity_pages=1 << 20, page_extents=page_extents or (1, 0, 0, 0)
        )
        assert opened.name == "RegionOpened", opened.text
        return opened.number("region")

    def take(self, region: int, pages: int = 1) -> list[int]:
        """The extents of so many pages; every packet is acknowledged."""
        return self.collect(self.request("Take", region=region, pages=pages))

    def take_or_none(self, region: int, pages: int = 1) -> list[int] | None:
        """As take(); None when limit or budget forbid it."""
        answer = self.request("Take", region=region, pages=pages)
        if answer.name == "Refused":
            assert answer["error"] in ("ERROR_LIMIT", "ERROR_BUDGET"), answer.text
            return None
        return self.collect(answer)

    def collect(self, grant: Message) -> list[int]:
        """The extents of a grant, of which this is the first packet."""
        extents: list[int] = []
        while True:
            assert grant.name == "Grant", grant.text
            got = grant.numbers("extents")
            assert grant.number("fds") == len(got) > 0
            extents += got
            self.post("GrantAck", grant.number("request"))
            if grant.number("remaining") == 0:
                return extents
            grant = self.next()

    def give_back(self, *extents: int) -> Message:
        return self.request("Return", extents=extents)

    # ---- Leases ----

    def lease(self, region: int) -> Lease:
        """What the region's line says."""
        return Lease(*map(int, self.do(f"lease {region}").split()))

    def claim(self, region: int, pages: int) -> int:
        """How many of the pages were offered."""
        return int(self.do(f"lease {region} claim {pages}"))

    def unclaim(self, region: int, pages: int) -> int:
        return int(self.do(f"lease {region} unclaim {pages}"))

    def spend(self, region: int, pages: int) -> bool:
        return int(self.do(f"lease {region} spend {pages}")) == pages

    def hint(self, region: int, cached: int, pinned: int = 0) -> None:
        self.do(f"lease {region} hint {cached} {pinned}")

    def scribble(self, region: int, word: int) -> None:
        self.do(f"lease {region} write {word}")

    # ---- Orders ----

    def open_ordered(
        self,
        group: int = 0,
        rank: int = 0,
        *,
        capacity_pages: int = 1 << 12,
        page_extents: object = (1, 0, 0, 0),
    ) -> int:
        """A worker's region that a scheduler finds by these numbers."""
        opened = self.request(
            "RegionOpen",
            segments=1,
            capacity_pages=capacity_pages,
            page_extents=page_extents,
            ordered=1,
            group=group,
            rank=rank,
        )
        assert opened.name == "RegionOpened", opened.text
        return opened.number("region")

    def attach(self, group: int = 0, rank: int = 0) -> Message:
        attached = self.request("RegionAttach", group=group, rank=rank)
        assert attached.name == "RegionAttached", attached.text
        return attached

    def next_order(self) -> Order:
        """The next order, whole; every packet of a MapOrder is acknowledged."""
        first = packet = self.next()
        assert first.name in ("MapOrder", "UnmapOrder"), first.text
        extents: list[int] = []
        while packet.name == "MapOrder":
            assert packet.number("request") == first.number("request"), packet.text
            assert (packet is first) == bool(packet.numbers("pages")), packet.text
            got = packet.numbers("extents")
            assert packet.number("fds") == len(got) > 0
            extents += got
            self.post("GrantAck", packet.number("request"))
            if packet.number("remaining") == 0:
                break
            packet = self.next()
        return Order(
            name=first.name,
            id=first.number("request"),
            region=first.number("region"),
            session=first.number("session"),
            number=first.number("number"),
            pages=first.numbers("pages"),
            extents=extents,
        )

    def report(self, order: Order, error: str = "ERROR_NONE", reason: str = "") -> None:
        self.post("OrderDone", order.id, error=error, reason=reason)

    def check_ended(self, error: str, reason: str = "") -> None:
        """The daemon says why, and nothing more."""
        self.next().check_refused(error, reason)
        assert self.next().name == "closed"


def as_text(value: object) -> str:
    """A field's value as rawpeer reads it."""
    if isinstance(value, tuple | list):
        return ",".join(as_text(item) for item in value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, str):
        return "".join(
            f"%{byte:02x}" if byte <= 32 or byte > 126 or byte in b"%," else chr(byte)
            for byte in value.encode()
        )
    return str(value)


def start_raw(programs: Programs, daemon: Daemon, instance: str = "raw") -> RawPeer:
    """Not yet connected; ends with the test."""
    peer = RawPeer(daemon.site, daemon.socket, instance)
    programs.peers.append(peer)
    return peer


def start_holder(programs: Programs, daemon: Daemon, instance: str = "raw", pages: int = 50) -> RawPeer:
    """An engine with so many pages of 2 MiB, whose descriptors stay open until it ends."""
    peer = start_raw(programs, daemon, instance)
    peer.open()
    peer.do("keep")
    peer.take(peer.open_region(), pages)
    return peer
