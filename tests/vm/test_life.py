# SPDX-License-Identifier: Apache-2.0
"""Daemons under systemd: enabled, started by a connection, watched, killed, reloaded and stopped."""

from __future__ import annotations

import re

from vm.node import Engine, Node

SERVICE = "kvcachedd@0.service"
SOCKETS = "kvcachedd@0.socket kvcachedd-control@0.socket"
MIB = 1 << 20
FLOCK = 73  # the number of the system call


def inodes(node: Node) -> str:
    return node.run("stat -c %i /run/kvcached/gpu0.sock /run/kvcached/gpu0.sock.ctl")


# ---- Starting ----


def test_one_unit_for_each_gpu(node: Node) -> None:
    """It is all that has to be enabled; the command returns when the daemon serves, and each has its own."""
    for gpu in (0, 1):
        node.run(f"systemctl enable --now kvcachedd@{gpu}.service")
        assert node.show(f"kvcachedd@{gpu}.service", "StatusText").startswith(f"Serving GPU {gpu}, ")
        for unit in (f"kvcachedd@{gpu}.socket", f"kvcachedd-control@{gpu}.socket"):
            assert node.is_active(unit)
            assert node.run(f"systemctl is-enabled {unit}") == "enabled"
    uuids = [node.gpu(gpu)["uuid"] for gpu in (0, 1)]
    assert len(set(uuids)) == 2
    for gpu, uuid in enumerate(uuids):
        assert node.run(f"readlink /run/kvcached/{uuid}.sock") == f"gpu{gpu}.sock"
    node.run("systemctl stop kvcachedd@1.service")
    assert node.is_active(SERVICE)
    assert node.run("ls /run/kvcached/gpu0.sock /run/kvcached/gpu1.sock")


def test_a_boot(node: Node) -> None:
    """What was enabled is there after one, with its limits; and what was not, is not."""
    node.run(f"systemctl enable --now {SERVICE}; systemctl start kvcachedd@1.service")
    node.run("kvctl --gpu 0 limit llama 8M")
    node.machine.reboot()
    assert node.is_active(SERVICE)
    assert node.limit("llama") == 8 * MIB
    assert not node.is_active("kvcachedd@1.service")
    assert node.run("ls -d /run/kvcached/gpu*") == "/run/kvcached/gpu0.sock\n/run/kvcached/gpu0.sock.ctl"


def test_an_engine_starts_the_daemon(node: Node) -> None:
    node.run(f"systemctl enable --now {SOCKETS}")
    assert node.pid() == 0
    engine = Engine(node, "a")
    engine.do("open")
    assert node.pid() != 0
    engine.do("region r page=2M pages=8")
    engine.do("map r 0-3")
    engine.do("write r 1 0 7")
    assert engine.do("read r 1 0") == "7"
    used = node.ask("kvctl --gpu 0 --json list a").json()[0]["used_bytes"]
    assert used == 8 * MIB


def test_kvctl_starts_the_daemon(node: Node) -> None:
    node.run(f"systemctl enable --now {SOCKETS}")
    assert node.gpu()["emulated"]
    assert node.pid() != 0


def test_a_gpu_is_found_by_uuid_while_its_daemon_rests(node: Node) -> None:
    node.run(f"systemctl start {SERVICE}")
    uuid = node.gpu()["uuid"]
    node.run(f"systemctl stop {SERVICE}")
    Engine(node, "a").do(f"open gpu={uuid}")
    assert node.pid() != 0


def test_not_ready_before_it_serves(node: Node) -> None:
    """Whoever is ordered behind the daemon waits while it waits for its driver: here, at the emulator's."""
    devices = "/dev/shm/kvcached-emu-$(id -u kvcached)"
    node.run(f"install -d -m 777 -o kvcached {devices}")
    node.run(f"systemd-run --quiet --collect --unit=engine-gate flock {devices} sleep infinity")
    node.eventually(f"! flock --nonblock {devices} true")
    node.run(f"systemctl start --no-block {SERVICE}")
    node.eventually(f"grep -q '^{FLOCK} ' /proc/$(systemctl show -P MainPID {SERVICE})/syscall")
    assert node.show(SERVICE, "ActiveState") == "activating"
    node.run("systemctl stop engine-gate")
    node.run(f"systemctl start {SERVICE}")
    assert node.show(SERVICE, "SubState") == "running"
    assert node.show(SERVICE, "StatusText").startswith("Serving GPU 0, ")


