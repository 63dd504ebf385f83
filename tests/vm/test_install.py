# SPDX-License-Identifier: Apache-2.0
"""What an installation has made: users, folders, and units that systemd has nothing to say against."""

from __future__ import annotations

import re

from vm.node import Node

SERVICE = "kvcachedd@0.service"


def test_users_and_groups(node: Node) -> None:
    assert re.fullmatch(r"kvcached:[^:]*:\d+:\d+:[^:]*:/:\S*nologin", node.run("getent passwd kvcached"))
    assert node.run("id -gn kvcached") == "kvcached"
    assert node.run("id -Gn kvcached") == "kvcached video"
    assert node.run("getent group kvcached-admin")


def test_folder_of_the_sockets(node: Node) -> None:
    assert node.run("stat -c '%U:%G %a' /run/kvcached") == "kvcached:kvcached 755"


def test_verify(node: Node) -> None:
    units = [SERVICE, "kvcachedd@0.socket", "kvcachedd-control@0.socket", "kvcached.target"]
    done = node.ask(f"systemd-analyze verify --man=no {' '.join(units)} kvcached-devices@0.service")
    assert (done.rc, done.out, done.err) == (0, "", "")


def test_exposure(node: Node) -> None:
    """As the running systemd sees the unit, not as the file reads."""
    node.run(f"systemctl start {SERVICE}")
    done = node.ask(f"systemd-analyze security --no-pager --threshold=20 {SERVICE}")
    assert done.rc == 0, done.out


def test_file_modes(node: Node) -> None:
    """Of what a running daemon and its sockets leave."""
    node.run(f"systemctl start {SERVICE}; kvctl --gpu 0 limit llama 8M")
    expected = {
        "/run/kvcached/gpu0.sock": "root:kvcached 660",
        "/run/kvcached/gpu0.sock.ctl": "root:kvcached 660",
        "/var/lib/kvcached": "kvcached:kvcached 750",
        "/var/lib/kvcached/*/limits.json": "kvcached:kvcached 600",
    }
    for path, mode in expected.items():
        assert node.run(f"stat -c '%U:%G %a' {path}") == mode, path


def test_device_files_are_made_first(node: Node) -> None:
    """Where the driver's program for that is installed, it runs as root, before the daemon."""
    tool = "/usr/bin/nvidia-modprobe"
    gpus = "/proc/driver/nvidia/gpus"
    try:
        node.run("mount -t tmpfs tmpfs /proc/driver")
        node.write(f"{gpus}/0000:1b:00.0/information", "Device Minor: \t 4")
        node.write(f"{gpus}/0000:43:00.0/information", "Device Minor: \t 3")
        node.write(tool, "#!/bin/sh", 'echo "$(id -un) $*" >>/run/asked-for')
        node.run(f"chmod 755 {tool}; systemctl start kvcachedd@1.service")
        assert node.run("cat /run/asked-for").splitlines() == [
            "root --create-nvidia-device-file=255",
            "root --create-nvidia-device-file=3",
            "root --unified-memory --create-nvidia-device-file=0",
        ]
        times = [
            int(node.show(unit, "ActiveEnterTimestampMonotonic"))
            for unit in ("kvcached-devices@1.service", "kvcachedd@1.service")
        ]
        assert times[0] < times[1]

        node.run("systemctl stop kvcached-devices@1.service kvcachedd@1.service")
        node.write(tool, "#!/bin/sh", "exit 1")
        node.run("systemctl start kvcachedd@1.service")
        assert node.show("kvcached-devices@1.service", "ExecMainStatus") == "1"
        assert node.is_active("kvcachedd@1.service")
        node.write(tool, "#!/bin/sh", "exit 0")
        node.run("systemctl restart kvcachedd@1.service")
        assert node.is_active("kvcached-devices@1.service"), "it is not tried again"
    finally:
        node.run(f"rm -f {tool} /run/asked-for; umount /proc/driver")
    node.run("systemctl stop kvcached-devices@1.service; systemctl restart kvcachedd@1.service")
    assert node.show("kvcached-devices@1.service", "ConditionResult") == "no"
    assert node.is_active("kvcachedd@1.service")
