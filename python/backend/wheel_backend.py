# SPDX-License-Identifier: Apache-2.0
"""meson-python, but the wheel's tag names the oldest CPython that it serves, not the one that built it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import mesonpy
from mesonpy import (
    build_editable,
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
)

OLDEST = "cp39"  # as Py_LIMITED_API of ext/native.h says


def build_wheel(
    wheel_directory: str, config_settings: dict[Any, Any] | None = None, metadata_directory: str | None = None
) -> str:
    name = mesonpy.build_wheel(wheel_directory, config_settings, metadata_directory)
    retag = [sys.executable, "-m", "wheel", "tags", "--remove", "--python-tag", OLDEST]
    done = subprocess.run(
        [*retag, str(Path(wheel_directory, name))], stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout.split()[-1]


__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
]
