# SPDX-License-Identifier: Apache-2.0
"""The harness fails a test when it should: tried on programs that misbehave on purpose."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness import leaks
from harness.broker import Daemon, Peer, Programs, Site, eventually

FAKE_DAEMON = """\
import os, signal, socket, sys

def notify(text):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.sendto(text.encode(), os.environ["NOTIFY_SOCKET"])

path = sys.argv[sys.argv.index("--socket") + 1]
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind(path)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
fault = os.environ.get("FAULT")
if fault == "early":
    sys.exit("no driver")
os.mkdir(os.environ["KVCACHED_EMULATE_DIR"])
notify("READY=1\\nSTATUS=serving")
signal.sigwait([signal.SIGTERM])
if fault == "status":
    sys.exit(3)
notify("STOPPING=1")
if fault != "socket":
    os.unlink(path)
if fault != "device":
    os.rmdir(os.environ["KVCACHED_EMULATE_DIR"])
"""

FAKE_PEER = """\
import sys

for line in sys.stdin:
    if line == "die\\n":
        sys.exit(5)
    print("error KVC_E_LIMIT" if line == "fail\\n" else "ok " + line.strip(), flush=True)
"""


@pytest.fixture
def site(tmp_run: Path) -> Site:
    build = tmp_run / "build"
    for name, code in {"daemon/kvcachedd": FAKE_DAEMON, "tests/harness/kvpeer": FAKE_PEER}.items():
        path = build / name
        path.parent.mkdir(parents=True)
        path.write_text(f"#!{sys.executable}\n{code}")
        path.chmod(0o755)
    return Site(build=build, run=tmp_run, emulate_dir=tmp_run / "devices")


@pytest.fixture
def start(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Daemon]]:
    """Starts the fake daemon with a fault."""
    monkeypatch.delenv("KVCACHED_TEST_DRIVER", raising=False)
    started = []

    def start_one(fault: str = "") -> Daemon:
        started.append(Daemon(site, environment={"FAULT": fault}))
        return started[-1]

    yield start_one
    for daemon in started:
        if daemon.is_running():
            daemon.kill()


def test_a_sound_daemon_passes(site: Site, start: Callable[..., Daemon]) -> None:
    daemon = start()
    assert "STATUS=serving" in daemon.notifications.received
    assert site.emulate_dir.exists()
    daemon.stop()
    site.check_clean()


def test_an_early_end_is_reported_with_its_reason(start: Callable[..., Daemon]) -> None:
    with pytest.raises(AssertionError, match=r"ended before READY=1: exit status 1\nno driver"):
        start("early")


def test_a_bad_exit_status_fails(start: Callable[..., Daemon]) -> None:
    daemon = start("status")
    with pytest.raises(AssertionError, match="exit status 3"):
        daemon.stop()


def test_a_socket_left_behind_fails(start: Callable[..., Daemon]) -> None:
    daemon = start("socket")
    with pytest.raises(AssertionError, match=r"gpu0\.sock is left behind"):
        daemon.stop()


def test_a_device_left_behind_fails(site: Site, start: Callable[..., Daemon]) -> None:
    start("device").stop()
    with pytest.raises(AssertionError, match="left in place"):
        site.check_clean()


def test_programs_end_what_runs(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KVCACHED_TEST_DRIVER", raising=False)
    programs = Programs(site)
    daemon = programs.daemon("1G")
    peer = programs.peer(daemon)
    programs.end()
    assert not daemon.is_running()
    assert not peer.is_running()


def test_peer_answers(site: Site) -> None:
    peer = Peer(site, site.run / "gpu0.sock")
    assert peer.do("map 1") == "map 1"
    assert peer.refused("fail") == "KVC_E_LIMIT"
    with pytest.raises(AssertionError, match="error KVC_E_LIMIT"):
        peer.do("fail")
    with pytest.raises(AssertionError, match="ok map 1"):
        peer.refused("map 1")
    peer.close()


def test_a_peer_that_dies_fails(site: Site) -> None:
    peer = Peer(site, site.run / "gpu0.sock")
    with pytest.raises(AssertionError, match="exit status 5"):
        peer.do("die")
    with pytest.raises(AssertionError, match="exit status 5"):
        peer.close()


def test_eventually() -> None:
    values = iter([0, None, 7])
    assert eventually(lambda: next(values)) == 7
    with pytest.raises(AssertionError, match="still \\[\\]"):
        eventually(list, within=0.05)

    def never() -> bool:
        raise AssertionError("not this time")

    with pytest.raises(AssertionError, match="not this time"):
        eventually(never, within=0.05)


def test_orphans_are_found() -> None:
    """In a process of its own, which adopts what a child leaves behind."""
    code = (
        "import subprocess, sys\n"
        "from harness import leaks\n"
        "leaks.adopt_orphans()\n"
        "assert not leaks.live_children()\n"
        "subprocess.run([sys.executable, '-c', 'import subprocess; subprocess.Popen([\"sleep\", \"99\"])'])\n"
        "assert list(leaks.live_children().values()) == ['sleep 99 ']\n"
        "leaks.end_children()\n"
        "assert not leaks.live_children()\n"
    )
    tests = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(tests)})


def test_open_descriptors_are_found() -> None:
    before = leaks.open_descriptors()
    with Path(__file__).open() as file:
        opened = leaks.open_descriptors().items() - before.items()
        assert opened == {(file.fileno(), str(Path(__file__).resolve()))}
    assert leaks.open_descriptors() == before
