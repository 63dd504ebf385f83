# SPDX-License-Identifier: Apache-2.0
"""The library exports what libclient/kvclient.map lists, no more and no less; its header suits C and C++."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAP = ROOT / "libclient/kvclient.map"
HEADER = ROOT / "libclient/include/kvclient.h"
FIRST_RELEASE = Path(__file__).parent / "first-release"


def read_first_release(text: str) -> str | None:
    """The commit, or None for "none yet"."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    if lines == ["none yet"]:
        return None
    if len(lines) != 1 or not re.fullmatch(r"[0-9a-f]{40}", lines[0]):
        raise ValueError('first-release says neither "none yet" nor one commit in 40 digits')
    return lines[0]


def read_map(text: str) -> set[str]:
    """Symbols below "global:", each as symbol@@VERSION."""
    symbols = set()
    for node in re.finditer(
        r"(\w+)\s*\{(.*?)\}", re.sub(r"/\*.*?\*/|#[^\n]*", "", text, flags=re.DOTALL), re.DOTALL
    ):
        exported = re.split(r"\blocal\s*:", node[2])[0]
        symbols |= {f"{name}@@{node[1]}" for name in re.findall(r"(\w+)\s*;", exported)}
    return symbols


def read_exports(library: Path) -> set[str]:
    listing = subprocess.run(
        ["nm", "--dynamic", "--defined-only", "--with-symbol-versions", library],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    # "address type symbol@@VERSION"; the version nodes themselves are absolute symbols.
    return {symbol for _, kind, symbol in map(str.split, listing.splitlines()) if kind != "A"}


def read_declarations(text: str) -> set[str]:
    return set(re.findall(r"^KVC_API\b[^;(]*?\b(kvc_\w+)\(", text, flags=re.MULTILINE))


def read_errors(text: str) -> dict[str, int]:
    """Those that say in a comment what they mean."""
    enum = re.search(r"enum kvc_error \{(.*?)\n\};", text, re.DOTALL)
    entries = re.findall(r"(KVC_E_\w+) = (-\d+),\s+/\* \w.* \*/$", enum[1] if enum else "", re.MULTILINE)
    return {name: int(number) for name, number in entries}


def read_released(path: str) -> str:
    """A file of the first release; "" before there is one."""
    commit = read_first_release(FIRST_RELEASE.read_text())
    if commit is None:
        return ""
    show = ["git", "-C", str(ROOT), "show", f"{commit}:{path}"]
    return subprocess.run(show, capture_output=True, text=True, check=True).stdout


def compile_sample(folder: Path, compiler: list[str], suffix: str) -> subprocess.CompletedProcess[str]:
    """Compiles a program that takes the address of every function; the header must not warn."""
    uses = "\n".join(f"    use((void *)&{name});" for name in sorted(read_declarations(HEADER.read_text())))
    code = (
        "#include <kvclient.h>\n#include <kvclient.h>\n"
        "static void use(void *p) { (void)p; }\n"
        "int main(void)\n{\n    struct kvc_options o = {};\n    o.size = sizeof(o);\n"
        f"{uses}\n    return (int)o.size;\n}}\n"
    )
    source = folder / f"sample{suffix}"
    source.write_text(code)
    command = [*compiler, "-Wall", "-Wextra", "-Werror", "-I", str(HEADER.parent), "-c", str(source)]
    return subprocess.run([*command, "-o", str(folder / "o")], capture_output=True, text=True, check=False)


def test_first_release_parses() -> None:
    read_first_release(FIRST_RELEASE.read_text())


@pytest.mark.parametrize("text", ["", "# only a comment\n", "soon\n", "none yet\nnone yet\n", "0123abcd\n"])
def test_first_release_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="first-release"):
        read_first_release(text)


def test_released_symbols_are_still_there() -> None:
    assert read_map(read_released("libclient/kvclient.map")) - read_map(MAP.read_text()) == set()


def test_released_errors_keep_their_numbers() -> None:
    released = read_errors(read_released("libclient/include/kvclient.h"))
    assert released.items() <= read_errors(HEADER.read_text()).items()


def test_every_error_is_explained(build_dir: Path) -> None:
    """In the header, and by a sentence of its own. Numbers are counted downwards, and none is left out."""
    library = ctypes.CDLL(str(build_dir / "libclient/libkvclient.so.0"))
    library.kvc_strerror.restype = ctypes.c_char_p
    errors = read_errors(HEADER.read_text())
    assert list(errors.values()) == [-number for number in range(1, len(errors) + 1)]
    assert len(errors) == len(set(re.findall(r"KVC_E_\w+(?= = )", HEADER.read_text())))
    sentences = {library.kvc_strerror(number) for number in [0, *errors.values()]}
    assert library.kvc_strerror(-len(errors) - 1) not in sentences
    assert len(sentences) == len(errors) + 1


def test_map_and_library_agree(build_dir: Path) -> None:
    assert read_exports(build_dir / "libclient/libkvclient.so.0") == read_map(MAP.read_text())


def test_header_and_map_agree() -> None:
    assert {symbol.split("@")[0] for symbol in read_map(MAP.read_text())} == read_declarations(
        HEADER.read_text()
    )


def test_map_is_read_right() -> None:
    text = "V_0 { /* a; */\n global:\n  f; g; # h;\n local: *; };\nV_1 { global: h; } V_0;\n"
    assert read_map(text) == {"f@@V_0", "g@@V_0", "h@@V_1"}


def test_exports_are_read_right(tmp_path: Path) -> None:
    (tmp_path / "v.map").write_text("V_0 { global: f; local: *; };\n")
    (tmp_path / "s.c").write_text("void f(void) {}\nvoid g(void) {}\n")
    library = tmp_path / "s.so"
    script = f"-Wl,--version-script={tmp_path}/v.map"
    subprocess.run(["gcc", "-shared", "-fPIC", script, tmp_path / "s.c", "-o", library], check=True)
    assert read_exports(library) == {"f@@V_0"}


@pytest.mark.parametrize(
    ("compiler", "suffix"),
    [
        (["gcc", "-std=c99"], ".c"),
        (["g++", "-std=c++11", "-pedantic"], ".cc"),
        (["g++", "-std=c++20", "-pedantic"], ".cc"),
    ],
    ids=["C99", "C++11", "C++20"],
)
def test_header_compiles(tmp_path: Path, compiler: list[str], suffix: str) -> None:
    done = compile_sample(tmp_path, compiler, suffix)
    assert done.returncode == 0, done.stderr
