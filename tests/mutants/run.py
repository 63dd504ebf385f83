#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Shows that the tests notice what they are there to notice: see README.md beside this file.

The copy of the tree and its build are kept in build-mutants, so that each mutant compiles only what it
changes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

HERE = Path(__file__).resolve().parent
HEADER = re.compile(r"^(Breaks|Caught-by): (.+)$")
TEST_LIMIT_S = 300
# Not "git apply": inside of another repository's folder it takes that one's root for the start of the paths.
PATCH_OPTIONS = ["-p1", "--batch", "--forward", "--fuzz=0", "--no-backup-if-mismatch", "--reject-file=-"]


class Outcome(Enum):
    CAUGHT = "caught"
    NOT_CAUGHT = "NOT CAUGHT"
    DOES_NOT_APPLY = "patch does not apply"
    DOES_NOT_BUILD = "does not build"


class MutantError(Exception):
    """A patch, or the tree that it is for, is not as it should be."""


@dataclass(frozen=True)
class Test:
    """One thing to run: a meson test (with cases of it), or a pytest node."""

    runner: str
    name: str
    cases: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join((self.runner, self.name, *self.cases))


@dataclass(frozen=True)
class Mutant:
    path: Path
    breaks: str
    tests: tuple[Test, ...]

    @property
    def name(self) -> str:
        return self.path.stem


def parse_test(text: str) -> Test:
    match text.split():
        case ["meson", name, *cases]:
            return Test("meson", name, tuple(cases))
        case ["pytest", node]:
            return Test("pytest", node)
    raise MutantError(f'"Caught-by: {text}" is neither "meson NAME [CASE…]" nor "pytest NODE"')


def parse_mutant(path: Path) -> Mutant:
    breaks: list[str] = []
    tests: list[Test] = []
    for line in path.read_text().splitlines():
        if line.startswith(("diff ", "--- ")):
            break
        if match := HEADER.match(line):
            if match[1] == "Breaks":
                breaks.append(match[2])
            else:
                tests.append(parse_test(match[2]))
    if len(breaks) != 1 or not tests:
        raise MutantError(f"{path}: the header needs one Breaks: line and at least one Caught-by: line")
    return Mutant(path, breaks[0], tuple(tests))


def choose_mutants(folder: Path, names: list[str]) -> list[Mutant]:
    paths = [folder / f"{name}.patch" for name in names] or sorted(folder.glob("*.patch"))
    for path in paths:
        if not path.exists():
            raise MutantError(f"there is no mutant {path.stem} in {folder}")
    return [parse_mutant(path) for path in paths]


