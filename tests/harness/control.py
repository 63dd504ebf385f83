# SPDX-License-Identifier: Apache-2.0
"""An administrator's connection, message by message."""

from __future__ import annotations

from harness.broker import Daemon, Programs
from harness.raw import Message, RawPeer, start_raw

# Of InfoReply: what is not in the pool, not granted, and not free either.
ON_THE_WAY = ("creating_bytes", "limbo_bytes", "destroying_bytes")


def open_control(programs: Programs, daemon: Daemon, features: int = 0) -> RawPeer:
    """A connection to the control socket, welcomed. features: bits of Feature."""
    peer = start_raw(programs, daemon)
    peer.connect(daemon.control)
    welcome = peer.request("Hello", min_version=1, max_version=1, program="test", features=features)
    assert welcome.name == "Welcome", welcome.text
    assert welcome.number("fds") == 0
    return peer


def info(control: RawPeer) -> Message:
    answer = control.request("Info")
    assert answer.name == "InfoReply", answer.text
    return answer


def books_are_right(control: RawPeer) -> bool:
    """Nothing is on its way, and the ledger says what the device says, where nobody else uses that."""
    now = info(control)
    assert sum(now.number(name) for name in ON_THE_WAY) == 0, now.text
    accounted = sum(now.number(name) for name in ("pool_bytes", "leased_bytes", "granted_bytes"))
    assert now.number("held_bytes") == accounted, now.text
    assert now.number("free_bytes") == now.number("total_bytes") - now.number("held_bytes"), now.text
    return True
