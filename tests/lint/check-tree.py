#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What every file of the tree promises: a licence line, an essay at the head of each module, lines that fit,
and no word of the machine that it was written on."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from tree import parse_root, report, source_files

SPDX = "SPDX-License-Identifier: Apache-2.0"
LICENSED = re.compile(
    r".*\.(c|h|cc|py|sh|proto|def|map|toml)"
    r"|.*\.(service|socket|target)(\.in)?|systemd/.*\.conf"
    r"|(.*/)?meson\.build|meson_options\.txt|dev|\.ci/run|kvctl/completions/.*"
)
ESSAY = re.compile(r"/\* SPDX[^\n]*\*/\n\s*/\*")
ESSAY_FOLDERS = (
    "proto/",
    "daemon/",
    "libclient/",
    "kvctl/",
    "tests/cuemu/",
    "tests/harness/",
    "tests/replay/",
)

# clang-format leaves comments as they are, since it takes a table in one for a paragraph.
COLUMNS = 110

MACHINE = re.compile(r"(?<![\w.}*])/(?:home|Users|work|root|farm)/")
BESIDE_CLONE = re.compile(r"[.][.]/shared\b")
MAY_LOOK_BESIDE = {".ci/run"}


def check_file(root: Path, name: str) -> list[str]:
    data = (root / name).read_bytes()
    if b"\0" in data:
        return []
    text = data.decode(errors="replace")
    complaints = []
    if LICENSED.fullmatch(name) and SPDX not in "\n".join(text.splitlines()[:3]):
        complaints.append(f"{name}:1: no line says {SPDX}")
    if name.endswith(".c") and name.startswith(ESSAY_FOLDERS) and not ESSAY.match(text):
        complaints.append(f"{name}:1: the file doesn't open with what it owns, promises and leaves to others")
    for number, line in enumerate(text.splitlines(), start=1):
        if name.endswith((".c", ".h")) and len(line) > COLUMNS:
            complaints.append(f"{name}:{number}: {len(line)} columns")
        if MACHINE.search(line):
            complaints.append(f"{name}:{number}: a path of somebody's machine")
        if BESIDE_CLONE.search(line) and name not in MAY_LOOK_BESIDE:
            complaints.append(f"{name}:{number}: looks outside the clone")
    return complaints


def main() -> int:
    root = parse_root(__doc__)
    return report([c for name in source_files(root) for c in check_file(root, name)])


if __name__ == "__main__":
    sys.exit(main())
