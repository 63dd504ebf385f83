# SPDX-License-Identifier: Apache-2.0
"""The Debian packages of this tree, built once, and a small Debian to put them into."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TOOLS = ["dpkg-buildpackage", "dh", "lintian", "mmdebstrap", "scdoc"]
BUILD_S = 900


def what_is_missing() -> str | None:
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing:
        return f"not on this machine: {', '.join(missing)}"
    if os.geteuid() != 0:
        return "only root can make a chroot"
    if "ID=debian\n" not in Path("/etc/os-release").read_text():
        return "the packages are Debian's, and this machine is not"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = what_is_missing()
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.timeout(BUILD_S))
            if missing:
                item.add_marker(pytest.mark.skip(reason=missing))


@dataclass(frozen=True)
class Packages:
    folder: Path

    def file(self, name: str) -> Path:
        (path,) = self.folder.glob(f"{name}_*.deb")
        return path

    def contents(self, name: str) -> set[str]:
        """Files and links, without folders."""
        listing = run("dpkg-deb", "--contents", str(self.file(name)))
        lines = [line.split(maxsplit=5) for line in listing.splitlines()]
        return {line[5].split(" -> ")[0].lstrip(".") for line in lines if not line[0].startswith("d")}

    def field(self, name: str, field: str) -> str:
        return run("dpkg-deb", "--field", str(self.file(name)), field).strip()


def run(*command: str, **environment: str) -> str:
    """What it prints; a failure shows all of that."""
    done = subprocess.run(
        command,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout[-4000:]}"
    return done.stdout


def build(folder: Path, **environment: str) -> Packages:
    """By somebody with an address that lintian takes for one."""
    somebody = {"DEBFULLNAME": "A Tester", "DEBEMAIL": "tester@debian.org"}
    run(str(ROOT / "packaging/build-deb"), str(folder), **somebody, **environment)
    return Packages(folder)


@pytest.fixture(scope="session")
def packages() -> Iterator[Packages]:
    with tempfile.TemporaryDirectory(prefix="kvc-deb-", dir="/tmp") as folder:
        yield build(Path(folder))


class Chroot:
    """A Debian in a folder, in which nothing is ever started but what a test runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, script: str) -> str:
        return run("chroot", str(self.folder), "/bin/sh", "-ec", script, DEBIAN_FRONTEND="noninteractive")

    def path(self, name: str) -> Path:
        return self.folder / name.lstrip("/")


@pytest.fixture(scope="session")
def chroot(packages: Packages) -> Iterator[Chroot]:
    """The packages lie in its /packages."""
    with tempfile.TemporaryDirectory(prefix="kvc-chroot-", dir="/tmp") as folder:
        root = Path(folder) / "root"
        run("mmdebstrap", "--variant=minbase", f"--architectures={architecture()}", suite(), str(root))
        # So that no package starts anything, as policy-rc.d(8) has it.
        (root / "usr/sbin/policy-rc.d").write_text("#!/bin/sh\nexit 101\n")
        (root / "usr/sbin/policy-rc.d").chmod(0o755)
        (root / "packages").mkdir()
        for path in packages.folder.glob("*.deb"):
            shutil.copy(path, root / "packages")
        mounts = [("proc", root / "proc"), ("tmpfs", root / "dev/shm")]
        for kind, target in mounts:
            target.mkdir(exist_ok=True)
            run("mount", "-t", kind, kind, str(target))
        try:
            chroot = Chroot(root)
            chroot.run("apt-get update -qq")
            yield chroot
        finally:
            for _, target in reversed(mounts):
                run("umount", str(target))


def suite() -> str:
    """This machine's release: what was built here runs there."""
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("VERSION_CODENAME="):
            return line.split("=")[1]
    raise AssertionError("/etc/os-release names no release")


def architecture() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
