# SPDX-License-Identifier: Apache-2.0
"""kvcachedd as a service: idling, reloading, being activated, watched, crowded, and told to end."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import time

import pytest

from harness.broker import Daemon, Programs, Site, eventually
from harness.control import info, open_control
from harness.observer import descriptors
from harness.quiet import IDLE_S, full_descriptor_table, is_quiet
from harness.raw import LEASES, RawPeer, start_holder, start_raw

MIB = 1 << 20


def test_idle_costs_nothing(programs: Programs) -> None:
    """With engines that hold memory, one that only is connected, and an administrator who watches nothing,
    but with the pool given back, no thread of the daemon runs once."""
    daemon = programs.daemon(config="[daemon]\nidle=0.2\n")
    engines = [start_raw(programs, daemon, f"engine-{i}") for i in range(3)]
    for engine in engines:
        engine.open()
    for engine in engines[1:]:
        extents = engine.take(engine.open_region(), 20)
        engine.give_back(*extents[:10])
    control = open_control(programs, daemon)
    eventually(lambda: info(control).number("held_bytes") == 40 * MIB)
    eventually(lambda: info(control).number("destroying_bytes") == 0)

    eventually(lambda: is_quiet(daemon))
    assert is_quiet(daemon, IDLE_S)
    assert engines[0].take(engines[0].open_region(), 1)


# ---- Ending ----


def test_sigterm_while_busy(programs: Programs) -> None:
    """Engines hold memory, wait for some, don't read, or have just connected. All are told or cut off; the
    daemon ends although they live on, and what they have keeps existing until they end, too."""
    daemon = programs.daemon(budget="512M")
    holder = start_holder(programs, daemon, "holder", 100)
    greedy, deaf, fresh = (start_raw(programs, daemon, name) for name in ("greedy", "deaf", "fresh"))
    greedy.open()
    greedy.post("Take", region=greedy.open_region(), pages=150)
    deaf.open()
    deaf.do(f"flood 200 Take 9 region={deaf.open_region()} pages=1")
    fresh.connect()
    daemon.stop()
    holder.check_ended("ERROR_SHUTDOWN", "stopping")
    fresh.check_ended("ERROR_SHUTDOWN", "stopping")
    assert holder.is_running()
    daemon.site.killed = True  # what holds the device now is no user of it, and doesn't clean up


def test_sigterm_before_all_are_accepted(programs: Programs) -> None:
    """More have connected than the daemon accepts in one turn of its loop: all are told why it ends."""
    daemon = programs.daemon()
    daemon.process.send_signal(signal.SIGSTOP)
    with contextlib.ExitStack() as stack:
        ends = []
        for _ in range(100):
            end = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            end.connect(str(daemon.socket))
            ends.append(end)
        daemon.process.send_signal(signal.SIGTERM)
        daemon.process.send_signal(signal.SIGCONT)
        assert all(b"the daemon is stopping" in end.recv(65536) for end in ends)
    assert daemon.wait() == 0


def test_sigterm_twice(programs: Programs) -> None:
    daemon = programs.daemon()
    engine = start_raw(programs, daemon)
    engine.open()
    engine.take(engine.open_region(), 100)
    daemon.process.send_signal(signal.SIGTERM)
    daemon.process.send_signal(signal.SIGINT)
    assert daemon.wait() == 0


@pytest.mark.emulator
def test_a_driver_that_takes_long_does_not_hold_up_the_end(programs: Programs, site: Site) -> None:
    """Creating takes nine seconds here, but talking and ending don't."""
    costs = site.run / "costs"
    costs.write_text("cuMemCreate call:9000000\n")
    daemon = programs.daemon(environment={"KVCACHED_EMULATE_COSTS": str(costs)})
    engine = start_raw(programs, daemon)
    engine.open()
    engine.post("Take", region=engine.open_region(), pages=1)
    control = open_control(programs, daemon)
    started = time.monotonic()
    assert info(control).number("creating_bytes") > 0
    assert time.monotonic() - started < 1
    daemon.site.killed = True  # its device goes with the process, in the middle of the call
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.wait(within=8) == 0
    assert "has not taken everything back in time" in daemon.log()


