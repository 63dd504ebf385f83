# SPDX-License-Identifier: Apache-2.0
"""Trust domains: who is who, what they share, and what never passes from one to another."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from harness.broker import Daemon, Programs, Site, eventually
from harness.control import info, open_control
from harness.raw import RawPeer, start_raw

MIB = 1 << 20
ALICE = 4321
BOB = 4322
GROUP = 4400

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")


class Stranger(RawPeer):
    """A RawPeer of another uid, or behind another command."""

    def __init__(self, site: Site, socket_path: Path, instance: str, wrapper: list[str]) -> None:
        self.wrapper = [*wrapper, str(site.publish(self.program))]
        super().__init__(site, socket_path, instance)

    def command(self) -> list[str]:
        return self.wrapper


def as_user(uid: int) -> list[str]:
    return ["setpriv", f"--reuid={uid}", f"--regid={GROUP}", "--clear-groups"]


def start_stranger(programs: Programs, path: Path, instance: str, *wrapper: str) -> Stranger:
    peer = Stranger(programs.site, path, instance, list(wrapper))
    programs.peers.append(peer)
    return peer


@pytest.fixture
def shared_daemon(programs: Programs) -> Daemon:
    """A daemon that two users may use."""
    return programs.daemon(config=f"[daemon]\nsocket-group={GROUP}\n")


@needs_root
def test_two_users_never_see_each_others_extents(programs: Programs, shared_daemon: Daemon) -> None:
    control = open_control(programs, shared_daemon)
    alice = start_stranger(programs, shared_daemon.socket, "engine", *as_user(ALICE))
    bob = start_stranger(programs, shared_daemon.socket, "engine", *as_user(BOB))
    alice.open()
    bob.open()
    assert info(control).number("instances") == 2
    seen: dict[str, set[int]] = {"alice": set(), "bob": set()}
    for _ in range(5):
        for name, peer in (("alice", alice), ("bob", bob)):
            region = peer.open_region(1, 1)
            extents = peer.take(region, 30)
            seen[name].update(extents)
            peer.give_back(*extents)
    assert not seen["alice"] & seen["bob"]
    assert len(seen["alice"]) < 300  # she did get her own again

    region = alice.open_region()
    (extent,) = alice.take(region, 1)
    bob.give_back(extent).check_refused("ERROR_INVALID", "not yours")


@needs_root
def test_a_crowded_device_serves_the_next_user(programs: Programs) -> None:
    """What one user has used is destroyed for the other, not handed over; and it does come."""
    daemon = programs.daemon(config=f"[daemon]\nsocket-group={GROUP}\nutilization=1\nheadroom=0\n")
    alice = start_stranger(programs, daemon.socket, "engine", *as_user(ALICE))
    bob = start_stranger(programs, daemon.socket, "engine", *as_user(BOB))
    alice.open()
    bob.open()
    hers = alice.take(alice.open_region(), 450)
    alice.give_back(*hers)
    his = bob.take(bob.open_region(), 450)
    assert not set(hers) & set(his)


@needs_root
def test_a_name_is_one_per_user(programs: Programs, shared_daemon: Daemon) -> None:
    control = open_control(programs, shared_daemon)
    for uid in (ALICE, BOB):
        start_stranger(programs, shared_daemon.socket, "llama", *as_user(uid)).open()
    both = f"uid:{ALICE}/llama uid:{BOB}/llama"
    control.request("Info", instance="llama").check_refused("ERROR_AMBIGUOUS", both)
    assert f"domain=uid:{BOB}" in control.request("Info", instance=f"uid:{BOB}/llama").text
    control.request("SetLimit", instance="llama", bytes=MIB).check_refused("ERROR_AMBIGUOUS")
    control.request("Delete", instance="llama", force=1).check_refused("ERROR_AMBIGUOUS")
    assert control.request("SetLimit", instance=f"uid:{ALICE}/llama", bytes=MIB).name == "LimitReply"


@needs_root
def test_a_stranger_to_the_group_stays_outside(programs: Programs, daemon: Daemon) -> None:
    stranger = start_stranger(programs, daemon.socket, "x", *as_user(ALICE))
    assert stranger.ask(f"connect {daemon.socket}") == "error Permission denied"


def needs(wrapper: tuple[str, ...]) -> pytest.MarkDecorator:
    """Root of a container, or in a chroot, may make some namespaces and not others."""
    done = subprocess.run([*wrapper, "true"], capture_output=True, check=False)
    return pytest.mark.skipif(done.returncode != 0, reason=f"not permitted here: {' '.join(wrapper)}")


def tenant_daemon(programs: Programs, **environment: str) -> tuple[Daemon, Path]:
    folder = programs.site.run / "tenants"
    path = folder / "a" / "engine.sock"
    config = f"[domain tenant-a]\nsocket={path}\nmode=0666\n"
    return programs.daemon(config=config, environment=environment), path


def test_a_configured_domain(programs: Programs) -> None:
    """Whoever uses the domain's socket is in the domain; it has no control socket."""
    daemon, path = tenant_daemon(programs)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
    assert not path.with_name("engine.sock.ctl").exists()
    tenant = RawPeer(programs.site, path, "llama")
    programs.peers.append(tenant)
    tenant.open()
    start_raw(programs, daemon, "llama").open()
    control = open_control(programs, daemon)
    assert "domain=tenant-a" in control.request("Info", instance="tenant-a/llama").text
    daemon.stop()
    assert not path.exists()


