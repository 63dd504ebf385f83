# SPDX-License-Identifier: Apache-2.0
"""The machine as an administrator has it before kvcached is enabled: installed, and with three users.

alice is in the group kvcached, carol is an administrator as well, and bob is nobody.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from harness.broker import Result
from vm.machine import Machine

SIZES = "1G,1G"
USERS = {"alice": "kvcached", "bob": "", "carol": "kvcached,kvcached-admin"}


@dataclass
class Node:
    machine: Machine
    cursor: str = ""  # where the journal ended when the test began

    def install(self) -> None:
        """What an administrator, or a package, does once, and users who are not the product's."""
        self.run(
            "ldconfig; systemd-sysusers; systemd-tmpfiles --create kvcached.conf; systemctl daemon-reload"
        )
        for name, groups in USERS.items():
            self.run(
                f"id {name} >/dev/null 2>&1 || useradd --create-home {name}; usermod -G '{groups}' {name}"
            )

    def reset(self) -> None:
        """Takes away what other tests have done."""
        self.run(
            f"""
            systemctl stop 'kvcached*' 'engine-*'
            systemctl disable --quiet kvcached.target kvcachedd@{{0,1}}.{{service,socket}} \\
                kvcachedd-control@{{0,1}}.socket kvcached-controller.service
            rm -rf /etc/kvcached /etc/systemd/system/kvcached* /var/lib/kvcached/* /run/kvcached/*
            rm -rf /run/engines /dev/shm/kvcached-*
            echo KVCACHED_EMULATE={SIZES} >/etc/default/kvcachedd
            systemctl daemon-reload
            systemctl reset-failed
            """
        )
        self.cursor = self.run("journalctl --lines=0 --show-cursor --quiet").removeprefix("-- cursor: ")

    def run(self, script: str, within: float = 60) -> str:
        return self.machine.run(script, within)

    def ask(self, script: str, within: float = 60) -> Result:
        return self.machine.ask(script, within)

    def eventually(self, script: str) -> str:
        return self.machine.eventually(script)

    def ask_as(self, user: str, command: str) -> Result:
        return self.ask(f"runuser -u {user} -- {command}")

    def run_as(self, user: str, command: str) -> str:
        return self.run(f"runuser -u {user} -- {command}")

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run(f"systemctl show --property={name} --value {unit}")

    def pid(self, gpu: int = 0) -> int:
        """Of a daemon that runs; 0: there is none."""
        return int(self.show(f"kvcachedd@{gpu}.service", "MainPID"))

    def is_active(self, unit: str) -> bool:
        return self.ask(f"systemctl is-active --quiet {unit}").rc == 0

    def log(self, unit: str = "kvcachedd@0.service") -> str:
        """What the unit, and systemd about it, have said since the test began."""
        where = f"--after-cursor={shlex.quote(self.cursor)}"
        return self.run(f"journalctl --sync; journalctl --quiet --output=cat --unit={unit} {where}")

    def write(self, path: str, *lines: str) -> None:
        words = " ".join(shlex.quote(line) for line in lines)
        self.run(f"mkdir -p $(dirname {path}) && printf '%s\\n' {words} >{path}")

    def drop_in(self, *lines: str, section: str = "Service") -> None:
        """Settings of the daemons' unit, of all GPUs."""
        self.write("/etc/systemd/system/kvcachedd@.service.d/test.conf", f"[{section}]", *lines)
        self.run("systemctl daemon-reload")

    def gpu(self, gpu: int = 0) -> dict[str, object]:
        """What the daemon of that GPU says of it."""
        about: dict[str, object] = self.ask(f"kvctl --gpu {gpu} --json info").json()["gpu"]
        return about

    def limit(self, name: str, gpu: int = 0) -> int | None:
        """The limit of an instance of root's in bytes; None: it isn't known."""
        script = f"kvctl --gpu {gpu} --json list {name}"
        result = self.ask(script)
        return int(result.json()[0]["limit_bytes"]) if result.rc == 0 else None


class Engine:
    """An engine of alice's, as a unit: kvpeer, which answers a line with a line."""

    def __init__(self, node: Node, name: str, user: str = "alice", *options: str, **environment: str) -> None:
        """options: of systemd-run."""
        self.node = node
        self.unit = f"engine-{name}.service"
        self.place = f"/run/engines/{name}"
        variables = {"KVCACHED_IPC_NAME": name} | environment
        settings = " ".join([*options, *(f"--setenv={key}={value}" for key, value in variables.items())])
        node.run(f"mkdir -p {self.place} && mkfifo -m 666 {self.place}/in {self.place}/out")
        node.run(
            f"systemd-run --quiet --collect --unit={self.unit} --uid={user} {settings} bash -c "
            f"'exec /opt/kvcached-test/kvpeer <>{self.place}/in 1<>{self.place}/out'"
        )

    def ask(self, command: str) -> str:
        script = (
            f"echo {shlex.quote(command)} >{self.place}/in; read -r -t 30 line <{self.place}/out; echo $line"
        )
        return self.node.run(script)

    def do(self, command: str) -> str:
        """A command that must succeed; what stands behind "ok"."""
        answer = self.ask(command)
        assert answer.split(" ")[0] == "ok", f"{command}: {answer}"
        return answer.removeprefix("ok").strip()
