# SPDX-License-Identifier: Apache-2.0
"""What pure modules really call: their object files need nothing but each other and a short list of libc
functions, and hold no variable that could be written."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tree import PURE_MODULES

# Functions of their arguments; allocation is the one effect that a pure module may have.
ALLOWED = {
    *(
        "malloc",
        "calloc",
        "realloc",
        "reallocarray",
        "free",
        "strdup",
        "strndup",
        "abort",
        "qsort",
        "bsearch",
    ),
    *("memcpy", "memmove", "memset", "memcmp", "memchr", "strlen", "strnlen", "strcmp", "strncmp", "strchr"),
    *("strrchr", "strstr", "strcspn", "strspn", "strcasecmp", "strncasecmp", "strpbrk", "stpcpy", "strcpy"),
    *(
        "snprintf",
        "vsnprintf",
        "asprintf",
        "vasprintf",
        "fnmatch",
        "inet_ntop",
        "inet_pton",
        "ini_parse_stream",
    ),
    *("floor", "ceil", "log2", "lround", "llround", "fmod", "exp", "pow"),
    *("__assert_fail", "__stack_chk_fail", "__ctype_b_loc", "__isoc99_sscanf", "__errno_location"),
    *("__divti3", "__modti3", "__multi3", "__udivti3", "__umodti3"),
    "_GLOBAL_OFFSET_TABLE_",
}


def symbols(objects: list[Path]) -> tuple[set[str], set[str], set[str]]:
    """(undefined, defined, writable) symbols of object files."""
    listing = subprocess.run(["nm", "--format=posix", *objects], capture_output=True, text=True, check=True)
    undefined: set[str] = set()
    defined: set[str] = set()
    writable: set[str] = set()
    for line in listing.stdout.splitlines():
        name, _, rest = line.partition(" ")
        kind = rest[:1]
        if not kind:
            continue
        (undefined if kind in "Uw" else defined).add(name)
        # Constant tables of pointers are relocated, hence "d" too: see read_only_after_relocation().
        if kind in "bBdDC":
            writable.add(name)
    return undefined, defined, writable


def read_only_after_relocation(objects: list[Path]) -> set[str]:
    listing = subprocess.run(["objdump", "--syms", *objects], capture_output=True, text=True, check=True)
    return {line.split()[-1] for line in listing.stdout.splitlines() if ".data.rel.ro" in line}


def impurities(objects: list[Path]) -> list[str]:
    """What keeps these objects, taken together, from being pure."""
    undefined, defined, writable = symbols(objects)
    calls = {name for name in undefined - defined if plain_name(name) not in ALLOWED}
    calls = {name for name in calls if not name.startswith(("protobuf_c_", "kvcached__", "cJSON_"))}
    writable -= read_only_after_relocation(objects)
    return sorted(f"calls {name}" for name in calls) + sorted(f"can write {name}" for name in writable)


def plain_name(name: str) -> str:
    """__memcpy_chk, which a fortified build calls, is memcpy."""
    if name.startswith("__") and name.endswith("_chk"):
        return name[2:-4]
    return name


def find_objects(build_dir: Path) -> list[Path]:
    sources = {f"{module}.c" for module in PURE_MODULES}
    root = Path(__file__).parents[2]
    found = {}
    for entry in json.loads((build_dir / "compile_commands.json").read_text()):
        source = (Path(entry["directory"]) / entry["file"]).resolve()
        if source.is_relative_to(root) and str(source.relative_to(root)) in sources:
            found[source] = build_dir / entry["output"]
    return sorted(found.values())


def test_pure_modules_are_pure(build_dir: Path) -> None:
    objects = find_objects(build_dir)
    assert objects, "the build folder has none of the pure modules"
    assert impurities(objects) == []


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("#include <time.h>\nlong f(void) { return time(0); }", "calls time"),
        ('#include <stdio.h>\nvoid f(void) { puts("x"); }', "calls puts"),
        ('#include <stdlib.h>\nchar *f(void) { return getenv("X"); }', "calls getenv"),
        ("static int n;\nint f(void) { return n++; }", "can write n"),
        ("int g = 1;\nint f(void) { return g; }", "can write g"),
    ],
)
def test_impurity_is_found(tmp_path: Path, code: str, complaint: str) -> None:
    assert impurities([compile_object(tmp_path, code)]) == [complaint]


def test_purity_is_believed(tmp_path: Path) -> None:
    code = (
        "#include <string.h>\n#include <stdlib.h>\n"
        'static const char *const names[] = {"a", "b"};\n'
        "char *f(int i) { char *p = malloc(9); if (p) memcpy(p, names[i], 2); return p; }"
    )
    assert impurities([compile_object(tmp_path, code)]) == []


def compile_object(folder: Path, code: str) -> Path:
    source = folder / "sample.c"
    source.write_text(code + "\n")
    output = folder / "sample.o"
    subprocess.run(["gcc", "-O0", "-fPIC", "-c", source, "-o", output], check=True)
    return output
