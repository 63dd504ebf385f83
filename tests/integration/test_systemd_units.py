# SPDX-License-Identifier: Apache-2.0
"""The systemd units as they are installed, looked at without a service manager. What they do under one is
tested in tests/vm."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.broker import Programs, Site, run_program
from harness.stage import make_controller

ROOT = Path(__file__).parents[2]
SERVICE = "kvcachedd@0.service"
CONTROLLER = "kvcached-controller.service"
EXPOSURE_MAX = 2.0

needs_analyze = pytest.mark.skipif(
    not shutil.which("systemd-analyze"), reason="systemd-analyze is not on this machine"
)


@pytest.fixture(scope="session")
def installed(build_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What "meson install" puts where, below a folder."""
    folder = tmp_path_factory.mktemp("installed")
    command = ["meson", "install", "-C", str(build_dir), "--no-rebuild", "--destdir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def find_one(folder: Path, name: str) -> Path:
    found = list(folder.rglob(name))
    assert len(found) == 1, f"{name}: {found}"
    return found[0]


@pytest.fixture
def instance(installed: Path, site: Site, tmp_path: Path) -> Path:
    """A folder with the units of GPU 0. systemd-analyze wants files that are called like an instance, and the
    programs in their place."""
    folder = tmp_path / "units"
    folder.mkdir()
    units = find_one(installed, "kvcachedd@.service").parent
    controller = make_controller(tmp_path / "programs")
    for unit in units.iterdir():
        text = re.sub(r"=\S*/kvcached-controller ", f"={controller} ", unit.read_text())
        for program in ("daemon/kvcachedd", "kvctl/kvctl"):
            text = re.sub(rf"=\S*/{Path(program).name} ", f"={site.program(program)} ", text)
        helper = find_one(installed, "kvcached-devices")
        text = re.sub(r"=\S*/kvcached-devices ", f"={helper} ", text)
        (folder / unit.name.replace("@.", "@0.")).write_text(text)
    return folder


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)


@needs_analyze
def test_verify(instance: Path) -> None:
    names = sorted(path.name for path in instance.iterdir())
    assert names == [
        CONTROLLER,
        "kvcached-devices@0.service",
        "kvcached.target",
        "kvcachedd-control@0.socket",
        SERVICE,
        "kvcachedd@0.socket",
    ]
    done = analyze("verify", "--man=no", *(str(instance / name) for name in names))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_analyze
def test_verify_notices(instance: Path) -> None:
    """What the check above is worth: it sees a misspelt setting, and a program that isn't there."""
    unit = instance / SERVICE
    text = unit.read_text()
    unit.write_text(text.replace("WatchdogSec=", "WatchDogSeconds="))
    assert "WatchDogSeconds" in analyze("verify", "--man=no", str(unit)).stderr
    unit.write_text(re.sub(r"ExecStart=\S+", "ExecStart=/nowhere/kvcachedd", text))
    assert analyze("verify", "--man=no", str(unit)).returncode != 0


@needs_analyze
@pytest.mark.parametrize("name", [SERVICE, CONTROLLER])
def test_exposure(instance: Path, name: str) -> None:
    done = analyze("security", "--offline=yes", "--no-pager", str(instance / name))
    match = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert match, done.stdout + done.stderr
    assert float(match[1]) <= EXPOSURE_MAX, done.stdout


GPUS = {  # by place: the minor number, and whether the driver leaves the GPU out
    "0000:c1:00.0": (0, "No"),
    "0000:1b:00.0": (5, "No"),
    "0000:0a:00.0": (2, "Yes"),
    "0001:00:00.0": (1, "No"),
    "0000:43:00.0": (12, "No"),
}