@pytest.mark.emulator
def test_nothing_is_reloaded_at_the_end(programs: Programs, site: Site) -> None:
    """A daemon that waits for its driver stays one that stops: who watches it is not told anything else."""
    costs = site.run / "costs"
    costs.write_text("cuMemCreate call:2000000\n")
    daemon = programs.daemon(environment={"KVCACHED_EMULATE_COSTS": str(costs)})
    engine = start_raw(programs, daemon)
    engine.open()
    engine.post("Take", region=engine.open_region(), pages=1)
    assert info(open_control(programs, daemon)).number("creating_bytes") > 0
    daemon.process.send_signal(signal.SIGTERM)
    daemon.wait_for("STOPPING=1")
    daemon.process.send_signal(signal.SIGHUP)
    daemon.process.wait(8)
    daemon.notifications.receive()
    received = list(daemon.notifications.received)
    assert daemon.wait() == 0
    assert not [line for line in received[received.index("STOPPING=1") + 1 :] if line.startswith("R")]


# ---- Reloading ----


def test_reload(programs: Programs, site: Site) -> None:
    daemon = programs.daemon(budget=None, config="[daemon]\nbudget=512M\n[instance a*]\nlimit=64M\n")
    engine = start_raw(programs, daemon, "a1")
    engine.open()
    region = engine.open_region()
    engine.request("Take", region=region, pages=33).check_refused("ERROR_LIMIT", "limit of 64.00 MB")
    config = site.run / "gpu0.conf"

    config.write_text("[daemon]\nbudget=256M\n[instance a*]\nlimit=128M\n")
    reload(daemon)
    assert len(engine.take(region, 64)) == 64
    engine.request("Take", region=region, pages=1).check_refused("ERROR_LIMIT", "limit of 128.00 MB")

    config.write_text("[daemon]\nbudget=256M\n[instance a*]\nlimit=lots\n")
    reload(daemon)
    assert "The old configuration stays: " in daemon.log()
    assert "gpu0.conf:4: limit=lots" in daemon.log()
    engine.request("Take", region=region, pages=1).check_refused("ERROR_LIMIT", "limit of 128.00 MB")

    config.write_text("[daemon]\nbudget=256M\n")
    reload(daemon)
    assert len(engine.take(region, 64)) == 64
    engine.request("Take", region=region, pages=1).check_refused("ERROR_BUDGET", "budget of 256.00 MB")

    assert "need a restart" not in daemon.log()
    config.write_text("[daemon]\nsocket-group=12\n")
    reload(daemon)
    assert "need a restart" in daemon.log()


def reload(daemon: Daemon) -> None:
    daemon.notifications.receive()
    daemon.notifications.received.clear()
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_for("READY=1")
    assert any(line.startswith("RELOADING=1") for line in daemon.notifications.received)


# ---- The service manager ----


def test_watchdog(programs: Programs) -> None:
    daemon = programs.daemon(environment={"WATCHDOG_USEC": "200000"})
    for _ in range(3):
        daemon.notifications.received.clear()
        daemon.wait_for("WATCHDOG=1", within=5)


def test_no_watchdog_when_nobody_asks(daemon: Daemon) -> None:
    daemon.notifications.receive()
    assert "WATCHDOG=1" not in daemon.notifications.received


class Activator:
    """Listens, and starts the daemon with the sockets as systemd would."""

    def __init__(self, site: Site, *names: str, files: dict[str, str] | None = None) -> None:
        """names: of the descriptors; files: how some of the sockets are called, if not NAME.sock."""
        self.site = site
        self.paths = {name: site.run / (files or {}).get(name, f"{name}.sock") for name in names}
        self.sockets = {name: socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for name in names}
        for name, listener in self.sockets.items():
            listener.bind(str(self.paths[name]))
            listener.listen()

    def start(
        self, *arguments: str, program: tuple[str, ...] = (), **variables: str
    ) -> subprocess.Popen[bytes]:
        """program: another command than the build's, which executes the daemon."""
        names = ":".join(self.sockets)
        descriptors = [listener.fileno() for listener in self.sockets.values()]

        def place_descriptors() -> None:
            for i, fd in enumerate([os.dup(fd) for fd in descriptors]):
                os.dup2(fd, 3 + i, inheritable=True)
            os.environ["LISTEN_PID"] = str(os.getpid())
            os.execve(command[0], command, environment | {"LISTEN_PID": str(os.getpid())})

        command = [*(program or [str(self.site.program("daemon/kvcachedd"))]), "--emulate", "1G", *arguments]
        command += ["--metrics-listen", "off"]
        command += ["--state-dir", str(self.site.run / "state")]
        environment = self.site.environment(
            LISTEN_FDS=str(len(descriptors)), LISTEN_FDNAMES=names, **variables
        )
        with (self.site.run / "activated.log").open("ab") as log:
            return subprocess.Popen(command, preexec_fn=place_descriptors, close_fds=False, stderr=log)

    def close(self) -> None:
        for listener in self.sockets.values():
            listener.close()


