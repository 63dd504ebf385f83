# SPDX-License-Identifier: Apache-2.0
"""The library and the daemon together: what an engine borrows, keeps and gives back."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from harness.blocks import Kvctl, fields
from harness.broker import Daemon, Peer, Programs, Site, eventually, on_gpu
from harness.tasks import stopped

MIB = 1 << 20
PAGE = 10 * MIB  # 8 + 2 in each of two segments
REGION = f"region kv page={PAGE} pages=24 segments=2"


def status(peer: Peer) -> dict[str, int]:
    return fields(peer.do("status"))


def granted(kvctl: Kvctl, instance: str) -> int:
    """What the daemon says the instance has; nothing where it doesn't know it."""
    for row in kvctl("list", "--json").json():
        if row["ipc"] == instance:
            used: int = row["used_bytes"]
            return used
    return 0


@pytest.fixture
def engine(programs: Programs, daemon: Daemon) -> Peer:
    """An engine without reserves that has opened one region."""
    peer = programs.peer(daemon, "engine")
    peer.do("open")
    peer.do(REGION)
    return peer


def test_memory_is_lent_and_comes_back(engine: Peer, kvctl: Kvctl) -> None:
    engine.do("map kv 0-3,9")
    for page in (0, 3, 9):
        for segment in (0, 1):
            engine.do(f"write kv {page} {segment} {page * 10 + segment}")
    for page in (0, 3, 9):
        for segment in (0, 1):
            assert engine.do(f"read kv {page} {segment}") == str(page * 10 + segment)
    assert granted(kvctl, "engine") == 5 * 2 * PAGE
    engine.do("unmap kv 1-3")
    assert granted(kvctl, "engine") == 2 * 2 * PAGE
    assert engine.do("read kv 9 1") == "91"
    engine.do("close")
    eventually(lambda: granted(kvctl, "engine") == 0)


@pytest.mark.skipif(on_gpu(), reason="device addresses are not the host's")
def test_what_is_not_mapped_faults(engine: Peer) -> None:
    engine.do("map kv 2")
    assert engine.do("probe kv 2 1") == "mapped"
    assert engine.do("probe kv 3 0") == "fault"
    engine.do("unmap kv 2")
    assert engine.do("probe kv 2 1") == "fault"


def test_returned_memory_serves_another(programs: Programs, daemon: Daemon, kvctl: Kvctl) -> None:
    first, second = programs.peer(daemon, "first"), programs.peer(daemon, "second")
    for peer in (first, second):
        peer.do("open")
        peer.do("region kv page=128M pages=8")
    first.do("map kv 0-5")
    assert second.refused("map kv 0-5").startswith("KVC_E_BUDGET ")
    first.do("unmap kv 0-5")
    second.do("map kv 0-5")
    assert granted(kvctl, "first") == 0
    assert granted(kvctl, "second") == 6 * 128 * MIB


@pytest.mark.skipif(on_gpu(), reason="counts the daemon's driver calls")
def test_layouts_share_extents(programs: Programs, site: Site) -> None:
    """Engines whose pages have different sizes use each other's extents: each of them is made once."""
    stats = site.run / "stats"
    daemon = programs.daemon(environment={"KVCACHED_EMULATE_STATS": str(stats)})
    large, small, odd = (programs.peer(daemon, name) for name in ("large", "small", "odd"))
    for peer in (large, small, odd):
        peer.do("open")
    large.do("region kv page=144M pages=4")  # 128 + 8 + 8
    small.do("region eights page=8M pages=8")
    small.do("region twos page=2M pages=8")
    odd.do("region kv page=18M pages=4")  # 8 + 8 + 2
    large.do("map kv 0")  # made: 128, 8, 8
    large.do("unmap kv 0")
    small.do("map eights 3,5")
    small.do("map twos 1")  # made: 2
    small.do("unmap eights 3,5")
    small.do("unmap twos 1")
    odd.do("map kv 2")
    odd.do("unmap kv 2")
    large.do("map kv 1")
    for peer in (large, small, odd):
        peer.close()
    daemon.stop()
    assert json.loads(stats.read_text())["calls"]["cuMemCreate"] == 4


def test_zeros_where_others_have_written(programs: Programs, daemon: Daemon) -> None:
    first, second = programs.peer(daemon, "first"), programs.peer(daemon, "second")
    for peer, flags in ((first, ""), (second, " zero=yes")):
        peer.do("open max=2")
        peer.do(REGION + flags)
    first.do("map kv 0-11")
    for page in range(12):
        first.do(f"write kv {page} 0 7")
        first.do(f"write kv {page} 1 7")
    first.do("unmap kv 0-11")
    first.do("trim")
    second.do("map kv 0-11")
    assert {second.do(f"read kv {page} {segment}") for page in range(12) for segment in (0, 1)} == {"0"}
    second.do("write kv 3 1 5")
    second.do("unmap kv 3")
    second.do("map kv 3")  # out of the cache
    assert second.do("read kv 3 1") == "0"


