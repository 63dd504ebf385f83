# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests with inference engines: a daemon with an emulated device, and the package as it would
be installed. The engines have interpreters of their own, which the tests start; without one they are skipped.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.broker import Programs, Site

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def site(build_dir: Path, tmp_run: Path) -> Iterator[Site]:
    """The surroundings of this test, with an emulated device of its own."""
    memory = Path(tempfile.mkdtemp(prefix="kvcached-test-", dir="/dev/shm"))
    yield Site(build=build_dir, run=tmp_run, emulate_dir=memory / "devices")
    shutil.rmtree(memory)


@pytest.fixture
def programs(site: Site) -> Iterator[Programs]:
    """Starts daemons and kvctl, and ends what the test leaves running."""
    started = Programs(site)
    yield started
    started.end()


@pytest.fixture(scope="session")
def package_dir(build_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH: the package with this build's extension, and its entry points."""
    native = build_dir / "python" / "_native.abi3.so"
    if not native.exists():
        pytest.skip(f"{native} has not been built")
    folder = tmp_path_factory.mktemp("site-packages")
    shutil.copytree(
        ROOT / "python" / "kvcached", folder / "kvcached", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(native, folder / "kvcached")
    about = folder / "kvcached-0.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: kvcached\nVersion: 0.0\n")
    (about / "entry_points.txt").write_text(
        "[sglang.srt.plugins]\nkvcached = kvcached.integration.sglang.plugin:register\n"
    )
    return folder
