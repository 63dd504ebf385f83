#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Who may include whom.

base <- {wire, cuda} <- {daemon, libclient}; kvctl uses base and wire; daemon and libclient never meet; the
Python extension knows the library's public header alone.
libclient stays free of the daemon's libraries, and nobody needs the CUDA toolkit to build. A pure module
includes, directly or through headers, only what cannot reach the outside; what it then calls is checked on
its object file (test_pure.py). A pure module of Python imports nothing else either.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

from tree import PURE_MODULES, PURE_PYTHON, parse_root, report, source_files

# Layer of a folder -> layers it may include.
MAY_INCLUDE = {
    "base": {"base"},
    "wire": {"base", "wire"},
    "cuda": {"base", "cuda"},
    "daemon": {"base", "wire", "cuda", "daemon"},
    "libclient": {"base", "wire", "cuda", "libclient", "public"},
    "public": {"public"},
    "kvctl": {"base", "wire", "kvctl"},
    "python": {"python", "public"},
}

# Headers of other projects -> layers, or single files, that may include them.
LIBRARIES = {
    r"uv\.h": {"daemon"},
    r"(cjson/)?cJSON\.h": {"daemon", "kvctl"},
    r"ini\.h": {"daemon"},
    r"microhttpd\.h": {"daemon"},
    r"systemd/.*": {"daemon"},
    r"(protobuf-c/)?protobuf-c\.h": {"wire"},
    r"(n?curses|ncursesw/.*)\.h": {"kvctl"},
    # In place of our own declarations, for who asks for it: never in a build of the product.
    r"cuda.*\.h": {"proto/cuda/api.h"},
    r"nvml\.h": {"proto/cuda/nvml-api.h"},
    r"Python\.h": {"python"},
}

# Made by the build from the schema.
GENERATED = {"kvcached.pb-c.h": "wire"}

PURE_HEADERS = {
    *("assert.h", "ctype.h", "errno.h", "float.h", "fnmatch.h", "inttypes.h", "limits.h", "math.h"),
    *("stdalign.h", "stdarg.h", "stdatomic.h", "stdbool.h", "stddef.h", "stdint.h", "stdio.h", "stdlib.h"),
    *(
        "protobuf-c/protobuf-c.h",
        "string.h",
        "strings.h",
        "sys/types.h",
        "arpa/inet.h",
        "cjson/cJSON.h",
        "ini.h",
    ),
}

# Its close() is for the owners of descriptors; a pure module takes the rest.
PURE_EXCEPT = {"proto/base/cleanup.h"}

PURE_IMPORTS = {
    *("__future__", "collections", "collections.abc", "dataclasses", "enum", "ipaddress", "json", "math"),
    *("re", "shlex", "typing", "urllib.parse", "yaml"),
}
IMPURE_CALLS = {"__import__", "breakpoint", "eval", "exec", "input", "open", "print"}

INCLUDE = re.compile(r'^\s*#\s*include\s*(?:"([^"]+)"|<([^>]+)>)')


def layer_of(path: str) -> str | None:
    """Layer that a file belongs to; None for tests and other things that may include what they like."""
    folder = path.removeprefix("proto/").split("/", 1)[0]
    if path == "libclient/include/kvclient.h":
        return "public"
    return folder if folder in MAY_INCLUDE else None


class Tree:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.files = {f for f in source_files(root) if f.endswith((".c", ".h", ".def"))}

    def includes(self, path: str) -> list[tuple[int, str, bool]]:
        """(line, name, whether it is in angle brackets) of each #include."""
        found = []
        lines = (self.root / path).read_text(errors="replace").splitlines()
        for number, line in enumerate(lines, start=1):
            if match := INCLUDE.match(line):
                found.append((number, match[1] or match[2], match[2] is not None))
        return found

    def resolve(self, includer: str, name: str) -> str | None:
        """The tree's file that a quoted include means, searched where the build searches."""
        folders = ("proto", "libclient/include", "daemon", "libclient", "kvctl")
        for folder in (str(Path(includer).parent), *folders):
            path = f"{folder}/{name}"
            if path in self.files:
                return path
        return None

    def check_file(self, path: str) -> list[str]:
        layer = layer_of(path)
        if layer is None:
            return []
        complaints = []
        for line, name, angled in self.includes(path):
            target = None if angled else self.resolve(path, name)
            if target is not None or name in GENERATED:
                other = layer_of(target) if target else GENERATED[name]
                if other not in MAY_INCLUDE[layer]:
                    complaints.append(f"{path}:{line}: {layer} must not include {target or name}")
            elif not angled:
                complaints.append(f'{path}:{line}: no file in the tree is meant by "{name}"')
            for pattern, users in LIBRARIES.items():
                if angled and re.fullmatch(pattern, name) and not users & {layer, path}:
                    complaints.append(f"{path}:{line}: {layer} must not include <{name}>")
        return complaints

    def check_pure(self, module: str) -> list[str]:
        """The module's files and every header of ours that they pull in."""
        complaints = []
        todo = [f for f in (f"{module}.c", f"{module}.h") if f in self.files]
        seen = set(todo)
        while todo:
            path = todo.pop()
            for line, name, angled in self.includes(path):
                if angled and name not in PURE_HEADERS:
                    complaints.append(f"{path}:{line}: the pure module {module} must not see <{name}>")
                target = None if angled else self.resolve(path, name)
                if target is not None and target not in seen | PURE_EXCEPT:
                    seen.add(target)
                    todo.append(target)
        return complaints


def check_pure_python(root: Path, path: str) -> list[str]:
    allowed = PURE_IMPORTS | {
        pure.removeprefix("python/").removesuffix(".py").replace("/", ".") for pure in PURE_PYTHON
    }
    complaints = []
    for node in ast.walk(ast.parse((root / path).read_text())):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            wrong = [name for name in imported(node, allowed) if name not in allowed]
            complaints += [f"{path}:{node.lineno}: a pure module must not import {name}" for name in wrong]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_CALLS:
            complaints.append(f"{path}:{node.lineno}: a pure module must not call {node.func.id}()")
    return complaints


def imported(node: ast.Import | ast.ImportFrom, allowed: set[str]) -> list[str]:
    """Modules; of "from package import name" the package, where it is allowed, else what may be a module of
    it."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    module = "." * node.level + (node.module or "")
    return [module] if module in allowed else [f"{module}.{alias.name}" for alias in node.names]


def main() -> int:
    tree = Tree(parse_root(__doc__))
    complaints = [c for path in sorted(tree.files) for c in tree.check_file(path)]
    for module in PURE_MODULES:
        complaints += tree.check_pure(module)
    for path in PURE_PYTHON:
        if (tree.root / path).exists():
            complaints += check_pure_python(tree.root, path)
    return report(complaints)


if __name__ == "__main__":
    sys.exit(main())