# ---- What is wrong at the start ----


def test_a_wrong_variable(node: Node) -> None:
    """The start fails at once, says why, and is not tried again."""
    node.write("/etc/kvcached/gpu0.env", "KVCACHED_EMULATE=much")
    assert node.ask(f"systemctl start {SERVICE}").rc != 0
    assert '"much" is not a size such as 80G' in node.log()
    assert node.show(SERVICE, "SubState") == "failed"
    assert node.show(SERVICE, "NRestarts") == "0"
    node.run(f"rm /etc/kvcached/gpu0.env; systemctl start {SERVICE}; kvctl --gpu 0 info")


def test_a_driver_that_comes_later(node: Node) -> None:
    """It is waited for, and so is the daemon by who connects meanwhile."""
    node.run(f"rm /etc/default/kvcachedd; systemctl start {SOCKETS}")
    assert node.ask(f"systemctl start {SERVICE}").rc != 0
    node.eventually(f"test $(systemctl show -P NRestarts {SERVICE}) -ge 3")
    assert "libcuda.so.1" in node.log()
    node.run("echo KVCACHED_EMULATE=1G >/etc/default/kvcachedd")
    node.eventually(f"systemctl is-active --quiet {SERVICE}")
    assert node.gpu()["emulated"]


def test_options_of_one_gpu(node: Node) -> None:
    node.write("/etc/kvcached/gpu1.env", 'KVCACHEDD_OPTIONS="--budget 256M --log-level debug"')
    node.run("systemctl start kvcachedd@0.service kvcachedd@1.service")
    budgets = [node.ask(f"kvctl --gpu {gpu} --json info").json()["budget_bytes"] for gpu in (0, 1)]
    assert budgets[1] == 256 * MIB
    assert budgets[0] != budgets[1]


# ---- Watching and restarting ----


def test_watchdog(node: Node) -> None:
    """A daemon that stands still is replaced; one that only has nothing to do is not."""
    node.run(f"systemctl start {SERVICE}")
    assert node.show(SERVICE, "WatchdogUSec") == "30s"
    node.drop_in("WatchdogSec=2s", "TimeoutAbortSec=5s")
    node.run(f"systemctl restart {SERVICE}")
    fed = "systemctl show -P WatchdogTimestampMonotonic kvcachedd@0.service"
    first = int(node.run(fed))
    node.eventually(f"test $({fed}) -gt {first + 4_000_000}")
    assert node.show(SERVICE, "NRestarts") == "0"

    stopped = node.pid()
    node.run(f"kill -STOP {stopped}")
    node.eventually(
        f"test $(systemctl show -P NRestarts {SERVICE}) = 1 && systemctl is-active --quiet {SERVICE}"
    )
    assert node.pid() != stopped
    assert "Watchdog timeout" in node.log()
    node.run("kvctl --gpu 0 info")


def test_sigkill(node: Node) -> None:
    """The daemon comes back with the limits that it had, at the same sockets; engines live on."""
    node.run(f"systemctl start {SERVICE}; kvctl --gpu 0 limit llama 8M; kvctl --gpu 0 limit-percent qwen 25")
    engine = Engine(node, "a")
    engine.do("open")
    engine.do("region r page=2M pages=8")
    engine.do("map r 0-3")
    engine.do("write r 1 0 7")
    killed, before = node.pid(), inodes(node)
    # Who connects right now waits in front of the socket.
    node.run(f"kill -KILL {killed}; kvctl --gpu 0 info")
    assert node.pid() not in (0, killed)
    assert node.show(SERVICE, "NRestarts") == "1"
    assert inodes(node) == before
    assert node.limit("llama") == 8 * MIB
    assert node.limit("qwen") == 256 * MIB
    assert engine.do("read r 1 0") == "7"
    Engine(node, "b").do("open")


