# SPDX-License-Identifier: Apache-2.0
"""A virtual machine of the tests' own, with a real systemd in it.

    with Machine(image, product, folder) as machine:
        machine.run("systemctl start kvcachedd@0.service")
        assert machine.ask("id -u").out == "0\\n"

It has no network, and what is written to its disk is thrown away with it. Scripts go to the agent in it, one
after the other, through a virtio port; its console is kept in a file.
"""

from __future__ import annotations

import base64
import os
import re
import select
import shutil
import socket
import subprocess
import time
from pathlib import Path

from harness.broker import Result, eventually
from vm.image import Image

SLOWER_WITHOUT_KVM = 10


def has_kvm() -> bool:
    """Whether the processor can do it; there are /dev/kvm that serve only kernels that are made for them."""
    flags = re.search(r"^flags\s*:(.*)", Path("/proc/cpuinfo").read_text(), re.M)
    capable = flags is not None and not {"vmx", "svm"}.isdisjoint(flags[1].split())
    return capable and os.access("/dev/kvm", os.R_OK | os.W_OK)


def limit(seconds: float) -> float:
    """For a wait that a passing test never waits so long; a machine that is emulated takes its time."""
    return seconds * (1 if has_kvm() else SLOWER_WITHOUT_KVM)


class Machine:
    def __init__(self, image: Image, product: Path, folder: Path) -> None:
        """image: what it boots. product: an archive, its second disk. folder: for socket and console."""
        self.image = image
        self.product = product
        self.console = folder / "console.txt"
        self._port = folder / "port"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._received = b""
        self._boot = ""
        self.process = subprocess.Popen(self._command(), stdin=subprocess.DEVNULL)
        try:
            eventually(self._connect, limit(30))
        except BaseException:
            self.close()
            raise

    def _command(self) -> list[str]:
        qemu = shutil.which("qemu-system-x86_64")
        assert qemu
        disk = "if=virtio,format=raw"
        return [
            qemu,
            *("-nodefaults", "-no-user-config", "-display", "none", "-nic", "none"),
            *("-machine", "q35", "-accel", "kvm" if has_kvm() else "tcg"),
            *("-cpu", "host" if has_kvm() else "max", "-smp", "2", "-m", "1G"),
            *("-kernel", str(self.image.kernel), "-initrd", str(self.image.initrd)),
            *("-append", "root=/dev/vda rw console=ttyS0 panic=1 mitigations=off systemd.show_status=yes"),
            *("-drive", f"{disk},snapshot=on,file={self.image.disk}"),
            *("-drive", f"{disk},readonly=on,file={self.product}"),
            *("-serial", f"file:{self.console}"),
            *("-device", "virtio-serial-pci"),
            *("-chardev", f"socket,id=tests,server=on,wait=off,path={self._port}"),
            *("-device", "virtserialport,chardev=tests,name=tests"),
            *("-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng"),
        ]

    def _connect(self) -> bool:
        assert self.process.poll() is None, f"qemu ended with {self.process.returncode}"
        try:
            self._socket.connect(str(self._port))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True

    def _receive_line(self, within: float) -> str:
        deadline = time.monotonic() + within
        while b"\n" not in self._received:
            left = max(0.0, deadline - time.monotonic())
            readable = select.select([self._socket], [], [], left)[0]
            data = self._socket.recv(1 << 16) if readable else b""
            if not data:
                why = "qemu has ended" if readable else f"no answer within {within:g} s"
                raise AssertionError(f"{why}; the console's end:\n{self.console_end()}")
            self._received += data
        line, self._received = self._received.split(b"\n", 1)
        return line.decode()

    def console_end(self) -> str:
        return "\n".join(self.console.read_text(errors="replace").splitlines()[-40:])

    def _send(self, script: str) -> None:
        self._socket.sendall(base64.b64encode(script.encode()) + b"\n")

    def ask(self, script: str, within: float = 60) -> Result:
        """Runs a bash script as root, and returns what it said."""
        self._send(script)
        status, out, err = self._receive_line(limit(within)).split(" ")
        texts = [
            "" if text == "-" else base64.b64decode(text).decode(errors="replace") for text in (out, err)
        ]
        return Result(int(status), *texts)

    def run(self, script: str, within: float = 60) -> str:
        """As ask(), of a script that must succeed; what it wrote to its standard output, without the last
        newline."""
        result = self.ask(script, within)
        assert result.rc == 0, f"{script}\nexit status {result.rc}\n{result.out}{result.err}"
        return result.out.removesuffix("\n")

    def eventually(self, script: str, within: float = 30) -> str:
        """Runs the script until it succeeds."""

        def succeeds() -> Result:
            result = self.ask(script)
            assert result.rc == 0, f"{script}\nexit status {result.rc}\n{result.out}{result.err}"
            return result

        return eventually(succeeds, limit(within)).out.removesuffix("\n")

    def wait_until_up(self) -> None:
        """The boot is over, and every unit of it is well."""
        word = ""
        while not word.startswith("hello ") or word == self._boot:
            word = self._receive_line(limit(120))
        self._boot = word
        state = self.ask("systemctl is-system-running --wait", within=120).out.strip()
        assert state == "running", f"{state}\n{self.run('systemctl --failed --no-pager')}"

    def reboot(self) -> None:
        """Ends when the machine is up again. Whether the agent still answers is chance."""
        self._send("systemctl --no-block reboot")
        self.wait_until_up()

    def close(self) -> None:
        """Pulls the plug."""
        self.process.kill()
        self.process.wait()
        self._socket.close()

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
