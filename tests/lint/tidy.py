#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs clang-tidy over the sources of a build, as .clang-tidy says, several at a time.

A file that was found clean is not looked at again until it, a header that it includes, its compile command,
the configuration or clang-tidy itself changes; the stamps lie in the build folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Debian 12's. Each release adds checks and opinions.
RELEASE = 14

# The compile commands are gcc's; what clang doesn't know of them is none of the code's fault.
EXTRA_ARGUMENTS = [
    "--quiet",
    "--extra-arg=-Wno-unknown-warning-option",
    "--extra-arg=-Wno-ignored-optimization-argument",
]


@dataclass
class Unit:
    """One compile command."""

    source: Path
    command: str
    headers: list[Path]


def read_dependencies(build: Path) -> dict[str, list[Path]]:
    """Object file -> the tree's files that went into it, as ninja has noted them."""
    log = subprocess.run(["ninja", "-C", build, "-t", "deps"], capture_output=True, text=True, check=True)
    dependencies: dict[str, list[Path]] = {}
    current: list[Path] = []
    for line in log.stdout.splitlines():
        if line.startswith(" "):
            path = (build / line.strip()).resolve()
            if path.is_relative_to(ROOT):
                current.append(path)
        elif ": #deps" in line:
            current = dependencies.setdefault(line.split(":", 1)[0], [])
    return dependencies


def read_units(build: Path) -> list[Unit]:
    """The compile commands of the tree's own C files; not those of generated ones."""
    dependencies = read_dependencies(build)
    units: dict[Path, Unit] = {}
    for entry in json.loads((build / "compile_commands.json").read_text()):
        source = (Path(entry["directory"]) / entry["file"]).resolve()
        if source.suffix == ".c" and source.is_relative_to(ROOT) and not source.is_relative_to(build):
            units.setdefault(source, Unit(source, entry["command"], dependencies.get(entry["output"], [])))
    return [units[source] for source in sorted(units)]


def fingerprint(unit: Unit, common: bytes) -> str:
    state = hashlib.sha256(common)
    state.update(unit.command.encode())
    for path in sorted({unit.source, *unit.headers}):
        state.update(str(path).encode())
        state.update(path.read_bytes() if path.exists() else b"")
    return state.hexdigest()


def check(unit: Unit, build: Path) -> tuple[bool, str]:
    command = ["clang-tidy", *EXTRA_ARGUMENTS, "-p", str(build), str(unit.source)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    # Without the paths by which the analyzer gets there, which can be pages long.
    findings = [line for line in run.stdout.splitlines() if ": error: " in line or ": warning: " in line]
    return run.returncode == 0, "\n".join(findings)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--build", type=Path, required=True, help="a configured and compiled build folder")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    build: Path = arguments.build.resolve()

    version = subprocess.run(["clang-tidy", "--version"], capture_output=True, text=True, check=True).stdout
    if f"version {RELEASE}." not in version:
        print(f".clang-tidy is written for release {RELEASE}, and this is another: not run\n{version}")
        return 0
    common = version.encode() + (ROOT / ".clang-tidy").read_bytes()
    stamps = build / "tidy-stamps"
    stamps.mkdir(exist_ok=True)
    units = {fingerprint(unit, common): unit for unit in read_units(build)}
    stale = {stamp: unit for stamp, unit in units.items() if not (stamps / stamp).exists()}
    for old in stamps.iterdir():
        if old.name not in units:
            old.unlink()

    failed = 0
    with ThreadPoolExecutor(arguments.jobs) as pool:
        results = pool.map(lambda unit: check(unit, build), stale.values())
        for (stamp, unit), (clean, output) in zip(stale.items(), results, strict=True):
            if clean:
                (stamps / stamp).touch()
                continue
            failed += 1
            print(f"{unit.source.relative_to(ROOT)}:\n{output}", flush=True)
    if failed:
        print(f"clang-tidy -p {build.name} FILE shows how it comes to think so")
    print(f"clang-tidy: {len(units)} files, {len(stale)} looked at, {failed} with findings")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