class Copy:
    """A copy of the tree that may be broken."""

    def __init__(self, root: Path, work: Path, jobs: int) -> None:
        self.root = root
        self.source = work / "source"
        self.build = work / "build"
        self.log = work / "log.txt"
        self.jobs = jobs

    def update(self) -> None:
        """Makes the copy equal to the tree. What is equal already keeps its time, for the build's sake."""
        self.source.mkdir(parents=True, exist_ok=True)
        git = ["git", "-C", str(self.root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listing = subprocess.run(git, capture_output=True, check=True).stdout.decode()
        names = {name for name in listing.split("\0") if name and (self.root / name).is_file()}
        for path in [p for p in self.source.rglob("*") if p.is_file()]:
            if str(path.relative_to(self.source)) not in names and "__pycache__" not in path.parts:
                path.unlink()
        for name in names:
            original, copy = self.root / name, self.source / name
            if not copy.exists() or copy.read_bytes() != original.read_bytes():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(original, copy)

    def run(self, command: list[str], limit_s: int = TEST_LIMIT_S) -> bool:
        """Whether the command succeeded; its output goes to the log."""
        environment = os.environ | {"KVCACHED_BUILD_DIR": str(self.build), "PYTHONDONTWRITEBYTECODE": "1"}
        with self.log.open("a") as log:
            print("+", *command, file=log, flush=True)
            process = subprocess.Popen(
                command,
                cwd=self.source,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )
            try:
                return process.wait(limit_s) == 0
            except subprocess.TimeoutExpired:
                return False
            finally:
                # Broken code may hang, or leave processes that a sound one would have ended.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def configure(self) -> bool:
        """What is built for a few tests isn't worth much optimising."""
        if (self.build / "build.ninja").exists():
            return True
        return self.run(["meson", "setup", "-Doptimization=1", str(self.build)])

    def compile(self) -> bool:
        ninja = ["ninja", "-C", str(self.build), "-j", str(self.jobs)]
        return self.configure() and self.run(ninja, limit_s=1800)

    def apply(self, patch: Path) -> bool:
        return self.run(["patch", *PATCH_OPTIONS, f"--input={patch}"])

    def package(self) -> Path:
        """Where the copy's Python package is found: what was built of it is put beside the rest."""
        folder = self.source / "python"
        extension = folder / "kvcached" / "_native.abi3.so"
        if not extension.is_symlink():
            extension.symlink_to(self.build / "python" / extension.name)
        return folder

    def passes(self, test: Test) -> bool:
        if test.runner == "pytest":
            command = [sys.executable, "-m", "pytest", "-q", "-x", test.name]
            if test.name.startswith("tests/python/"):
                command = ["env", f"PYTHONPATH={self.package()}", *command]
            return self.run(command)
        command = ["meson", "test", "-C", str(self.build), "--no-rebuild", "--print-errorlogs", test.name]
        if test.cases:
            command.append(f"--test-args={' '.join(test.cases)}")
        return self.run(command)

    def judge(self, mutant: Mutant) -> tuple[Outcome, list[Test]]:
        """The outcome, and the tests that noticed nothing."""
        try:
            if not self.apply(mutant.path):
                return Outcome.DOES_NOT_APPLY, []
            if not self.compile():
                return Outcome.DOES_NOT_BUILD, []
            blind = [test for test in mutant.tests if self.passes(test)]
            return (Outcome.NOT_CAUGHT if blind else Outcome.CAUGHT), blind
        finally:
            self.update()


def check_baseline(copy: Copy, mutants: Iterable[Mutant]) -> None:
    """Without a mutant each test must exist and pass."""
    if not copy.compile():
        raise MutantError(f"the tree doesn't build; see {copy.log}")
    known = subprocess.run(
        ["meson", "test", "-C", copy.build, "--list"], capture_output=True, text=True, check=True
    ).stdout
    names = {line.rsplit(" / ", 1)[-1].strip() for line in known.splitlines()}
    for test in dict.fromkeys(test for mutant in mutants for test in mutant.tests):
        if test.runner == "meson" and test.name not in names:
            raise MutantError(f"meson knows no test {test.name}")
        if not copy.passes(test):
            raise MutantError(f"{test} fails without any mutant; see {copy.log}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", help="which mutants; all when none is named")
    parser.add_argument("--root", type=Path, default=HERE.parents[1], help="the tree to break a copy of")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    copy = Copy(root, root / "build-mutants", arguments.jobs)
    try:
        mutants = choose_mutants(root / "tests/mutants", arguments.names)
        copy.update()
        copy.log.unlink(missing_ok=True)
        print(f"building a copy of the tree, running the tests of {len(mutants)} mutants on it", flush=True)
        check_baseline(copy, mutants)
    except MutantError as error:
        print(f"mutants: {error}", file=sys.stderr)
        return 1

    missed = 0
    for mutant in mutants:
        started = time.monotonic()
        outcome, blind = copy.judge(mutant)
        print(f"{mutant.name}: {outcome.value} ({time.monotonic() - started:.0f} s)", flush=True)
        if outcome is not Outcome.CAUGHT:
            missed += 1
            print(f"    breaks: {mutant.breaks}")
        for test in blind:
            print(f"    noticed nothing: {test}", flush=True)
    print(f"{len(mutants) - missed} caught, {missed} not")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
