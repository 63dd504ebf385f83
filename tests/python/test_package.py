# SPDX-License-Identifier: Apache-2.0
"""The installed package: one wheel for all versions, with all that belongs in it, and nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path
from typing import Callable

import pytest

import kvcached
from harness.broker import Result
from kvcached import _native

FILES = {str(file) for file in metadata.files("kvcached") or []}


def test_version() -> None:
    assert kvcached.__version__ == _native.version == metadata.version("kvcached")


def test_names() -> None:
    """All are there, and loaded by the first who wants one."""
    for name in kvcached.__all__:
        assert getattr(kvcached, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        kvcached.nothing  # type: ignore[attr-defined]  # noqa: B018
    program = (
        "import sys, kvcached; early = 'kvcached._native' in sys.modules; kvcached.Error; "
        "sys.exit(early or 'kvcached._native' not in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_tag() -> None:
    wheel = metadata.distribution("kvcached").read_text("WHEEL")
    assert wheel
    assert "Root-Is-Purelib: false" in wheel
    assert re.findall(r"^Tag: (.*)", wheel, re.MULTILINE) == [
        f"cp39-abi3-{sysconfig.get_platform().replace('-', '_')}"
    ]


def test_requirements() -> None:
    about = metadata.metadata("kvcached")
    assert about["Requires-Python"] == ">=3.9"
    assert about["License-Expression"] == "Apache-2.0"
    assert all("extra ==" in requirement for requirement in metadata.requires("kvcached") or [])


def test_files() -> None:
    assert {"kvcached/py.typed", "kvcached/_native.pyi", "kvcached/_native.abi3.so"} <= FILES
    assert any(file.endswith("licenses/LICENSE") for file in FILES)
    suffixes = {Path(file).suffix for file in FILES if file.startswith("kvcached/")}
    assert suffixes <= {".py", ".pyi", ".pyc", ".so", ".typed"}
    for unwanted in ("libkvclient", "kvcachedd", "kvclient.h", "libcuda", "wheel_backend"):
        assert not [file for file in FILES if unwanted in file]


def test_entry_points() -> None:
    points = {
        (point.group, point.name): point.value for point in metadata.distribution("kvcached").entry_points
    }
    assert points == {
        ("vllm.general_plugins", "kvcached"): "kvcached.integration.vllm.plugin:register",
        ("sglang.srt.plugins", "kvcached"): "kvcached.integration.sglang.plugin:register",
        ("console_scripts", "kvcached-controller"): "kvcached.controller.start:controller",
        ("console_scripts", "kvcached-launch"): "kvcached.controller.start:launch",
    }


@pytest.mark.parametrize("name", ["kvcached-controller", "kvcached-launch"])
def test_a_command_without_its_extra(name: str) -> None:
    """This environment has none of what they stand on."""
    program = Path(sysconfig.get_path("scripts")) / name
    done = subprocess.run([program, "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(
        rf"{name}: The Python package \w+ is missing: pip install 'kvcached\[controller\]'\n", done.stderr
    )


def test_kvctl_comes_along() -> None:
    kvctl = Path(sysconfig.get_path("scripts")) / "kvctl"
    done = subprocess.run([kvctl, "--version"], capture_output=True, text=True, check=True)
    assert kvcached.__version__ in done.stdout


def test_the_library_is_inside() -> None:
    """Nothing of it is exported, and nothing of ours is loaded beside it."""
    extension = _native.__file__
    assert extension
    symbols = subprocess.run(
        ["nm", "-D", "--defined-only", extension], capture_output=True, text=True, check=True
    )
    assert {line.split()[-1] for line in symbols.stdout.splitlines()} == {"PyInit__native"}
    needed = subprocess.run(["readelf", "-d", extension], capture_output=True, text=True, check=True).stdout
    for library in re.findall(r"NEEDED.*\[(.*)\]", needed):
        assert library.startswith(
            ("libprotobuf-c.so", "libc.so", "libm.so", "libdl.so", "libpthread.so", "ld-linux")
        )


def test_imports_nothing_heavy(run_python: Callable[..., Result]) -> None:
    run_python(
        """
        import sys, kvcached, kvcached.vmm_ops, kvcached.kv_cache_manager
        assert not {"torch", "numpy", "vllm", "sglang"} & set(sys.modules)
        """
    )


def test_imports_without_a_daemon_or_settings(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "import kvcached; print(kvcached.__version__)"],
        env={}, cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == kvcached.__version__
    assert done.stderr == ""


@pytest.mark.parametrize("name", ["Client", "Region", "Blocks", "set_log_handler"])
def test_documented(name: str) -> None:
    part = getattr(_native, name)
    assert part.__doc__
    for method, function in vars(part).items() if isinstance(part, type) else ():
        if not method.startswith("_"):
            assert function.__doc__, f"{name}.{method}"
