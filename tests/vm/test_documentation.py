# SPDX-License-Identifier: Apache-2.0
"""What docs/SYSTEMD.md tells an administrator to type, from the installation to the end."""

from __future__ import annotations

import re
from pathlib import Path

from vm.node import Node

TEXT = (Path(__file__).parents[2] / "docs/SYSTEMD.md").read_text()
COMMANDS = [
    line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.S) for line in block.splitlines() if line
]


def test_every_command(node: Node) -> None:
    """Each succeeds, in the order in which they stand there; and in the end nothing runs."""
    machine = node.machine
    assert len(COMMANDS) > 30
    assert TEXT.count("```") == 2 * TEXT.count("```sh\n"), "a block of another kind isn't run"
    # What an installation does is what they begin with.
    machine.run("userdel --remove alice; userdel kvcached; groupdel kvcached-admin; rm -r /run/kvcached")
    try:
        said = {command: machine.run(command) for command in COMMANDS}
    finally:
        node.install()
    assert "Serving GPU 0" in said["systemctl status kvcachedd@0.service"]
    assert "Emulated in" in said["kvctl --gpu 1 info"]
    assert "WatchdogSec=10s" in said["systemctl cat kvcachedd@0.service"]
    assert said["systemctl show --property=NRestarts kvcachedd@0.service"] == "NRestarts=0"
    assert machine.run("systemctl list-units --plain --no-legend --state=active 'kvcachedd*'") == ""
    assert machine.run("find /run/kvcached -type s") == ""


def test_units_it_names(node: Node) -> None:
    """They are installed."""
    units = set(re.findall(r"`(kvcached[\w@.-]*\.(?:service|socket|target))`", TEXT))
    assert len(units) >= 5
    for unit in units:
        assert node.show(unit, "LoadState") == "loaded", unit
