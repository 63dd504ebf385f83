# SPDX-License-Identifier: Apache-2.0
"""Each check of this folder finds what it is for, and is content with a tree that is in order."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ESSAY = "/* SPDX-License-Identifier: Apache-2.0 */\n\n/*\n * What it owns.\n */\n\n"

# What the samples may include.
HEADERS = {
    "proto/base/arith.h": "#include <stdint.h>\n",
    "proto/base/cleanup.h": "#include <unistd.h>\n",
    "proto/wire/frame.h": '#include "base/arith.h"\n',
    "proto/cuda/driver.h": "",
    "proto/wire/link.h": "#include <sys/socket.h>\n",
    "daemon/server.h": "#include <uv.h>\n",
    "daemon/pool.h": '#include "base/cleanup.h"\n',
    "libclient/include/kvclient.h": "",
    "libclient/conn.h": "",
    "kvctl/table.h": "",
}


def run_check(root: Path, name: str, files: dict[str, str]) -> tuple[int, str]:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    command = [sys.executable, str(HERE / name), "--root", str(root)]
    check = subprocess.run(command, capture_output=True, text=True, check=False)
    return check.returncode, check.stdout + check.stderr


@pytest.mark.parametrize(
    ("path", "include", "complaint"),
    [
        ("proto/base/parse.c", '"wire/frame.h"', "base must not include proto/wire/frame.h"),
        ("proto/wire/frame.c", '"cuda/driver.h"', "wire must not include proto/cuda/driver.h"),
        ("proto/cuda/driver.c", '"wire/frame.h"', "cuda must not include proto/wire/frame.h"),
        ("daemon/main.c", '"conn.h"', "daemon must not include libclient/conn.h"),
        ("daemon/main.c", '"kvclient.h"', "daemon must not include libclient/include/kvclient.h"),
        ("libclient/conn.c", '"server.h"', "libclient must not include daemon/server.h"),
        ("libclient/conn.c", '"../daemon/server.h"', 'no file in the tree is meant by "../daemon/server.h"'),
        ("libclient/conn.c", "<uv.h>", "libclient must not include <uv.h>"),
        ("libclient/conn.c", "<cjson/cJSON.h>", "libclient must not include <cjson/cJSON.h>"),
        ("libclient/conn.c", "<systemd/sd-daemon.h>", "libclient must not include <systemd/sd-daemon.h>"),
        ("kvctl/main.c", '"cuda/driver.h"', "kvctl must not include proto/cuda/driver.h"),
        ("kvctl/main.c", '"kvclient.h"', "kvctl must not include libclient/include/kvclient.h"),
        ("python/ext/region.c", '"conn.h"', "python must not include libclient/conn.h"),
        ("python/ext/region.c", '"base/arith.h"', "python must not include proto/base/arith.h"),
        ("libclient/conn.c", "<Python.h>", "libclient must not include <Python.h>"),
        ("daemon/backing.c", "<cuda.h>", "daemon must not include <cuda.h>"),
        ("daemon/pool.c", "<unistd.h>", "the pure module daemon/pool must not see <unistd.h>"),
        ("daemon/pool.c", "<time.h>", "the pure module daemon/pool must not see <time.h>"),
        ("daemon/pool.c", '"server.h"', "the pure module daemon/pool must not see <uv.h>"),
        ("daemon/ledger.c", '"wire/link.h"', "the pure module daemon/ledger must not see <sys/socket.h>"),
    ],
)
def test_directions_refuse(tmp_path: Path, path: str, include: str, complaint: str) -> None:
    status, output = run_check(tmp_path, "check-directions.py", HEADERS | {path: f"#include {include}\n"})
    assert status == 1
    assert complaint in output


def test_directions_allow(tmp_path: Path) -> None:
    right = {
        "daemon/main.c": '#include "server.h"\n#include "cuda/driver.h"\n#include <systemd/sd-daemon.h>\n',
        "daemon/pool.c": '#include "pool.h"\n#include "base/arith.h"\n#include <string.h>\n',
        "libclient/conn.c": '#include "conn.h"\n#include "kvclient.h"\n#include "wire/link.h"\n',
        "kvctl/main.c": '#include "table.h"\n#include "wire/frame.h"\n#include <cjson/cJSON.h>\n',
        "proto/wire/codec.c": '#include "kvcached.pb-c.h"\n',
        "tests/unit/test-pool.c": '#include "pool.h"\n#include "conn.h"\n',
        "python/ext/region.c": '#include "kvclient.h"\n#include <Python.h>\n',
        "python/kvcached/controller/app.py": "import time\n",
        "python/kvcached/controller/config.py": "import yaml\n",
        "python/kvcached/controller/victims.py": (
            "from collections.abc import Iterable\nfrom kvcached.controller import config\n"
            "from kvcached.controller.config import SleepManager\n"
        ),
    }
    assert run_check(tmp_path, "check-directions.py", HEADERS | right) == (0, "")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("import time", "a pure module must not import time"),
        ("import json, os.path", "a pure module must not import os.path"),
        ("from kvcached.controller import app", "a pure module must not import kvcached.controller.app"),
        ("from . import app", "a pure module must not import ..app"),
        ("def f():\n    import asyncio", "2: a pure module must not import asyncio"),
        ("x = open('f')", "a pure module must not call open()"),
    ],
)
def test_pure_python_is_pure(tmp_path: Path, text: str, complaint: str) -> None:
    status, output = run_check(
        tmp_path, "check-directions.py", {"python/kvcached/controller/victims.py": text + "\n"}
    )
    assert status == 1
    assert complaint in output


@pytest.mark.parametrize(
    ("path", "text", "complaint"),
    [
        ("daemon/pool.h", "#pragma once\n", "no line says SPDX"),
        ("tests/x.py", "pass\n", "no line says SPDX"),
        ("daemon/pool.c", "/* SPDX-License-Identifier: Apache-2.0 */\nint x;\n", "doesn't open with"),
        ("daemon/pool.c", ESSAY + "/* " + 108 * "x" + " */\n", "114 columns"),
        ("README.md", "See /ho" + "me/somebody/kvcached\n", "a path of somebody's machine"),
        ("tests/run", "cat ../sha" + "red/data\n", "looks outside the clone"),
    ],
)
def test_tree_refuses(tmp_path: Path, path: str, text: str, complaint: str) -> None:
    status, output = run_check(tmp_path, "check-tree.py", {path: text})
    assert status == 1
    assert complaint in output


def test_tree_allows(tmp_path: Path) -> None:
    right = {
        "daemon/pool.c": ESSAY + "int x;\n",
        "README.md": "Install below /usr/share/homepage\n",
        ".ci/run": "# SPDX-License-Identifier: Apache-2.0\nls ../sha" + "red\n",
    }
    assert run_check(tmp_path, "check-tree.py", right) == (0, "")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("The pool (`daemon/pool.c`).", "there is no daemon/pool.c"),
        ("The pool (`pool.c`).", "there is no pool.c"),
        ("`proto/wire/frame.{h,c}`", "there is no proto/wire/frame.c"),
        ("```\nproto/\n  codec.c   bodies\n```", "there is no codec.c"),
        ("[protocol](PROTOCOL.md)", "the link to PROTOCOL.md leads nowhere"),
    ],
)
def test_docs_refuse(tmp_path: Path, text: str, complaint: str) -> None:
    files = HEADERS | {"docs/ARCHITECTURE.md": text + "\n"}
    status, output = run_check(tmp_path, "check-docs.py", files)
    assert status == 1
    assert complaint in output


def test_docs_allow(tmp_path: Path) -> None:
    text = (
        "`daemon/server.h`, `frame.h`, `proto/base/{arith,cleanup}.h`, `/run/kvcached/gpu0.sock`\n"
        "`libcuda.so.1`\n"
        "[site](https://example.org/x.md), [here](#anchor), [up](../README.md#two-commands)\n"
    )
    files = HEADERS | {"docs/ARCHITECTURE.md": text, "README.md": "\n"}
    assert run_check(tmp_path, "check-docs.py", files) == (0, "")