def test_holes_are_charged_and_ones_own(programs: Programs, daemon: Daemon, kvctl: Kvctl) -> None:
    first, second = programs.peer(daemon, "first"), programs.peer(daemon, "second")
    for peer in (first, second):
        peer.do("open")
        peer.do(REGION + " holes=yes")
    assert granted(kvctl, "first") == PAGE  # an extent of 8 and one of 2, for both segments
    first.do("write kv 5 1 9")
    assert first.do("read kv 17 0") == "9"
    assert second.do("read kv 17 0") == "0"
    first.do("map kv 5")
    first.do("write kv 5 1 10")
    assert first.do("read kv 17 1") == "9"
    assert granted(kvctl, "first") == PAGE + 2 * PAGE
    first.do("unmap kv 5")
    assert first.do("read kv 5 1") == "9"
    assert kvctl("limit", "second", "10M").rc == 0
    assert second.refused("map kv 0").startswith("KVC_E_LIMIT ")
    assert second.do("read kv 0 0") == "0"
    second.do("close-region kv")
    assert granted(kvctl, "second") == 0
    first.kill()
    eventually(lambda: granted(kvctl, "first") == 0)


def test_limit_is_all_or_nothing(engine: Peer, kvctl: Kvctl) -> None:
    assert kvctl("limit", "engine", "100M").rc == 0
    assert engine.refused("map kv 0-5").startswith("KVC_E_LIMIT ")
    assert granted(kvctl, "engine") == 0
    engine.do("map kv 0-4")
    assert engine.refused("map kv 5").startswith("KVC_E_LIMIT ")
    assert kvctl("limit", "engine", "1M").rc == 0
    engine.do("await over=1")
    engine.do("unmap kv 0")
    assert granted(kvctl, "engine") == 4 * 2 * PAGE
    assert kvctl("limit", "engine", "1G").rc == 0
    engine.do("map kv 0,5-7")


def test_reserves(programs: Programs, daemon: Daemon, kvctl: Kvctl) -> None:
    peer = programs.peer(daemon, "engine")
    peer.do("open thread=1 min=2 max=4")
    peer.do(REGION)
    assert status(peer)["cached"] == 0
    peer.do("map kv 0-5")
    peer.do(f"await cached={2 * 2 * PAGE}")
    assert granted(kvctl, "engine") == 8 * 2 * PAGE
    peer.do("unmap kv 0-5")
    assert status(peer)["cached"] == 4 * 2 * PAGE
    assert granted(kvctl, "engine") == 4 * 2 * PAGE
    calls = peer.do("calls cuMemMap") if not on_gpu() else ""
    peer.do("map kv 2-5")
    if not on_gpu():
        assert peer.do("calls cuMemMap") == calls
    peer.do("unmap kv 2-5")
    peer.do("trim")
    assert granted(kvctl, "engine") == 0
    assert status(peer)["cached"] == 0


def test_lowered_limit_takes_reserves(programs: Programs, daemon: Daemon, kvctl: Kvctl) -> None:
    peer = programs.peer(daemon, "engine")
    peer.do("open max=8")
    peer.do(REGION)
    peer.do("map kv 0-7")
    peer.do("unmap kv 0-5")
    assert granted(kvctl, "engine") == 8 * 2 * PAGE
    assert kvctl("limit", "engine", "0").rc == 0
    peer.do("await over=1")
    peer.do("unmap kv 6")
    assert granted(kvctl, "engine") == 2 * PAGE
    assert peer.refused("map kv 6").startswith("KVC_E_LIMIT ")


def test_reserves_of_one_region_yield_to_another(programs: Programs, daemon: Daemon, kvctl: Kvctl) -> None:
    peer = programs.peer(daemon, "engine")
    peer.do("open max=8")
    peer.do("region a page=8M pages=8")
    peer.do("region b page=8M pages=8")
    assert kvctl("limit", "engine", "64M").rc == 0
    peer.do("map a 0-7")
    peer.do("unmap a 0-7")
    peer.do("map b 0-7")
    assert status(peer)["cached"] == 0


def test_many_extents_in_one_call(programs: Programs) -> None:
    """More than one answer of the daemon, and than it holds ready, can carry."""
    daemon = programs.daemon("8G")
    peer = programs.peer(daemon, "engine")
    peer.do("open")
    peer.do("region kv page=2M pages=3000 segments=1")
    peer.do("map kv 0-2999")
    assert status(peer)["mapped"] == 3000 * 2 * MIB
    peer.do("write kv 2999 0 5")
    assert peer.do("read kv 2999 0") == "5"
    peer.do("unmap kv 0-2999")
    assert status(peer)["mapped"] == 0
    eventually(lambda: status(peer)["used"] == 0)


