# SPDX-License-Identifier: Apache-2.0
"""Wheels for the virtual machine, which has no network: what "pip install '.[controller]'" needs there. They
are the oldest that the package allows; other tests have newer ones.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from vm.image import CACHE, ROOT


def own() -> Path | None:
    """The package itself, as ./dev builds it."""
    return next(iter((ROOT / ".venv-python").glob("wheel-*/*.whl")), None)


def oldest() -> list[str]:
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"][
        "controller"
    ]
    found = [re.match(r"([\w-]+)>=([\d.]+)", requirement) for requirement in extra]
    assert found
    assert all(found), extra
    return [f"{match[1]}=={match[2]}" for match in found if match]


def fetch() -> Path:
    """A folder with them, and with what they need; fetched once."""
    key = hashlib.sha256(" ".join([*oldest(), sys.version]).encode()).hexdigest()[:16]
    folder = CACHE / f"wheels-{key}"
    if not folder.exists():
        fresh = CACHE / "wheels-new"
        shutil.rmtree(fresh, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run(
            [*pip, "--only-binary=:all:", f"--dest={fresh}", *oldest()],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        fresh.rename(folder)
    return folder
