# SPDX-License-Identifier: Apache-2.0
"""A virtual machine for all tests of this folder, and for each a node without a trace of the others."""

from __future__ import annotations

import re
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from packages import conftest as packages
from vm import wheels
from vm.image import make_image, what_is_missing
from vm.machine import Machine, has_kvm, limit
from vm.node import Node

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
OWN = "/opt/kvcached-test"
PACKAGES, WHEELS = f"{OWN}/packages", f"{OWN}/wheels"
HOLD = "/run/engine-hold"  # while there is such a file, the engine's answers stop in the middle


def controllers_commands() -> list[str]:
    """What the manual says to type for a controller under systemd."""
    page = (ROOT / "docs/CONTROLLER.md").read_text().split("\n## Under systemd\n")[1]
    block = re.search(r"```sh[^\n]*\n(.*?)```", page, re.S)
    assert block
    return block[1].splitlines()


CONTROLLERS = controllers_commands()


def pytest_report_header() -> str:
    return f"virtual machine: {'with KVM' if has_kvm() else 'without KVM, hence slow'}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = what_is_missing()
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.timeout(limit(300)))
            why = missing or (wants_packages(item) and packages.what_is_missing())
            if wants_controller(item) and not wheels.own():
                why = why or "there is no wheel; ./dev python makes one"
            if why:
                item.add_marker(pytest.mark.skip(reason=why))


def wants_packages(item: pytest.Item) -> bool:
    return "packaged" in getattr(item, "fixturenames", [])


def wants_controller(item: pytest.Item) -> bool:
    return "controlled" in getattr(item, "fixturenames", [])


def as_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return entry


def pack_product(build: Path, folder: Path, debs: list[Path], of_python: list[Path]) -> Path:
    """An archive of what "meson install" installs, of engines for the tests, and of these packages."""
    installed = folder / "installed"
    command = ["meson", "install", "-C", str(build), "--no-rebuild", "--destdir", str(installed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    archive = folder / "product.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(installed, ".", filter=as_root)
        tar.add(build / "tests/harness/kvpeer", f".{OWN}/kvpeer", filter=as_root)
        tar.add(HERE / "engine.py", f".{OWN}/engine.py", filter=as_root)
        tar.add(ROOT / "docs/examples/controller", f".{OWN}/docs/examples/controller", filter=as_root)
        for deb in debs:
            tar.add(deb, f".{PACKAGES}/{deb.name}", filter=as_root)
        for wheel in of_python:
            tar.add(wheel, f".{WHEELS}/{wheel.name}", filter=as_root)
    return archive


@pytest.fixture(scope="session")
def machine(build_dir: Path, request: pytest.FixtureRequest) -> Iterator[Machine]:
    """It has the product's files, and nothing that was done with them; packages only if a test wants them."""
    image = make_image()
    with tempfile.TemporaryDirectory(prefix="kvc-vm-", dir="/tmp") as folder:
        debs: list[Path] = []
        if any(wants_packages(item) for item in request.session.items):
            built = packages.build(Path(folder) / "packages")
            debs = [built.file(name) for name in ("kvcachedd", "kvcached-tools", "kvcached-emulator")]
        of_python: list[Path] = []
        own = wheels.own()
        if own and any(wants_controller(item) for item in request.session.items):
            of_python = [own, *wheels.fetch().iterdir()]
        product = pack_product(build_dir, Path(folder), debs, of_python)
        with Machine(image, product, Path(folder)) as running:
            running.wait_until_up()
            running.run("tar -C / -xf /dev/vdb --keep-directory-symlink --no-overwrite-dir")
            yield running


@pytest.fixture(scope="session")
def installed(machine: Machine) -> Node:
    """It has been made known, too, and there are users."""
    node = Node(machine)
    node.install()
    return node


@pytest.fixture
def node(installed: Node) -> Node:
    """It is as if nothing had ever been enabled."""
    installed.reset()
    return installed


@pytest.fixture
def packaged(node: Node) -> Iterator[Node]:
    """The product comes from the packages, and not from what "meson install" has put elsewhere."""
    units, aside = "/usr/local/lib/systemd/system", "/usr/local/lib/systemd/aside"
    try:
        node.run(f"mv {units} {aside}; dpkg --install {PACKAGES}/*.deb", within=120)
        yield node
    finally:
        node.run("dpkg --purge kvcachedd kvcached-tools kvcached-emulator", within=120)
        node.run(f"[ ! -d {aside} ] || mv {aside} {units}")
        node.install()


@pytest.fixture(scope="session")
def with_controller(installed: Node) -> Node:
    """The command is there, as the manual says to install it, but for where pip has it from."""
    venv, pip, link = CONTROLLERS[:3]
    assert "'.[controller]'" in pip
    assert link.startswith("ln -s ")
    pip = pip.replace("'.[controller]'", f"--no-index --find-links={WHEELS} 'kvcached[controller]'")
    installed.run(f"{venv} && {pip} && {link}", within=120)
    return installed


@pytest.fixture
def controlled(node: Node, with_controller: Node) -> Node:
    """And there is an engine."""
    del with_controller
    node.run(
        f"rm -f {HOLD}; systemd-run --quiet --collect --unit=engine-vllm python3 {OWN}/engine.py 8001 {HOLD}"
    )
    node.eventually("curl -s --fail http://127.0.0.1:8001/health")
    return node