def test_restart(node: Node) -> None:
    node.run(f"systemctl start {SERVICE}; kvctl --gpu 0 limit llama 8M")
    before = inodes(node)
    node.run(f"systemctl restart {SERVICE}")
    assert inodes(node) == before
    assert node.limit("llama") == 8 * MIB
    assert node.show(SERVICE, "NRestarts") == "0"


# ---- Reloading ----


def test_reload(node: Node) -> None:
    config = "/etc/kvcached/kvcachedd.conf"
    node.write(config, "[daemon]", "budget=512M", "[instance a*]", "limit=64M")
    node.run(f"systemctl start {SERVICE}")
    engine = Engine(node, "a")
    engine.do("open")
    assert re.search(rf"limit={64 * MIB} .* budget={512 * MIB}", engine.do("status"))
    pid = node.pid()

    node.write(config, "[daemon]", "budget=256M", "[instance a*]", "limit=32M")
    node.run(f"systemctl reload {SERVICE}")
    assert node.limit("a") == 32 * MIB
    engine.do(f"await limit={32 * MIB}")
    engine.do(f"await budget={256 * MIB}")

    node.write(config, "[daemon]", "budget=128M", "[instance a*]", "limit=lots")
    assert node.ask(f"systemctl reload {SERVICE}").rc != 0
    assert f"kvctl: {config}:4: limit=lots" in node.log()
    assert f"The old configuration stays: {config}:4: limit=lots" in node.log()
    assert re.search(rf"limit={32 * MIB} .* budget={256 * MIB}", engine.do("status"))
    assert node.is_active(SERVICE)
    assert node.pid() == pid

    node.write(config, "[instance a*]", "limit=16M")
    node.run(f"systemctl reload {SERVICE}")
    engine.do(f"await limit={16 * MIB}")


# ---- Stopping ----


def test_stop(node: Node) -> None:
    """The daemon ends well and is not started again; its sockets stay, and the next connection starts it."""
    node.run(f"systemctl start {SERVICE}")
    engine = Engine(node, "a")
    engine.do("open")
    engine.do("region r page=2M pages=8")
    engine.do("map r 0-3")
    before = inodes(node)
    node.run(f"systemctl stop {SERVICE}")
    assert node.show(SERVICE, "SubState") == "dead"
    assert node.show(SERVICE, "Result") == "success"
    assert node.show(SERVICE, "ExecMainStatus") == "0"
    assert "Killing" not in node.log()
    assert inodes(node) == before
    engine.do("await connected=0")
    engine.do("write r 1 0 7")
    assert engine.do("read r 1 0") == "7"
    assert node.pid() == 0
    node.run("kvctl --gpu 0 info")
    assert node.pid() != 0


def test_sockets_go_with_their_units(node: Node) -> None:
    """Without them the daemon ends, too, and nothing starts it."""
    node.run(f"systemctl enable --now {SERVICE}")
    node.run(f"systemctl disable --now {SERVICE} {SOCKETS}")
    assert node.pid() == 0
    assert node.run("ls /run/kvcached/*.sock* 2>/dev/null | grep -v GPU- || true") == ""
    assert node.ask("kvctl --gpu 0 info").rc == 3


def test_target(node: Node) -> None:
    """All of the machine's daemons at once."""
    for gpu in (0, 1):
        node.run(f"systemctl enable kvcachedd@{gpu}.service")
    node.run("systemctl start kvcached.target")
    first = [node.pid(gpu) for gpu in (0, 1)]
    assert all(first)
    node.run("systemctl restart kvcached.target")
    second = [node.pid(gpu) for gpu in (0, 1)]
    assert all(second)
    assert not set(first) & set(second)
    node.run("systemctl stop kvcached.target")
    assert node.run("systemctl list-units --plain --no-legend --state=active 'kvcachedd*'") == ""
