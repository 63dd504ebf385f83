# SPDX-License-Identifier: Apache-2.0
"""What the checks of this folder share: which files the tree has, and which modules are pure."""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

# Pure modules: functions of their arguments, without system call, clock, socket, log, mutable global, libuv
# or CUDA. Whoever adds a pure module adds it here.
PURE_MODULES = [
    "proto/base/parse",
    "proto/wire/frame",
    "proto/wire/codec",
    "proto/wire/shortcut",
    "daemon/admission",
    "daemon/audit",
    "daemon/broker",
    "daemon/config",
    "daemon/config_keys",
    "daemon/config_lookup",
    "daemon/events",
    "daemon/gates",
    "daemon/explain",
    "daemon/flight",
    "daemon/history",
    "daemon/http_address",
    "daemon/http_headers",
    "daemon/leases",
    "daemon/ledger",
    "daemon/lending",
    "daemon/members",
    "daemon/metrics_text",
    "daemon/notices",
    "daemon/policy",
    "daemon/pool",
    "daemon/queue",
    "daemon/reclaim",
    "daemon/reservations",
    "daemon/settings",
    "daemon/snapshot",
    "daemon/state_json",
    "daemon/supply",
    "daemon/text_buffer",
    "daemon/words",
    "libclient/bit_tree",
    "libclient/block_alloc",
    "libclient/block_alloc_census",
    "libclient/block_alloc_pages",
    "libclient/block_geometry",
    "libclient/group_state",
    "libclient/layout",
    "libclient/page_cache",
    "libclient/prealloc",
    "libclient/shape",
    "tests/replay/engine",
    "tests/replay/layout",
    "tests/replay/stats",
    "tests/replay/virtual",
]

# The same of Python: without files, sockets, clock, randomness or event loop.
PURE_PYTHON = [
    "python/kvcached/controller/actions.py",
    "python/kvcached/controller/balance.py",
    "python/kvcached/controller/config.py",
    "python/kvcached/controller/document.py",
    "python/kvcached/controller/errors.py",
    "python/kvcached/controller/launch/restarts.py",
    "python/kvcached/controller/lifecycle.py",
    "python/kvcached/controller/places.py",
    "python/kvcached/controller/traffic.py",
    "python/kvcached/controller/values.py",
    "python/kvcached/controller/victims.py",
]


def source_files(root: Path) -> list[str]:
    """Paths relative to root: what git tracks or would track; every file where there is no repository, as in
    a release archive."""
    git = ["git", "-C", str(root), "ls-files", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(git, capture_output=True, text=True, check=False)
    if listing.returncode == 0:
        names = set(listing.stdout.splitlines())
    else:
        names = {str(p.relative_to(root)) for p in root.rglob("*")}
    return sorted(n for n in names if (root / n).is_file())


def parse_root(description: str | None) -> Path:
    """The one option that each check has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[2], help="the tree to check")
    arguments = parser.parse_args()
    root: Path = arguments.root
    return root.resolve()


def report(complaints: list[str]) -> int:
    """Prints the complaints; returns the exit status."""
    for complaint in complaints:
        print(complaint)
    return 1 if complaints else 0
