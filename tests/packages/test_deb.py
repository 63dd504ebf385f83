# SPDX-License-Identifier: Apache-2.0
"""The Debian packages: what is in them, what lintian says, and what installing, removing and purging does."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from packages.conftest import Chroot, Packages, architecture, build, run

NAMES = ("kvcachedd", "kvcached-tools", "libkvclient0", "libkvclient-dev", "kvcached-emulator")

# A daemon in the chroot, asked by kvctl, and ended: in one script, since nothing may be left running.
TRIAL = """
. /etc/os-release
cd /srv
export KVCACHED_EMULATE_DIR=/dev/shm/kvc-deb
kvcachedd --emulate 1G --socket /srv/gpu0.sock --state-dir /srv/state --metrics-listen off &
daemon=$!
tries=0
until kvctl --socket /srv/gpu0.sock info >/srv/info 2>/srv/error; do
    tries=$((tries + 1))
    [ $tries -lt 3000 ] || { cat /srv/error; exit 1; }
done
kvctl --socket /srv/gpu0.sock limit llama 512M
kvctl --socket /srv/gpu0.sock list
kill $daemon
wait $daemon
"""


def installed(chroot: Chroot) -> set[str]:
    """Of our packages, those that are there, with whatever is left of them."""
    listing = chroot.run("dpkg-query -W -f '${Package} ${db:Status-Status}\\n'")
    return {line for line in listing.splitlines() if line.split()[0] in NAMES}


def test_lintian_is_content(packages: Packages) -> None:
    (changes,) = packages.folder.glob("*.changes")
    said = run("lintian", "--allow-root", "--fail-on=error,warning", "--profile=debian", str(changes))
    assert [line for line in said.splitlines() if line[:2] in ("E:", "W:")] == []


def test_where_things_are(packages: Packages) -> None:
    """Where a Debian user looks for them."""
    library = "/usr/lib/x86_64-linux-gnu" if architecture() == "amd64" else "/usr/lib/aarch64-linux-gnu"
    expected = {
        "kvcachedd": [
            "/usr/bin/kvcachedd",
            "/lib/systemd/system/kvcachedd@.service",
            "/lib/systemd/system/kvcachedd@.socket",
            "/lib/systemd/system/kvcachedd-control@.socket",
            "/lib/systemd/system/kvcached.target",
            "/usr/lib/sysusers.d/kvcached.conf",
            "/usr/lib/tmpfiles.d/kvcached.conf",
            "/usr/share/man/man8/kvcachedd.8.gz",
            "/usr/share/man/man5/kvcachedd.conf.5.gz",
            "/usr/share/doc/kvcachedd/examples/kvcachedd.conf",
        ],
        "kvcached-tools": [
            "/usr/bin/kvctl",
            "/usr/bin/kvtop",
            "/usr/share/man/man1/kvctl.1.gz",
            "/usr/share/man/man7/kvcached-env.7.gz",
            "/usr/share/bash-completion/completions/kvctl",
            "/usr/share/bash-completion/completions/kvtop",
            "/usr/share/zsh/vendor-completions/_kvctl",
            "/usr/share/fish/vendor_completions.d/kvctl.fish",
            "/usr/share/fish/vendor_completions.d/kvtop.fish",
        ],
        "libkvclient0": [f"{library}/libkvclient.so.0"],
        "libkvclient-dev": [
            "/usr/include/kvclient.h",
            f"{library}/libkvclient.so",
            f"{library}/pkgconfig/kvclient.pc",
            "/usr/share/man/man3/kvclient.3.gz",
        ],
        "kvcached-emulator": [f"{library}/kvcached/cuemu/libcuda.so.1"],
    }
    for name, paths in expected.items():
        assert set(paths) - packages.contents(name) == set()
    # Two versions of the library can be there at once.
    assert {path for path in packages.contents("libkvclient0") if "/man/" in path} == set()
    # The emulated driver must never be found instead of a real one.
    assert all(
        "/kvcached/cuemu/" in path or "/usr/share/doc/" in path
        for path in packages.contents("kvcached-emulator")
    )
    assert "libkvclient0" in packages.field("libkvclient-dev", "Depends")
    # Its unit runs kvctl.
    assert "kvcached-tools" in packages.field("kvcachedd", "Depends")


def test_on_a_newer_release(tmp_path: Path) -> None:
    """Where /lib is /usr/lib's, units lie there."""
    tool = tmp_path / "bin/pkg-config"
    tool.parent.mkdir()
    real = shutil.which("pkg-config")
    tool.write_text(
        '#!/bin/sh\ncase "$*" in *systemdsystemunitdir*) echo /usr/lib/systemd/system; exit ;; esac\n'
        f'exec {real} "$@"\n'
    )
    tool.chmod(0o755)
    packages = build(tmp_path, PATH=f"{tool.parent}:{os.environ['PATH']}")
    units = {path for path in packages.contents("kvcachedd") if "/systemd/system/" in path}
    assert "/usr/lib/systemd/system/kvcachedd@.service" in units
    assert {str(Path(path).parent) for path in units} == {"/usr/lib/systemd/system"}