def test_socket_activation(programs: Programs, site: Site) -> None:
    """Connections wait for the daemon, and its sockets stay when it goes."""
    config = site.run / "x.conf"
    config.write_text("[domain tenant]\nsocket=/nowhere/at/all\n")
    activator = Activator(site, "control", "tenant", "engine")
    early = RawPeer(site, activator.paths["engine"])
    programs.peers.append(early)
    early.connect()
    process = activator.start("--config", str(config))
    try:
        assert early.hello().name == "Welcome"
        tenant = RawPeer(site, activator.paths["tenant"], "t")
        programs.peers.append(tenant)
        tenant.open()
        control = RawPeer(site, activator.paths["control"])
        programs.peers.append(control)
        control.connect()
        assert control.hello().name == "Welcome"
        listing = control.request("List").text
        assert "domain=tenant instance=t" in listing
        assert f"domain=uid:{os.getuid()} instance=raw" in listing
    finally:
        process.terminate()
        status = process.wait(30)
        activator.close()
    assert status == 0
    assert all(path.is_socket() for path in activator.paths.values())
    assert (site.run / "activated.log").read_text() == ""


def test_activated_daemons_take_turns(programs: Programs, site: Site) -> None:
    """Whoever one that ends hasn't accepted yet waits for the next."""
    activator = Activator(site, "engine")
    process = activator.start()
    with contextlib.ExitStack() as stack:
        stack.callback(activator.close)
        stack.callback(process.wait, 30)
        stack.callback(process.terminate)
        early, late = (RawPeer(site, activator.paths["engine"]) for _ in range(2))
        programs.peers += [early, late]
        early.open()
        process.send_signal(signal.SIGSTOP)
        for _ in range(40):  # more than one turn of its loop accepts
            end = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            end.connect(str(activator.paths["engine"]))
        late.connect()
        process.terminate()
        process.send_signal(signal.SIGCONT)
        assert process.wait(30) == 0
        early.check_ended("ERROR_SHUTDOWN", "stopping")
        process = activator.start()
        stack.callback(process.wait, 30)
        stack.callback(process.terminate)
        assert late.hello().name == "Welcome"


def test_links_to_activated_sockets(programs: Programs, site: Site) -> None:
    """Whoever looks for the GPU by UUID finds the sockets at the usual place, also while no daemon runs."""
    files = {"engine": "gpu0.sock", "control": "gpu0.sock.ctl"}
    activator = Activator(site, "engine", "control", files=files)
    with contextlib.ExitStack() as stack:
        stack.callback(activator.close)
        for _ in range(2):
            process = activator.start(RUNTIME_DIRECTORY=str(site.run))
            peer = RawPeer(site, activator.paths["engine"])
            programs.peers.append(peer)
            uuid = peer.open()["gpu_uuid"]
            process.terminate()
            assert process.wait(30) == 0
            assert str((site.run / f"{uuid}.sock").readlink()) == "gpu0.sock"
            assert str((site.run / f"{uuid}.sock.ctl").readlink()) == "gpu0.sock.ctl"
        late = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        late.connect(str(site.run / f"{uuid}.sock"))


def test_no_links_to_activated_sockets_elsewhere(programs: Programs, site: Site) -> None:
    activator = Activator(site, "engine")
    folder = site.run / "folder"
    folder.mkdir()
    process = activator.start(RUNTIME_DIRECTORY=str(folder))
    peer = RawPeer(site, activator.paths["engine"])
    programs.peers.append(peer)
    peer.open()
    assert not [path for path in (*folder.iterdir(), *site.run.iterdir()) if path.is_symlink()]
    process.terminate()
    assert process.wait(30) == 0
    activator.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a daemon of another user")