@pytest.mark.parametrize(("gpu", "minor"), [(0, 5), (1, 12), (2, 0), (3, 1)])
def test_device_files(installed: Path, tmp_path: Path, gpu: int, minor: int) -> None:
    """They are those of the GPU's minor number, which the kernel module tells once it has been loaded."""
    tool, tree, asked = tmp_path / "nvidia-modprobe", tmp_path / "gpus", tmp_path / "asked"
    tool.write_text(f'#!/bin/sh\necho "$@" >>{asked}\n[ -e {tree} ] || mv {tree}-later {tree}\n')
    tool.chmod(0o755)
    for place, (number, excluded) in GPUS.items():
        folder = tmp_path / "gpus-later" / place
        folder.mkdir(parents=True)
        folder.joinpath("information").write_text(
            f"Model: \t\t NVIDIA H200\nGPU UUID: \t GPU-{number}\nBus Location: \t {place}\n"
            f"Device Minor: \t {number}\nGPU Excluded:\t {excluded}\n"
        )
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script = str(find_one(installed, "kvcached-devices"))
    assert run_program([script, str(gpu), str(tree)], environment).rc == 0
    assert asked.read_text().splitlines() == [
        "--create-nvidia-device-file=255",
        f"--create-nvidia-device-file={minor}",
        "--unified-memory --create-nvidia-device-file=0",
    ]
    failed = run_program([script, "4", str(tree)], environment)
    assert (failed.rc, failed.err) == (1, "The driver knows no GPU 4\n")


