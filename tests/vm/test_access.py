# SPDX-License-Identifier: Apache-2.0
"""Who may do what with a daemon under systemd, and what the daemon itself may do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vm.node import Engine, Node

SERVICE = "kvcachedd@0.service"
MIB = 1 << 20


def test_users(node: Node) -> None:
    """Nobody may look who isn't in the group, and change who isn't an administrator."""
    node.run(f"systemctl start {SERVICE}")
    for command in ("list", "limit llama 8M"):
        refused = node.ask_as("bob", f"kvctl --gpu 0 {command}")
        assert refused.rc == 1
        assert "You may not connect to /run/kvcached/gpu0.sock.ctl: that is for root" in refused.err
    node.run_as("alice", "kvctl --gpu 0 list")
    refused = node.ask_as("alice", "kvctl --gpu 0 limit llama 8M")
    assert refused.rc == 1
    assert "only root, the daemon's user and the admin group may change things" in refused.err
    node.run_as("carol", "kvctl --gpu 0 limit llama 8M")
    node.run("kvctl --gpu 0 limit qwen 8M")
    assert {entry["ipc"] for entry in node.ask("kvctl --gpu 0 --json list").json()} == {"llama", "qwen"}


def test_engines(node: Node) -> None:
    node.run(f"systemctl start {SERVICE}")
    answer = Engine(node, "b", "bob").ask("open")
    assert answer.startswith("error KVC_E_CONNECT")
    assert "ermission" in answer
    Engine(node, "a", "alice").do("open")
    Engine(node, "s", "bob", "--property=SupplementaryGroups=kvcached").do("open")


def test_a_domain_of_its_own(node: Node) -> None:
    """A socket that the daemon makes itself, in its sandbox, with a group that isn't its own."""
    node.write(
        "/etc/kvcached/kvcachedd.conf",
        "[domain tenant]",
        "socket=/run/kvcached/tenant/engine.sock",
        "group=video",
        "mode=0666",
    )
    node.run(f"systemctl start {SERVICE}")
    assert node.run("stat -c '%U:%G %a' /run/kvcached/tenant/engine.sock") == "kvcached:video 666"
    Engine(node, "t", "bob", KVCACHED_SOCKET="/run/kvcached/tenant/engine.sock").do("open")
    assert node.ask("kvctl --gpu 0 --json list t").json()[0]["domain"] == "tenant"


def test_a_socket_elsewhere(node: Node) -> None:
    """It needs a drop-in; without one the daemon says what it cannot do."""
    place = "/srv/tenant"
    node.run(f"install -d -o kvcached -g kvcached {place}")
    node.write("/etc/kvcached/kvcachedd.conf", "[domain tenant]", f"socket={place}/engine.sock")
    assert node.ask(f"systemctl start {SERVICE}").rc != 0
    assert f"{place}/engine.sock.lock: Read-only file system" in node.log()
    node.run(f"systemctl stop {SERVICE}")
    node.drop_in(f"ReadWritePaths={place}")
    node.run(f"systemctl start {SERVICE}")
    assert node.run(f"stat -c %G {place}/engine.sock") == "kvcached"


# ---- The sandbox ----


def test_the_process(node: Node) -> None:
    """The kernel's word for who the daemon is."""
    node.run(f"systemctl start {SERVICE}")
    lines = node.run(f"cat /proc/{node.pid()}/status").splitlines()
    status = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    assert status["Uid"] == [node.run("id -u kvcached")] * 4
    assert status["Gid"] == [node.run("id -g kvcached")] * 4
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name][0], 16) == 0, name
    assert status["NoNewPrivs"] == ["1"]
    assert status["Seccomp"] == ["2"]
    assert (
        node.run(f"prlimit --pid {node.pid()} --nofile --noheadings --output=SOFT,HARD").split()
        == ["524288"] * 2
    )


@pytest.fixture
def probe(node: Node) -> Iterator[Node]:
    """Where much is allowed to everybody, so that what a process cannot do is the sandbox's doing."""
    node.run("ip address replace 10.9.9.9/32 dev lo")
    node.run("install -d -m 777 /var/lib/elsewhere; install -m 4755 /usr/bin/id /var/lib/elsewhere/id")
    node.run("touch /etc/probed /tmp/probed ~alice/probed; chmod 666 /etc/probed /dev/vdb")
    node.run("chmod 755 ~alice; sysctl --quiet kernel.dmesg_restrict=0")
    yield node
    node.run("rm -rf /etc/probed /tmp/probed ~alice/probed /var/lib/elsewhere /usr/local/bin/probe")
    node.run(
        "chmod 660 /dev/vdb; sysctl --quiet kernel.dmesg_restrict=1; ip address delete 10.9.9.9/32 dev lo"
    )


CAN = {
    "write to the sockets' folder": "touch /run/kvcached/x",
    "write to the state folder": "touch /var/lib/kvcached/x",
    "write to /dev/shm": "touch /dev/shm/kvcached-x",
    "see other processes": "grep -q ^NSpid: /proc/1/status && cat /proc/1/uid_map /proc/1/cgroup",
    "read a configuration": "cat /etc/passwd",
    "reach this machine": "bash -c 'echo >/dev/udp/127.0.0.1/9'",
}
CANNOT = {
    "write to /etc": "echo >>/etc/probed",
    "write to what is open to all": "touch /var/lib/elsewhere/x",
    "look into a home": "ls ~alice/probed",
    "see what is in /tmp": "ls /tmp/probed",
    "reach another address": "bash -c 'echo >/dev/udp/10.9.9.9/9'",
    "read a disk": "head -c 1 /dev/vdb",
    "read what the kernel says": "dmesg",
    "have a user namespace": "unshare --user true",
    "become root by a set-uid program": "/var/lib/elsewhere/id -u | grep -qx 0",
    "have memory that is written and run": "perl -e 'exit(syscall(9, 0, 4096, 7, 34, -1, 0) == -1)'",
}


def what_it_can_do(node: Node, *settings: str) -> list[str]:
    """A script that is started as the daemon is, in its sandbox, says what it can do."""
    node.drop_in("ExecStartPre=/usr/local/bin/probe", *settings)
    node.run(f"systemctl restart {SERVICE}")
    return node.run("cat /run/kvcached/probe").splitlines()


def test_what_it_can_do(probe: Node) -> None:
    """It can do what the daemon needs, and nothing else of what the same user can do without a sandbox; and
    with a drop-in what that allows."""
    script = ["#!/bin/bash", "exec >/run/kvcached/probe 2>/dev/null"]
    script += [f'({command}) >/dev/null && echo "{name}"' for name, command in (CAN | CANNOT).items()]
    probe.write("/usr/local/bin/probe", *script, "true")
    probe.run("chmod 755 /usr/local/bin/probe; runuser -u kvcached /usr/local/bin/probe")
    assert probe.run("cat /run/kvcached/probe").splitlines() == list(CAN | CANNOT)
    assert what_it_can_do(probe) == list(CAN)
    settings = ("IPAddressAllow=10.9.9.9", "DeviceAllow=/dev/vdb r", "ProtectHome=read-only")
    more = ["look into a home", "reach another address", "read a disk"]
    assert what_it_can_do(probe, *settings) == [*CAN, *more]