def test_a_life(chroot: Chroot) -> None:
    """Installed, used, removed, installed again, purged: state stays until the purge."""
    chroot.run("apt-get install -qq -y /packages/kvcachedd_*.deb /packages/kvcached-tools_*.deb")
    chroot.run("apt-get install -qq -y /packages/kvcached-emulator_*.deb")
    assert "kvcached:" in chroot.run("getent passwd kvcached")
    chroot.run("getent group kvcached-admin")
    assert "llama" in chroot.run(TRIAL)

    # What the daemon leaves where systemd has it run.
    chroot.run("mkdir -p /var/lib/kvcached/GPU-1 && echo '{}' >/var/lib/kvcached/GPU-1/limits.json")
    chroot.run("apt-get remove -qq -y kvcachedd kvcached-tools kvcached-emulator")
    assert chroot.path("/var/lib/kvcached/GPU-1/limits.json").exists()
    assert not chroot.path("/usr/bin/kvcachedd").exists()

    chroot.run("apt-get install -qq -y /packages/kvcachedd_*.deb /packages/kvcached-tools_*.deb")
    chroot.run("apt-get install -qq -y /packages/kvcached-emulator_*.deb")
    assert "llama" in chroot.run(TRIAL)
    chroot.run("apt-get purge -qq -y kvcachedd kvcached-tools kvcached-emulator")
    assert not chroot.path("/var/lib/kvcached").exists()
    assert installed(chroot) == set()


# In place of the service manager, which must not be there: it notes what it is asked.
MANAGER = """
mkdir -p /srv/fakes /run/systemd/system
printf '#!/bin/sh\\necho "$@" >>/srv/asked\\n' >/srv/fakes/systemctl
chmod 755 /srv/fakes/systemctl
"""


def what_dpkg_asks(chroot: Chroot, what: str) -> list[str]:
    """Of the service manager."""
    chroot.run(f"rm -f /srv/asked; PATH=/srv/fakes:$PATH dpkg {what}")
    return chroot.path("/srv/asked").read_text().splitlines()


def test_what_is_stopped(chroot: Chroot) -> None:
    """All that runs, with its sockets, by a removal; nothing by an upgrade. Both have systemd look again."""
    chroot.run("apt-get install -qq -y /packages/kvcachedd_*.deb /packages/kvcached-tools_*.deb")
    policy = chroot.path("/usr/sbin/policy-rc.d")
    forbids = policy.read_text()
    policy.write_text("#!/bin/sh\nexit 0\n")
    chroot.run(MANAGER)
    try:
        asked = what_dpkg_asks(chroot, "--install /packages/kvcachedd_*.deb")
        assert asked == ["--system daemon-reload"]
        stop, reload = what_dpkg_asks(chroot, "--remove kvcachedd")
        assert stop.split()[0] == "stop"
        assert set(stop.split()[1:]) == {
            "kvcached.target",
            "kvcachedd@*.service",
            "kvcachedd@*.socket",
            "kvcachedd-control@*.socket",
            "kvcached-devices@*.service",
        }
        assert reload == "--system daemon-reload"
    finally:
        policy.write_text(forbids)
        chroot.run("rm -rf /run/systemd/system /srv/fakes /srv/asked")
    chroot.run("apt-get purge -qq -y kvcachedd kvcached-tools")


def test_building_against_it(chroot: Chroot) -> None:
    """A program that is built with what the packages say, and runs."""
    chroot.run(
        "apt-get install -qq -y --no-install-recommends gcc libc6-dev pkg-config"
        " /packages/libkvclient0_*.deb /packages/libkvclient-dev_*.deb"
    )
    source = (
        "#include <kvclient.h>\n#include <stdio.h>\nint main(void) { puts(kvc_strerror(KVC_E_LIMIT)); }\n"
    )
    chroot.path("/srv/t.c").write_text(source)
    said = chroot.run("cd /srv && gcc t.c $(pkg-config --cflags --libs kvclient) -o t && ./t")
    assert said.strip()
    chroot.run("apt-get purge -qq -y libkvclient-dev libkvclient0")
