# SPDX-License-Identifier: Apache-2.0
"""What is run for an instance: its command, its environment, and where it answers then.

An environment is, each before the next: the caller's, what is set here, `kvcached` of the configuration, the
instance's kvcached_env, its engine_env. Paths are relative to the configuration's folder, where engines run.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from kvcached.controller.config import Config, Instance

from .errors import LaunchError

# GPUs of an instance that names none. It sees all there are then, as without kvcached.
_ANY_GPU = (0,)


@dataclass(frozen=True)
class Plan:
    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]  # all of it
    folder: str
    address: str
    host: str  # that it binds to
    port: int


def plan(config: Config, instance: Instance, folder: Path, caller: Mapping[str, str]) -> Plan:
    """folder: the configuration's. LaunchError: this cannot be run, or not here."""
    if instance.url is None:
        raise LaunchError("has dns, not an address of this machine, so it is started elsewhere")
    given = instance.engine_args
    if not is_here(instance):
        raise LaunchError(f"is at {instance.url}, which is not this machine, so it is started there")
    parts = urlsplit(instance.url)
    host = parts.hostname or "127.0.0.1"
    port = parts.port or (443 if parts.scheme == "https" else 80)
    sleeps = config.sleep_manager.auto_sleep_enabled
    added = []
    # Said even where it is the engine's default: vLLM's is every address of the machine.
    if option(given, "--host") is None:
        added += ["--host", host]
    if option(given, "--port") is None:
        added += ["--port", str(port)]
    if instance.served_model_name != instance.model and option(given, "--served-model-name") is None:
        added += ["--served-model-name", instance.served_model_name]
    own = {**config.kvcached, **instance.kvcached_env, **instance.engine_env}
    ours = _kvcached(instance, own)
    if instance.gpu != _ANY_GPU:
        ours["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        ours["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, instance.gpu))
    if instance.engine == "vllm":
        if sleeps and not {"--enable-sleep-mode", "--no-enable-sleep-mode"} & set(given):
            added.append("--enable-sleep-mode")
        if "--enable-sleep-mode" in (*given, *added):
            ours["VLLM_SERVER_DEV_MODE"] = "1"  # else there are no routes to have it sleep
    elif sleeps and "--enable-memory-saver" not in given:
        added.append("--enable-memory-saver")

    environment = {**caller, **ours, **own}
    for name in ("PYTHONUNBUFFERED", "SPT_NOENV"):
        # A log is read while the engine runs. Engines that give their processes names keep the environment
        # readable, by which they are found.
        environment.setdefault(name, "1")
    bin_folder = None
    if instance.using_venv and instance.venv_path:
        venv = os.path.normpath(folder / Path(instance.venv_path).expanduser())
        bin_folder = os.path.join(venv, "bin")  # noqa: PTH118, the rest of it is text
        environment["PATH"] = os.pathsep.join([bin_folder, environment.get("PATH", os.defpath)])
        environment["VIRTUAL_ENV"] = venv
        environment.pop("PYTHONHOME", None)
    command = (*_program(instance, bin_folder, environment), *given, *added)
    bound = option(given, "--host") or host
    return Plan(instance.name, command, environment, str(folder), instance.url, bound, port)


def _kvcached(instance: Instance, own: Mapping[str, str]) -> dict[str, str]:
    named = own.get("KVCACHED_IPC_NAME")
    if instance.ipc_name and named not in (None, instance.ipc_name):
        raise LaunchError(f"has ipc_name {instance.ipc_name}, and KVCACHED_IPC_NAME={named}, too", 2)
    enabled = own.get("ENABLE_KVCACHED", "true")
    return {
        "ENABLE_KVCACHED": enabled,
        "KVCACHED_AUTOPATCH": enabled,
        "KVCACHED_IPC_NAME": instance.ipc_name or instance.name,
    }


def _program(instance: Instance, bin_folder: str | None, environment: Mapping[str, str]) -> list[str]:
    names = ("vllm",) if instance.engine == "vllm" else ("python", "python3")
    found = next(
        filter(None, (shutil.which(n, path=bin_folder or environment.get("PATH")) for n in names)), None
    )
    if found is None:
        where = bin_folder or "the folders of PATH"
        raise LaunchError(f"needs the program {names[0]}, which is not in {where}")
    if instance.engine == "vllm":
        return [found, "serve", instance.model]
    return [found, "-m", "sglang.launch_server", "--model-path", instance.model]


def option(arguments: tuple[str, ...], name: str) -> str | None:
    """As the engine takes it: the last one counts."""
    found = None
    for word, following in zip(arguments, (*arguments[1:], None)):
        if word == name and following is not None:
            found = following
        elif word.startswith(f"{name}="):
            found = word[len(name) + 1 :]
    return found


def is_here(instance: Instance) -> bool:
    """Whether the instance is this machine's to start: its arguments say where it listens, or its URL is an
    address of this machine."""
    if instance.url is None:
        return False
    if option(instance.engine_args, "--host") or option(instance.engine_args, "--port"):
        return True
    host = urlsplit(instance.url).hostname or ""
    try:
        addresses = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return any(_bind(family, address[:2], 0) is None for family, *_, address in addresses)


def check_port(host: str, port: int) -> None:
    """LaunchError: an engine could not listen there."""
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise LaunchError(f"listens at {host}, which is no address") from None
    problems = [_bind(family, address[:2], port) for family, *_, address in addresses]
    # A name may have addresses of IPv6 where the machine has none.
    if not all(each and each.errno == errno.EADDRNOTAVAIL for each in problems):
        problems = [each for each in problems if each and each.errno != errno.EADDRNOTAVAIL]
    for each in problems:
        if each is not None:
            raise LaunchError(f"cannot have port {port} of {host}: {each.strerror}")


def _bind(family: int, address: tuple[object, ...], port: int) -> OSError | None:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address[0], port))
    except OSError as error:
        return error
    return None
