# SPDX-License-Identifier: Apache-2.0
"""What tests of the manual have: the product as it is installed, and a place to follow a page in."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.broker import Site

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Stage:
    """An installation in a folder: `root` is where / would be."""

    root: Path

    def find(self, name: str) -> Path:
        """The one file that ends so."""
        found = [path for path in self.root.rglob(Path(name).name) if str(path).endswith(name)]
        assert len(found) == 1, f"{name}: {found}"
        return found[0]

    def environment(self) -> dict[str, str]:
        """What makes it as if it were installed."""
        library = self.find("/libkvclient.so.0")
        return {
            "LD_LIBRARY_PATH": str(library.parent),
            "KVCACHED_EMULATOR_DIR": str(self.find("kvcached/cuemu/libcuda.so.1").parent),
            "PKG_CONFIG_PATH": str(self.find("/kvclient.pc").parent),
            "PKG_CONFIG_SYSROOT_DIR": str(self.root),
        }


@pytest.fixture(scope="session")
def stage(build_dir: Path) -> Iterator[Stage]:
    folder = Path(tempfile.mkdtemp(prefix="kvc-stage-", dir="/tmp"))
    command = ["meson", "install", "-C", str(build_dir), "--destdir", str(folder), "--no-rebuild", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    yield Stage(folder)
    shutil.rmtree(folder)


@pytest.fixture
def desk(stage: Stage, build_dir: Path, tmp_run: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder with the source tree's docs in it, and a shell's environment: the programs are on the PATH,
    and what they make by default lies in the folder."""
    memory = Path(tempfile.mkdtemp(prefix="kvcached-test-", dir="/dev/shm"))
    site = Site(build=build_dir, run=tmp_run, emulate_dir=memory / "devices")
    (tmp_run / "docs").symlink_to(ROOT / "docs")
    environment = site.environment(
        HOME=str(tmp_run),
        RUNTIME_DIRECTORY=str(tmp_run / "run"),
        STATE_DIRECTORY=str(tmp_run / "state"),
        **stage.environment(),
    )
    environment["PATH"] = f"{stage.find('bin/kvcachedd').parent}:{environment['PATH']}"
    yield tmp_run, environment
    shutil.rmtree(memory)
