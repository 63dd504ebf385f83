# SPDX-License-Identifier: Apache-2.0
"""The Debian packages under a real systemd: installed, upgraded and removed while daemons run."""

from __future__ import annotations

from vm.conftest import PACKAGES
from vm.node import Engine, Node

SERVICE = "kvcachedd@0.service"
ACTIVE = "systemctl list-units --plain --no-legend --state=active 'kvcached*'"


def program(node: Node) -> str:
    return node.run(f"readlink /proc/{node.pid()}/exe")


def test_a_life(packaged: Node) -> None:
    """Nothing starts by itself. An upgrade leaves alone what runs, until the administrator restarts it. A
    removal stops it, with its sockets."""
    node = packaged
    assert node.run(ACTIVE) == ""
    node.run(
        f"systemctl enable --now {SERVICE}; systemctl start kvcachedd@1.socket kvcachedd-control@1.socket"
    )
    assert program(node) == "/usr/bin/kvcachedd"
    engine = Engine(node, "a")
    engine.do("open")
    engine.do("region r page=2M pages=8")
    engine.do("map r 0-3")
    pid, running = node.pid(), node.run(ACTIVE)

    node.run(f"dpkg --install {PACKAGES}/kvcachedd_*.deb", within=120)
    assert (node.pid(), node.run(ACTIVE)) == (pid, running)
    assert program(node) == "/usr/bin/kvcachedd (deleted)"
    assert node.show(SERVICE, "NeedDaemonReload") == "no"
    engine.do("map r 4-5")
    node.run(f"kvctl --gpu 0 limit llama 8M; systemctl reload {SERVICE}")
    node.run("systemctl restart 'kvcachedd@*.service'")
    assert node.pid() not in (0, pid)
    assert program(node) == "/usr/bin/kvcachedd"
    assert node.limit("llama") == 8 << 20

    pid = node.pid()
    node.run("dpkg --remove kvcachedd", within=120)
    assert node.run(ACTIVE) == ""
    assert node.ask(f"kill -0 {pid}").rc != 0
    assert node.run("find /run/kvcached -type s") == ""
    assert node.ask("kvctl --gpu 0 info").rc == 3
    assert node.run("ls /var/lib/kvcached/*/limits.json")
