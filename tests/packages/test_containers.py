# SPDX-License-Identifier: Apache-2.0
"""The container images, built by a builder without a daemon, on a base made here: no registry is asked."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from packages.conftest import ROOT, architecture, run, suite

pytestmark = pytest.mark.skipif(not shutil.which("buildah"), reason="not on this machine: buildah")

# Without namespaces of its own, a builder works wherever a chroot does.
BUILD = ("buildah", "build", "--isolation=chroot", "--storage-driver=vfs", "--pull-never", "--network=host")

TRIAL = """
cd /tmp
export KVCACHED_EMULATE_DIR=/dev/shm/kvc-test-container
kvcachedd --emulate 1G --metrics-listen off &
tries=0
until kvctl info >/tmp/info 2>/tmp/error; do
    tries=$((tries + 1))
    [ $tries -lt 3000 ] || { cat /tmp/error; exit 1; }
done
id -u
kvctl version
kill %1
wait %1
"""


@pytest.fixture(scope="module")
def context() -> Iterator[Path]:
    """The tree as git has it."""
    with tempfile.TemporaryDirectory(prefix="kvc-context-", dir="/tmp") as folder:
        files = run("git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard").split(
            "\n"
        )
        for name in filter(None, files):
            source = ROOT / name
            if source.is_file():
                (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, Path(folder) / name)
        yield Path(folder)


@pytest.fixture(scope="module")
def base() -> Iterator[Callable[..., str]]:
    """Names an image with these packages and files; all images go after the tests."""
    made: list[str] = []

    def make(name: str, *packages: str, files: Path | None = None) -> str:
        with tempfile.TemporaryDirectory(prefix="kvc-base-", dir="/tmp") as folder:
            archive = f"{folder}/root.tar"
            include = [f"--include={','.join(packages)}"] if packages else []
            run(
                "mmdebstrap",
                "--variant=minbase",
                f"--architectures={architecture()}",
                *include,
                suite(),
                archive,
            )
            made.append(name)
            container = buildah("from", "scratch")
            buildah("add", container, archive, "/")
            if files:
                buildah("add", container, str(files), "/")
            buildah("commit", "--rm", container, name)
        return f"localhost/{name}"

    yield make
    subprocess.run(
        ["buildah", "--storage-driver=vfs", "rmi", "--all", "--force"], capture_output=True, check=False
    )


def buildah(command: str, *arguments: str) -> str:
    return run("buildah", "--storage-driver=vfs", command, *arguments).strip().splitlines()[-1]


def inside(image: str, script: str) -> str:
    container = buildah("from", "--pull-never", image)
    try:
        return run(
            "buildah",
            "--storage-driver=vfs",
            "run",
            "--isolation=chroot",
            container,
            "--",
            "/bin/bash",
            "-ec",
            script,
        )
    finally:
        buildah("rm", container)


@pytest.mark.timeout(900)
def test_the_daemons(base: Callable[..., str], context: Path) -> None:
    on = base("kvc-test-debian")
    file = context / "packaging/container/daemon.Containerfile"
    run(*BUILD, "-t", "kvc-test-daemon", "--build-arg", f"BASE={on}", "-f", str(file), str(context))
    said = inside("localhost/kvc-test-daemon", TRIAL).splitlines()
    assert "10470" in said
    assert any(line.startswith("kvcachedd 0.") for line in said)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pip needs to build the wheel, to be found in an image without asking anybody."""
    folder = tmp_path_factory.mktemp("index")
    needs = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    wheels = folder / "srv/wheels"
    run(sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(wheels), *needs)
    (folder / "etc").mkdir()
    (folder / "etc/pip.conf").write_text("[global]\nno-index = true\nfind-links = /srv/wheels\n")
    return folder


@pytest.mark.timeout(900)
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_an_engines(base: Callable[..., str], context: Path, index: Path, engine: str) -> None:
    """On a base that has a Python and no engine: what the file itself does."""
    on = base(f"kvc-test-python-{engine}", "python3", "python3-pip", "python3-venv", files=index)
    file = context / f"packaging/container/{engine}.Containerfile"
    image = f"kvc-test-{engine}"
    run(*BUILD, "-t", image, "--build-arg", f"BASE={on}", "-f", str(file), str(context))
    said = inside(
        f"localhost/{image}",
        "python3 -c 'import kvcached; print(kvcached.__version__)'; env; kvctl --version",
    )
    assert "ENABLE_KVCACHED=true" in said
    assert "kvctl 0." in said
    assert inside(f"localhost/{image}", "command -v gcc || echo none").strip() == "none"