def test_activation_needs_no_place_for_sockets(programs: Programs, site: Site) -> None:
    """A user who has no folder for sockets can serve those that are passed, and not without them."""
    libraries = [site.publish(f"tests/cuemu/{name}") for name in ("libcuda.so.1", "libnvidia-ml.so.1")]
    become = ("/usr/bin/setpriv", "--reuid=12345", "--regid=12345", "--clear-groups")
    program = (*become, str(site.publish("daemon/kvcachedd")))
    site.run.chmod(0o777)
    site.emulate_dir.parent.chmod(0o777)
    nowhere = {
        "XDG_RUNTIME_DIR": "",
        "RUNTIME_DIRECTORY": "",
        "KVCACHED_EMULATOR_DIR": str(libraries[0].parent),
    }

    activator = Activator(site, "control")
    assert activator.start(program=program, **nowhere).wait(30) == 1
    activator.close()
    assert "There is no place for sockets" in (site.run / "activated.log").read_text()

    activator = Activator(site, "engine", files={"engine": "engine"})
    activator.paths["engine"].chmod(0o666)
    process = activator.start(program=program, **nowhere)
    peer = RawPeer(site, activator.paths["engine"])
    programs.peers.append(peer)
    assert peer.open().name == "Welcome"
    process.terminate()
    assert process.wait(30) == 0
    activator.close()


def test_activation_with_an_unknown_name(site: Site) -> None:
    activator = Activator(site, "engine", "what")
    process = activator.start()
    assert process.wait(30) == 1
    activator.close()
    assert 'A socket named "what" was passed' in (site.run / "activated.log").read_text()


# ---- A full descriptor table ----


def test_a_full_descriptor_table(programs: Programs) -> None:
    """Connections are dropped, nobody who is there is hurt, and it ends with its cause."""
    daemon = programs.daemon()
    engine = start_raw(programs, daemon, "old")
    engine.open()
    region = engine.open_region()
    kept = engine.take(region, 4)
    with full_descriptor_table(daemon):
        crowd = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(40)]
        for member in crowd:
            member.connect(str(daemon.socket))
        eventually(lambda: len(select.select(crowd, [], [], 1)[0]) > 30)
        for member in crowd:
            member.close()
        assert daemon.is_running()
        assert "Connections to" in daemon.log()
        assert daemon.log().count("\n") < 10
        assert engine.give_back(*kept).name == "Returned"

    assert len(engine.take(region, 4)) == 4
    assert start_raw(programs, daemon, "new").open().name == "Welcome"


def answer_to_hello(peer: RawPeer) -> str:
    peer.connect()
    answer = peer.hello(features=LEASES)
    return (peer.prove(answer) if answer.name == "Challenge" else answer).name


def test_a_nearly_full_descriptor_table(programs: Programs) -> None:
    """Whether an engine is let in depends on what of it still fits; nothing stays of one that is not."""
    daemon = programs.daemon()
    assert start_raw(programs, daemon, "old").open().name == "Welcome"
    eventually(lambda: is_quiet(daemon))
    before = len(descriptors(daemon.pid))
    answers = []
    for room in range(8):
        new = start_raw(programs, daemon, f"new{room}")
        with full_descriptor_table(daemon, room):
            answers.append(answer_to_hello(new))
            new.kill()
            eventually(lambda: len(descriptors(daemon.pid)) == before)
    assert set(answers) == {"closed", "Refused", "Welcome"}, answers
    assert answers == sorted(answers, key=["closed", "Refused", "Welcome"].index)


def test_idle_with_a_full_descriptor_table(programs: Programs) -> None:
    """Whoever cannot be accepted is dropped rather than left to wake the daemon up for ever."""
    daemon = programs.daemon()
    with full_descriptor_table(daemon), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as member:
        member.connect(str(daemon.socket))
        assert select.select([member], [], [], 30)[0]
        eventually(lambda: is_quiet(daemon, 1))
