# SPDX-License-Identifier: Apache-2.0
"""One configuration file for the daemons of several GPUs: what each makes of it, at its start and
when it reads the file again."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from harness.broker import Daemon, Programs, Site, eventually
from harness.raw import start_raw

pytestmark = pytest.mark.emulator  # needs two GPUs

MIB = 1 << 20


def budget(programs: Programs, daemon: Daemon) -> int:
    number = programs.kvctl("info", "--json", daemon=daemon).json()["budget_bytes"]
    assert isinstance(number, int)
    return number


def start(programs: Programs, gpu: int, config: str, *arguments: str) -> Daemon:
    return programs.daemon(
        "1G,1G", name=f"gpu{gpu}", config=config, arguments=("--gpu", str(gpu), *arguments)
    )


def test_sections_of_gpus(programs: Programs) -> None:
    config = "[daemon]\nbudget = 100M\n[gpu 1]\nbudget = 200M\n"
    first, second = start(programs, 0, config), start(programs, 1, config)
    assert (budget(programs, first), budget(programs, second)) == (100 * MIB, 200 * MIB)


def test_a_uuid_decides_over_a_number_and_an_option_over_both(programs: Programs) -> None:
    first = start(programs, 1, "")
    uuid = start_raw(programs, first).open()["gpu_uuid"]
    first.stop()
    config = f"[gpu {uuid}]\nbudget = 300M\n[gpu 1]\nbudget = 200M\n"
    second = start(programs, 1, config)
    assert budget(programs, second) == 300 * MIB
    second.stop()
    assert budget(programs, start(programs, 1, config, "--budget", "400M")) == 400 * MIB


def test_reloading(programs: Programs, site: Site) -> None:
    daemon = start(programs, 1, "[gpu 1]\nbudget = 200M\n")
    path = site.run / "gpu1.conf"
    path.write_text("[daemon]\nbudget = 100M\n[gpu 0]\nbudget = 150M\n[gpu 1]\nbudget = 250M\n")
    daemon.process.send_signal(signal.SIGHUP)
    eventually(lambda: budget(programs, daemon) == 250 * MIB)
    path.write_text("[gpu one]\nbudget = 1M\n")
    daemon.process.send_signal(signal.SIGHUP)
    eventually(lambda: "The old configuration stays" in daemon.log())
    assert f"{path}:1: [gpu one]: expected the number of a GPU, in PCI order, or its UUID" in daemon.log()
    assert budget(programs, daemon) == 250 * MIB


def test_each_gpu_has_its_own_sockets_of_a_domain(programs: Programs, site: Site) -> None:
    config = f"[domain tenant]\nsocket = {site.run}/tenant/gpu%i.sock\n"
    daemons = [start(programs, gpu, config) for gpu in (0, 1)]
    for gpu, daemon in enumerate(daemons):
        peer = start_raw(programs, daemon)
        peer.socket_path = Path(f"{site.run}/tenant/gpu{gpu}.sock")
        welcome = peer.open()
        assert welcome.number("gpu_index") == gpu
        peer.close()
        assert Path(f"{site.run}/tenant/{welcome['gpu_uuid']}.sock").readlink() == Path(f"gpu{gpu}.sock")
    for daemon in daemons:
        daemon.stop()
    assert list(Path(f"{site.run}/tenant").iterdir()) == []


def test_a_tenant_finds_its_socket_by_the_gpus_uuid(programs: Programs, site: Site) -> None:
    """As in a container that has the tenant's folder in place of the usual one."""
    tenant = site.run / "tenant"
    daemon = start(programs, 1, f"[domain tenant]\nsocket = {tenant}/gpu%i.sock\n")
    uuid = start_raw(programs, daemon).open()["gpu_uuid"]
    environment = {"KVCACHED_SOCKET": "", "RUNTIME_DIRECTORY": str(tenant)}
    engine = programs.peer(daemon, "llama", environment=environment)
    assert engine.ask(f"open gpu={uuid}").startswith("ok")
    listed = programs.kvctl("list", "llama", "--json", daemon=daemon).json()
    assert [row["domain"] for row in listed] == ["tenant"]


def test_sockets_with_other_names_have_no_links(programs: Programs, site: Site) -> None:
    start(programs, 0, f"[domain tenant]\nsocket = {site.run}/tenant/engine.sock\n")
    assert {path.name for path in (site.run / "tenant").iterdir()} == {"engine.sock", "engine.sock.lock"}