def settings(unit: Path) -> configparser.SectionProxy:
    """The last value of each setting of [Service] or [Socket]."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(unit)
    return parser["Socket" if unit.suffix == ".socket" else "Service"]


def test_not_in_the_way_of_the_daemon(instance: Path) -> None:
    """A peer's /proc must be seen, and the GPU's device files; metrics go over the loopback interface."""
    service = settings(instance / SERVICE)
    for name in (
        "ProtectProc",
        "ProcSubset",
        "PrivateUsers",
        "PrivateDevices",
        "PrivateNetwork",
        "PrivatePIDs",
    ):
        assert name not in service
    assert service["DeviceAllow"] == "char-nvidia* rw"
    assert service["IPAddressAllow"] == "localhost"
    assert {"AF_UNIX", "AF_INET", "AF_INET6"} <= set(service["RestrictAddressFamilies"].split())


def test_nobody_special(instance: Path) -> None:
    service = settings(instance / SERVICE)
    assert service["User"] == "kvcached"
    assert service["CapabilityBoundingSet"] == ""
    assert "AmbientCapabilities" not in service
    assert not any(value.startswith(("+", "!")) for name, value in service.items() if name.startswith("Exec"))


def test_not_in_the_way_of_the_controller(instance: Path) -> None:
    """Engines may be anywhere, and the daemons tell by users who asks them."""
    service = settings(instance / CONTROLLER)
    for name in ("IPAddressDeny", "PrivateNetwork", "PrivateUsers", "DynamicUser", "WatchdogSec"):
        assert name not in service
    assert {"AF_UNIX", "AF_INET", "AF_INET6"} <= set(service["RestrictAddressFamilies"].split())
    assert (service["User"], service["SupplementaryGroups"]) == ("kvcached-controller", "kvcached")
    assert service["CapabilityBoundingSet"] == ""
    assert "AmbientCapabilities" not in service


def test_the_controllers_user_is_made(installed: Path) -> None:
    text = find_one(find_one(installed, "sysusers.d"), "kvcached.conf").read_text()
    assert re.search(r"^u kvcached-controller - ", text, re.MULTILINE)


def commands(unit: Path, name: str) -> list[list[str]]:
    """With the configuration elsewhere, and what KVCACHED_CONTROLLER_OPTIONS has."""
    found = re.findall(rf"^{name}=(.*)$", unit.read_text(), re.MULTILINE)
    config = unit.parent / "controller.yaml"
    return [
        line.replace("/etc/kvcached/controller.yaml", str(config))
        .replace("$KVCACHED_CONTROLLER_OPTIONS", "--log-format json")
        .split()
        for line in found
    ]


def test_a_reload_says_what_is_wrong(instance: Path) -> None:
    """Before the signal, which is not sent then."""
    check, signal = commands(instance / CONTROLLER, "ExecReload")
    config = instance / "controller.yaml"
    config.write_text("instances: [{model: m, engine: vllm, port: 1}]\n")
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"{config}:1: instances[0].port is unknown" in done.stderr
    config.write_text("instances: [{model: m, engine: vllm}]\n")
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert signal == ["/bin/kill", "-HUP", "$MAINPID"]
    (start,) = commands(instance / CONTROLLER, "ExecStart")
    assert [word for word in check if word != "--check-config"] == start


def test_what_the_sockets_are_called(instance: Path) -> None:
    """The names by which the daemon claims them, and the paths at which engines and kvctl look."""
    engine, control = (settings(instance / f"{name}@0.socket") for name in ("kvcachedd", "kvcachedd-control"))
    assert (engine["FileDescriptorName"], control["FileDescriptorName"]) == ("engine", "control")
    assert engine["ListenSequentialPacket"] == "/run/kvcached/gpu%i.sock"
    assert control["ListenSequentialPacket"] == engine["ListenSequentialPacket"] + ".ctl"
    assert control["Service"] == "kvcachedd@%i.service"


def test_reload(instance: Path, programs: Programs, site: Site) -> None:
    """The unit's command asks the daemon of its own GPU, returns when the configuration holds, and says where
    it is wrong."""
    (command,) = re.findall(r"^ExecReload=(.*)$", (instance / SERVICE).read_text(), re.M)
    socket = settings(instance / "kvcachedd-control@0.socket")["ListenSequentialPacket"].removesuffix(".ctl")
    assert f" --socket {socket} " in command
    daemon = programs.daemon(config="[daemon]\nbudget=512M\n")
    words = command.replace(socket, str(daemon.socket)).split()
    path = site.run / "gpu0.conf"
    path.write_text("[daemon]\nbudget=256M\n")
    assert run_program(words, site.environment()).rc == 0
    assert programs.kvctl("info", "--json", daemon=daemon).json()["budget_bytes"] == 256 << 20
    path.write_text("[daemon]\nbudget=lots\n")
    failed = run_program(words, site.environment())
    assert failed.rc != 0
    assert f"{path}:2: budget=lots" in failed.err
    assert programs.kvctl("info", "--json", daemon=daemon).json()["budget_bytes"] == 256 << 20


def test_what_is_installed(installed: Path) -> None:
    names = {path.name for path in installed.rglob("*") if not path.is_dir()}
    assert {"kvcachedd", "kvctl", "kvclient.h", "kvclient.pc", "libkvclient.so", "libcuda.so.1"} <= names
    assert "SYSTEMD.md" in names
    for folder in ("sysusers.d", "tmpfiles.d"):
        assert find_one(installed, folder).joinpath("kvcached.conf").exists()


def places(folder: Path, *options: str) -> dict[str, str]:
    """Where a build that is configured like this installs the files that concern systemd, by their names."""
    setup = ["meson", "setup", "-Dtests=false", "-Dpython=disabled", *options, str(folder), str(ROOT)]
    done = subprocess.run(setup, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    command = ["meson", "introspect", "--installed", str(folder)]
    listing = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return {Path(path).name: path for path in listing.values()} | {
        folder: path for path in listing.values() for folder in ("sysusers.d", "tmpfiles.d") if folder in path
    }


def test_where_they_go(tmp_path: Path) -> None:
    """A prefix has folders of its own; /usr has systemd's; and who packages it may name others."""
    local = places(tmp_path / "local", "--prefix=/usr/local")
    assert local["kvcachedd@.service"] == "/usr/local/lib/systemd/system/kvcachedd@.service"
    assert local["kvcached.target"] == "/usr/local/lib/systemd/system/kvcached.target"
    assert local["sysusers.d"] == "/usr/local/lib/sysusers.d/kvcached.conf"
    assert local["tmpfiles.d"] == "/usr/local/lib/tmpfiles.d/kvcached.conf"

    system = places(tmp_path / "system", "--prefix=/usr")
    assert re.fullmatch(r"(/usr)?/lib/systemd/system/kvcachedd@\.service", system["kvcachedd@.service"])
    assert system["sysusers.d"] == "/usr/lib/sysusers.d/kvcached.conf"

    named = ("-Dsystemdsystemunitdir=/etc/units", "-Dsysusersdir=/etc/users", "-Dtmpfilesdir=/etc/files")
    other = places(tmp_path / "other", "--prefix=/usr", *named)
    assert other["kvcachedd-control@.socket"] == "/etc/units/kvcachedd-control@.socket"
    assert {"/etc/users/kvcached.conf", "/etc/files/kvcached.conf"} & set(other.values())
    assert "sysusers.d" not in other

    none = places(tmp_path / "none", "-Ddaemon=false")
    assert "kvcachedd@.service" not in none
