# SPDX-License-Identifier: Apache-2.0
"""The product as it is installed, in a folder of a test's own, and a shell's surroundings in which it is
there."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.broker import Site

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Stage:
    """An installation in a folder: `root` is where / would be."""

    root: Path

    def find(self, name: str) -> Path:
        """The one file whose path ends so."""
        found = [path for path in self.root.rglob(Path(name).name) if str(path).endswith(name)]
        assert len(found) == 1, f"{name}: {found}"
        return found[0]

    def environment(self) -> dict[str, str]:
        """What makes it as if it were installed."""
        programs = self.find("bin/kvcachedd").parent
        return {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "LD_LIBRARY_PATH": str(self.find("/libkvclient.so.0").parent),
            "KVCACHED_EMULATOR_DIR": str(self.find("kvcached/cuemu/libcuda.so.1").parent),
            "PKG_CONFIG_PATH": str(self.find("/kvclient.pc").parent),
            "PKG_CONFIG_SYSROOT_DIR": str(self.root),
        }


@contextmanager
def installed(build: Path) -> Iterator[Stage]:
    """What `meson install` makes of a build, as long as it is needed."""
    folder = Path(tempfile.mkdtemp(prefix="kvc-stage-", dir="/tmp"))
    command = ["meson", "install", "-C", str(build), "--destdir", str(folder), "--no-rebuild", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        assert done.returncode == 0, done.stdout + done.stderr
        yield Stage(folder)
    finally:
        shutil.rmtree(folder)


def make_controller(folder: Path) -> Path:
    """kvcached-controller, as pip would install it, from the source tree and for this Python."""
    folder.mkdir(exist_ok=True)
    program = folder / "kvcached-controller"
    python, tree = shlex.quote(sys.executable), shlex.quote(str(ROOT / "python"))
    program.write_text(f'#!/bin/sh\nPYTHONPATH={tree} exec {python} -Bm kvcached.controller.main "$@"\n')
    program.chmod(0o755)
    return program


@dataclass
class Desk:
    """Where somebody sits who follows a page: in `folder`, which has the source tree's docs; what programs
    make by default lies there, too."""

    folder: Path
    environment: dict[str, str]


@contextmanager
def desk(stage: Stage, build: Path, folder: Path) -> Iterator[Desk]:
    memory = Path(tempfile.mkdtemp(prefix="kvcached-test-", dir="/dev/shm"))
    site = Site(build=build, run=folder, emulate_dir=memory / "devices")
    (folder / "docs").symlink_to(ROOT / "docs")
    places = {"RUNTIME_DIRECTORY": str(folder / "run"), "STATE_DIRECTORY": str(folder / "state")}
    programs = stage.environment()
    programs["PATH"] = f"{make_controller(folder / 'programs').parent}:{programs['PATH']}"
    try:
        yield Desk(folder, {**site.environment(HOME=str(folder)), **programs, **places})
    finally:
        shutil.rmtree(memory)