MOUNT_READ_ONLY = """
mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && ! touch "$1/x" 2>/dev/null && shift && exec "$@"
"""


@needs(("unshare", "--mount"))
def test_a_read_only_mount_is_enough(programs: Programs) -> None:
    """As a tenant's container has its folder."""
    _, path = tenant_daemon(programs)
    wrapper = ("unshare", "--mount", "sh", "-c", MOUNT_READ_ONLY, "sh", str(path.parent))
    tenant = start_stranger(programs, path, "llama", *wrapper)
    tenant.open()
    assert tenant.take(tenant.open_region(), 1)


@needs_root
def test_in_one_domain_a_name_belongs_to_whom_opened_it(programs: Programs) -> None:
    _, path = tenant_daemon(programs)
    alice = start_stranger(programs, path, "llama", *as_user(ALICE))
    alice.open()
    bob = start_stranger(programs, path, "llama", *as_user(BOB))
    bob.connect()
    bob.hello().check_refused("ERROR_NAME", "opened by somebody else")
    again = start_stranger(programs, path, "llama", *as_user(ALICE))
    again.open()
    extents = alice.take(alice.open_region(), 3)
    alice.give_back(*extents)
    his = start_stranger(programs, path, "qwen", *as_user(BOB))
    his.open()
    assert set(his.take(his.open_region(), 3)) & set(extents), "extents are not reused within the domain"


@needs_root
def test_the_overflow_uid_is_nobody(programs: Programs) -> None:
    _, path = tenant_daemon(programs)
    overflow = int(Path("/proc/sys/kernel/overflowuid").read_text())
    peer = start_stranger(programs, path, "x", *as_user(overflow))
    peer.connect()
    peer.check_ended("ERROR_IDENTITY", "not mapped")


IN_PID_NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child")
IN_PID_NAMESPACE_WITH_PROC = (*IN_PID_NAMESPACE, "--mount-proc")
IN_USER_NAMESPACE = ("unshare", "--user", "--map-root-user")


needs_namespaces = needs(IN_PID_NAMESPACE)


@needs_namespaces
@pytest.mark.parametrize("old_kernel", [False, True])
def test_a_container_is_a_domain_of_its_own(programs: Programs, old_kernel: bool) -> None:
    variables = {"KVCACHED_TEST_NO_PEERPIDFD": "1"} if old_kernel else {}
    daemon, _ = tenant_daemon(programs, **variables)
    inside = start_stranger(programs, daemon.socket, "llama", *IN_PID_NAMESPACE)
    introduce(inside)
    introduce(start_raw(programs, daemon, "llama"))
    control = RawPeer(programs.site, daemon.control)
    programs.peers.append(control)
    introduce(control)
    listing = control.request("List").text
    assert f" domain=uid:{os.getuid()} instance=llama" in listing
    assert f" domain=uid:{os.getuid()}@/" in listing


def introduce(peer: RawPeer) -> None:
    """Connects, and answers the challenge where there is one."""
    peer.connect()
    answer = peer.hello()
    if answer.name == "Challenge":
        peer.post("ChallengeReply", answer.number("request"), nonce=bytes.fromhex(answer["nonce"]))
        answer = peer.next()
    assert answer.name == "Welcome", answer.text


@needs_namespaces
def test_a_container_has_no_business_on_the_control_socket(programs: Programs, daemon: Daemon) -> None:
    inside = start_stranger(programs, daemon.socket, "x", *IN_PID_NAMESPACE)
    inside.connect(daemon.control)
    inside.check_ended("ERROR_PERMISSION", "pid and user namespaces")


@needs(IN_USER_NAMESPACE)
def test_another_user_namespace_has_no_business_there_either(programs: Programs, daemon: Daemon) -> None:
    inside = start_stranger(programs, daemon.socket, "x", *IN_USER_NAMESPACE)
    inside.connect(daemon.control)
    inside.check_ended("ERROR_PERMISSION", "pid and user namespaces")


@needs(IN_PID_NAMESPACE_WITH_PROC)
def test_a_daemon_in_a_container_cannot_see_outside(programs: Programs, site: Site) -> None:
    """To a daemon in a pid namespace, a process outside has no number. It is refused on the main socket, in
    a sentence that says what to do, and served on a configured domain's."""
    path = site.run / "tenant.sock"
    config = site.run / "x.conf"
    config.write_text(f"[domain a]\nsocket={path}\n")
    command = [*IN_PID_NAMESPACE_WITH_PROC, str(site.program("daemon/kvcachedd")), "--emulate", "1G"]
    command += ["--socket", str(site.run / "x.sock"), "--state-dir", str(site.run), "--config", str(config)]
    command += ["--metrics-listen", "off"]
    process = subprocess.Popen(command, env=site.environment(), stderr=subprocess.PIPE)
    try:
        eventually(path.is_socket)
        eventually((site.run / "x.sock.ctl").is_socket)
        peer = RawPeer(site, site.run / "x.sock", "llama")
        programs.peers.append(peer)
        peer.connect()
        peer.hello().check_refused("ERROR_IDENTITY", "connect to the socket of a configured domain")
        peer.connect(path)
        assert peer.hello().name == "Welcome"
        peer.close()
    finally:
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(child), 15)
        assert process.stderr
        process.stderr.close()
        process.wait(30)