def test_full_descriptor_table(engine: Peer, kvctl: Kvctl) -> None:
    lowest = max(int(fd.name) for fd in Path(f"/proc/{engine.pid}/fd").iterdir()) + 1
    engine.do(f"fd-limit {lowest + 2}")
    assert engine.refused("map kv 0-15").startswith("KVC_E_NOFILE ")
    assert granted(kvctl, "engine") == 0
    engine.do("fd-limit 0")
    engine.do("map kv 0-15")


def test_stopped_engine_goes_on(engine: Peer, programs: Programs, daemon: Daemon) -> None:
    """Neither its own silence nor what happens meanwhile costs a stopped engine anything."""
    other = programs.peer(daemon, "other")
    other.do("open")
    other.do(REGION)
    engine.do("map kv 0-3")
    with stopped(engine):
        engine.send("map kv 4-9")
        for _ in range(20):
            other.do("map kv 0-5")
            other.do("unmap kv 0-5")
    assert engine.receive() == "ok"
    engine.do("unmap kv 0-9")


def test_daemon_dies(engine: Peer, daemon: Daemon) -> None:
    engine.do("map kv 0-3")
    engine.do("write kv 2 1 4242")
    daemon.kill()
    assert engine.refused("map kv 4").startswith("KVC_E_DISCONNECTED ")
    assert engine.do("read kv 2 1") == "4242"
    assert engine.refused("unmap kv 0").startswith("KVC_E_DISCONNECTED ")
    assert engine.do("read kv 2 1") == "4242"
    assert status(engine)["connected"] == 0


def test_daemon_stops(engine: Peer, daemon: Daemon) -> None:
    """The reason of a last Refused reaches the engine."""
    engine.do("map kv 0")
    daemon.stop()
    sentence = engine.refused("map kv 1")
    assert sentence.startswith("KVC_E_DISCONNECTED ")
    assert "stop" in sentence
    engine.close()


def test_a_child_keeps_nothing_open(engine: Peer, kvctl: Kvctl) -> None:
    """A forked child may live on after its parent has given everything back."""
    engine.do("map kv 0-3")
    child = int(engine.do("fork-child"))
    try:
        engine.do("unmap kv 0-3")
        assert granted(kvctl, "engine") == 0
        engine.do("map kv 0-3")
        engine.do("close")
        eventually(lambda: granted(kvctl, "engine") == 0)
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize(
    ("command", "error", "words"),
    [
        ("region r page=3M pages=4", "KVC_E_INVALID", "granularity"),
        ("region r page=0 pages=4", "KVC_E_INVALID", "granularity"),
        ("region r page=2M pages=0", "KVC_E_INVALID", "page"),
        ("region r page=2M pages=4 stride=3M", "KVC_E_INVALID", "stride"),
        ("region r page=6M pages=4 extents=4M,2M", "KVC_E_INVALID", "extents"),
        ("region r page=2G pages=4", "KVC_E_BUDGET", "budget"),
        ("region r page=512M pages=4 segments=4", "KVC_E_BUDGET", "budget"),
        ("region r page=2M pages=9999999999999", "KVC_E_NOSPACE", "address space"),
        ("map kv 24", "KVC_E_INVALID", "24"),
        ("map kv 3,3", "KVC_E_MAPPED", "Page 3"),
        ("unmap kv 3", "KVC_E_NOT_MAPPED", "Page 3"),
    ],
)
def test_bad_calls(engine: Peer, command: str, error: str, words: str) -> None:
    answer = engine.refused(command)
    assert answer.startswith(error + " ")
    assert words in answer
    engine.do("map kv 0-3")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ("instance=.x", "KVC_E_INVALID"),
        ("gpu=7", "KVC_E_REFUSED"),
        ("gpu=GPU-00000000-0000-0000-0000-000000000000", "KVC_E_REFUSED"),
        ("socket=/nonexistent", "KVC_E_CONNECT"),
        ("utilization=7", "KVC_E_INVALID"),
    ],
)
def test_bad_opens(programs: Programs, daemon: Daemon, options: str, error: str) -> None:
    peer = programs.peer(daemon, "engine")
    assert peer.refused(f"open {options}").startswith(error + " ")
    peer.do("open")


def test_bad_environment(programs: Programs, daemon: Daemon) -> None:
    peer = programs.peer(daemon, "engine", environment={"KVCACHED_MAX_RESERVED_PAGES": "lots"})
    answer = peer.refused("open")
    assert answer.startswith("KVC_E_ENVIRONMENT ")
    assert "KVCACHED_MAX_RESERVED_PAGES" in answer


def test_utilization_is_a_limit(programs: Programs, daemon: Daemon) -> None:
    peer = programs.peer(daemon, "engine", environment={"KVCACHED_GPU_UTILIZATION": "0.25"})
    peer.do("open")
    assert status(peer)["limit"] == 256 * MIB
