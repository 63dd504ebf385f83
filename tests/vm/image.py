# SPDX-License-Identifier: Apache-2.0
"""The disk of the virtual machine: a small Debian with systemd, a kernel and what the product links, and an
agent that runs what the tests ask for. It is the host's own release, so that what was built here runs there.

    python tests/vm/image.py      makes it, unless it is there already

It is made by mmdebstrap, in a chroot in which nothing is ever started. What was made lies in build-vm, under
a key of all that it depends on.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
GUEST = Path(__file__).parent / "guest"
CACHE = ROOT / "build-vm"

PACKAGES = [
    "curl",
    "initramfs-tools",
    "iproute2",
    "kmod",
    "libcjson1",
    "libedit2",
    "libinih1",
    "libmicrohttpd12",
    "libncursesw6",
    "libprotobuf-c1",
    "libsystemd0",
    "libuv1",
    "linux-image-cloud-amd64",
    "procps",
    "python3",
    "python3-venv",
    "systemd",
    "systemd-sysv",
    "udev",
]
MASKED = ["getty.target", "getty-static.service", "systemd-update-utmp.service"]
TOOLS = ["qemu-system-x86_64", "mmdebstrap", "genext2fs", "e2fsck", "resize2fs"]
ROOM_BYTES = 256 << 20  # for what is installed and written later


class ImageError(Exception):
    """The image cannot be made."""


@dataclass(frozen=True)
class Image:
    disk: Path
    kernel: Path
    initrd: Path


def os_release() -> dict[str, str]:
    text = Path("/etc/os-release").read_text()
    return {
        name: value.strip('"')
        for name, _, value in (line.partition("=") for line in text.splitlines() if line)
    }


def what_is_missing() -> str | None:
    """Why there can be no virtual machine here; None: there can."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing = [tool for tool in TOOLS if not shutil.which(tool, path=path)]
    if missing:
        return f"not on this machine: {', '.join(missing)}"
    if platform.machine() != "x86_64":
        return "the virtual machine is an x86_64 one"
    if os_release().get("ID") != "debian":
        return "the virtual machine runs the host's release, and that is not Debian"
    return None


def image_key(suite: str) -> str:
    parts = [suite, Path(__file__).read_text(), *(path.read_text() for path in sorted(GUEST.iterdir()))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def run(log: Path, *command: str) -> None:
    environment = os.environ | {"PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    with log.open("a") as out:
        print("+", *command, file=out, flush=True)
        done = subprocess.run(command, stdout=out, stderr=out, env=environment, check=False)
    if done.returncode not in (0, 1 if command[0] == "e2fsck" else 0):
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise ImageError(f"{command[0]} failed:\n{tail}")


def bootstrap(folder: Path, suite: str) -> None:
    log, disk = folder / "log.txt", folder / "disk"
    agent = "/usr/lib/kvcached-test"
    run(
        log,
        "mmdebstrap",
        "--variant=minbase",
        "--format=ext2",
        f"--include={','.join(PACKAGES)}",
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        f'--customize-hook=mkdir -p "$1{agent}"',
        f"--customize-hook=copy-in {shlex.quote(str(GUEST / 'agent.sh'))} {agent}",
        f"--customize-hook=copy-in {shlex.quote(str(GUEST / 'agent.service'))} /etc/systemd/system",
        '--customize-hook=chroot "$1" systemctl enable agent.service',
        f'--customize-hook=chroot "$1" systemctl mask {" ".join(MASKED)}',
        '--customize-hook=rm -f "$1/etc/machine-id" && echo uninitialized >"$1/etc/machine-id"',
        '--customize-hook=echo vm >"$1/etc/hostname"',
        f"--customize-hook=copy-out /boot {shlex.quote(str(folder))}",
        suite,
        str(disk),
    )
    os.truncate(disk, disk.stat().st_size + ROOM_BYTES)
    run(log, "e2fsck", "-fy", str(disk))
    run(log, "resize2fs", str(disk))


def find_image(folder: Path) -> Image:
    kernel, initrd = (next((folder / "boot").glob(pattern)) for pattern in ("vmlinuz-*", "initrd.img-*"))
    return Image(folder / "disk", kernel, initrd)


def make_image() -> Image:
    """The image, made now if there is none of this key."""
    suite = os_release()["VERSION_CODENAME"]
    folder = CACHE / image_key(suite)
    if not folder.exists():
        if CACHE.exists():
            shutil.rmtree(CACHE)
        fresh = CACHE / "new"
        fresh.mkdir(parents=True)
        bootstrap(fresh, suite)
        fresh.rename(folder)
    return find_image(folder)


def main() -> int:
    missing = what_is_missing()
    if missing:
        print(f"No virtual machine: {missing}")
        return 1
    try:
        print(make_image().disk)
    except ImageError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
