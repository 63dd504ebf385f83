# SPDX-License-Identifier: Apache-2.0
"""Old and new versions of library and daemon, together: what the first release could do goes on working."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness.broker import Daemon, Peer, Programs, Site, eventually

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("daemon/kvcachedd", "kvctl/kvctl", "tests/harness/kvpeer", "tests/cuemu/libcuda.so.1")
MIB = 1 << 20

pytestmark = pytest.mark.emulator


def first_release() -> str:
    text = (ROOT / "tests/abi/first-release").read_text()
    return next(line for line in text.splitlines() if line and not line.startswith("#"))


def run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"


def build_at(commit: str, folder: Path) -> Path:
    """Source and programs of a commit; what has been built before is still there."""
    source, build = folder / "source", folder / "build"
    if not (build / "build.ninja").exists():
        source.mkdir(parents=True, exist_ok=True)
        archive = subprocess.run(["git", "-C", str(ROOT), "archive", commit], capture_output=True, check=True)
        subprocess.run(["tar", "-x", "-C", str(source)], input=archive.stdout, check=True)
        run(["meson", "setup", str(build), str(source)], folder)
    run(["ninja", "-C", str(build), *PROGRAMS, "tests/cuemu/libnvidia-ml.so.1"], folder)
    return build


@pytest.fixture(scope="session")
def old_build() -> Path:
    commit = first_release()
    known = ["git", "-C", str(ROOT), "cat-file", "-e", f"{commit}^{{commit}}"]
    if subprocess.run(known, capture_output=True, check=False).returncode != 0:
        pytest.skip("the history does not reach back to the first release")
    return build_at(commit, ROOT / "build" / "first-release")


@pytest.fixture
def old(site: Site, old_build: Path) -> Site:
    """The same surroundings, with the programs of the first release."""
    return replace(site, build=old_build)


@pytest.fixture
def start(programs: Programs) -> Callable[..., Peer]:
    """start(site, daemon, instance): an engine of that site's version."""

    def begin(site: Site, daemon: Daemon, instance: str = "engine") -> Peer:
        peer = Peer(site, daemon.socket, instance)
        programs.peers.append(peer)
        return peer

    return begin


def used(programs: Programs, daemon: Daemon) -> int:
    rows = programs.kvctl("list", "--json", daemon=daemon).json()
    return sum(int(row["used_bytes"]) for row in rows)


def borrow_and_return(programs: Programs, daemon: Daemon, peer: Peer) -> None:
    """What an engine does: borrows, computes, is limited, keeps reserves, gives back."""
    peer.do("open thread=1 min=2 max=4")
    peer.do(f"region kv page={10 * MIB} pages=24 segments=2")
    peer.do("map kv 0-3,9")
    peer.do("write kv 9 1 91")
    assert peer.do("read kv 9 1") == "91"
    peer.do(f"await cached={2 * 20 * MIB}")
    assert used(programs, daemon) == 7 * 20 * MIB
    assert programs.kvctl("limit", peer.instance, "100M", daemon=daemon).rc == 0
    peer.do("await over=1")
    assert peer.refused("map kv 4-8").startswith("KVC_E_LIMIT ")
    peer.do("unmap kv 0-3,9")
    eventually(lambda: used(programs, daemon) <= 100 * MIB)
    assert programs.kvctl("limit", peer.instance, "1G", daemon=daemon).rc == 0
    peer.do("map kv 4-8")
    peer.do("close")
    eventually(lambda: used(programs, daemon) == 0)


def test_old_library_new_daemon(programs: Programs, old: Site, start: Callable[..., Peer]) -> None:
    daemon = programs.daemon()
    borrow_and_return(programs, daemon, start(old, daemon))


def test_new_library_old_daemon(programs: Programs, old: Site, start: Callable[..., Peer]) -> None:
    daemon = Daemon(old, metrics=None)  # it knows no such option
    programs.daemons.append(daemon)
    borrow_and_return(programs, daemon, start(programs.site, daemon))


def test_a_controller_and_an_old_daemon(programs: Programs, old: Site, start: Callable[..., Peer]) -> None:
    daemon = Daemon(old, metrics=None)  # it knows no such option
    programs.daemons.append(daemon)
    refusal = start(programs.site, daemon).refused("open role=controller")
    assert refusal.startswith("KVC_E_VERSION ")
    assert "too old for controllers" in refusal


def test_a_controller_and_an_old_engine(programs: Programs, old: Site, start: Callable[..., Peer]) -> None:
    daemon = programs.daemon(budget="512M")
    controller, other, engine = (
        start(programs.site, daemon),
        start(programs.site, daemon, "x"),
        start(old, daemon),
    )
    controller.do("open role=controller")
    controller.do(f"reserve {512 * MIB} 0")
    for peer in (other, engine):
        peer.do("open")
        peer.do("region kv page=128M pages=4")
    assert other.refused("map kv 0").startswith("KVC_E_BUDGET ")
    engine.do("map kv 0-3")


def test_old_and_new_engines_share(programs: Programs, old: Site, start: Callable[..., Peer]) -> None:
    daemon = programs.daemon(budget="512M")
    peers = [start(old, daemon, "old"), start(programs.site, daemon, "new")]
    for peer in peers:
        peer.do("open")
        peer.do("region kv page=128M pages=4")
    for holder, other in (peers, peers[::-1]):
        holder.do("map kv 0-3")
        assert other.refused("map kv 0").startswith("KVC_E_BUDGET ")
        holder.do("unmap kv 0-3")


def test_old_kvctl_new_daemon(programs: Programs, old: Site, start: Callable[..., Peer]) -> None:
    daemon = programs.daemon()
    start(programs.site, daemon).do("open")
    old_programs = Programs(old)
    assert [row["ipc"] for row in old_programs.kvctl("list", "--json", daemon=daemon).json()] == ["engine"]
    assert old_programs.kvctl("limit", "engine", "1G", daemon=daemon).rc == 0
    assert old_programs.kvctl("info", "engine", daemon=daemon).rc == 0


def test_new_kvctl_old_daemon(programs: Programs, old: Site, start: Callable[..., Peer]) -> None:
    daemon = Daemon(old, metrics=None)  # it knows no such option
    programs.daemons.append(daemon)
    start(old, daemon).do("open")
    assert [row["ipc"] for row in programs.kvctl("list", "--json", daemon=daemon).json()] == ["engine"]
    assert programs.kvctl("limit", "engine", "1G", daemon=daemon).rc == 0
    assert programs.kvctl("info", "engine", daemon=daemon).rc == 0
