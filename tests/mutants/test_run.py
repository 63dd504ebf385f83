# SPDX-License-Identifier: Apache-2.0
"""The mutants themselves are in order, and run.py tells a caught one from one that is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mutants import run

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

SUM_C = "int sum(int a, int b);\n\nint sum(int a, int b)\n{\n    return a + b;\n}\n"
CHECK_C = """\
#include <stdio.h>
#include <string.h>

int sum(int a, int b);

int main(int argc, char **argv)
{
    int zeroes = sum(0, 0) == 0, ones = sum(1, 1) == 2;

    if (argc > 1)
        return strcmp(argv[1], "zeroes") == 0 ? !zeroes : !ones;
    return !(zeroes && ones);
}
"""
MESON = """\
project('sample', 'c')
test('check', executable('check', 'sum.c', 'check.c'))
test('broken', executable('broken', 'broken.c'))
subdir('python')
"""
PYTHON_MESON = "shared_module('_native', '../sum.c', name_prefix: '', name_suffix: 'abi3.so')\n"
PYTHON_TEST = """\
import ctypes, pathlib
import kvcached

def test_sum():
    extension = pathlib.Path(kvcached.__file__).with_name("_native.abi3.so")
    assert ctypes.CDLL(str(extension)).sum(1, 1) == 2
"""
PATCH = """\
Breaks: sums are sums
{header}

--- a/sum.c
+++ b/sum.c
@@ -2,5 +2,5 @@

 int sum(int a, int b)
 {{
-    return a {old} b;
+    return a {new} b;
 }}
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    broken_c = "int main(void) { return 1; }\n"
    files = {
        "sum.c": SUM_C,
        "check.c": CHECK_C,
        "broken.c": broken_c,
        "meson.build": MESON,
        "python/meson.build": PYTHON_MESON,
        "python/kvcached/__init__.py": "",
        "tests/python/test_sum.py": PYTHON_TEST,
    }
    (tmp_path / "tests/mutants").mkdir(parents=True)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / ".gitignore").write_text("/build-mutants/\n")
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    return tmp_path


def add_mutant(tree: Path, name: str, test: str, old: str = "+", new: str = "-") -> None:
    text = PATCH.format(header=f"Caught-by: {test}", old=old, new=new).replace("@@\n\n", "@@\n \n")
    (tree / f"tests/mutants/{name}.patch").write_text(text)


def run_mutants(tree: Path, *names: str) -> tuple[int, str]:
    command = [sys.executable, str(HERE / "run.py"), "--root", str(tree), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_verdicts(tree: Path) -> None:
    add_mutant(tree, "a-caught", "meson check")
    add_mutant(tree, "b-blind", "meson check zeroes")
    add_mutant(tree, "c-stale", "meson check", old="*")
    add_mutant(tree, "d-wrong", "meson check", new="?")
    status, output = run_mutants(tree)
    assert status == 1
    assert "a-caught: caught" in output
    assert "b-blind: NOT CAUGHT" in output
    assert "noticed nothing: meson check zeroes" in output
    assert "c-stale: patch does not apply" in output
    assert "d-wrong: does not build" in output
    assert "1 caught, 3 not" in output
    assert "a + b" in (tree / "sum.c").read_text()

    status, output = run_mutants(tree, "a-caught")
    assert (status, output.splitlines()[-1]) == (0, "1 caught, 0 not")


@pytest.mark.parametrize(
    ("test", "complaint"),
    [
        ("meson broken", "meson broken fails without any mutant"),
        ("meson absent", "meson knows no test absent"),
        ("pytest absent.py::test", "pytest absent.py::test fails without any mutant"),
        ("by hand", 'is neither "meson NAME [CASE…]" nor "pytest NODE"'),
    ],
)
def test_a_test_that_proves_nothing_is_refused(tree: Path, test: str, complaint: str) -> None:
    add_mutant(tree, "mutant", test)
    status, output = run_mutants(tree)
    assert status == 1
    assert complaint in output


def test_the_python_package_is_the_copy_s(tree: Path) -> None:
    add_mutant(tree, "mutant", "pytest tests/python/test_sum.py::test_sum")
    status, output = run_mutants(tree)
    assert (status, output.splitlines()[-1]) == (0, "1 caught, 0 not")


def test_an_unknown_name_is_refused(tree: Path) -> None:
    status, output = run_mutants(tree, "nobody")
    assert status == 1
    assert "there is no mutant nobody" in output


@pytest.mark.parametrize("path", sorted(HERE.glob("*.patch")), ids=lambda path: path.stem)
def test_our_mutants_are_up_to_date(path: Path) -> None:
    """Whether they are caught is for ./dev mutants, which takes longer."""
    run.parse_mutant(path)
    command = ["patch", *run.PATCH_OPTIONS, "--dry-run", f"--input={path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
