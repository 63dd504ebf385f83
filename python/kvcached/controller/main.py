# SPDX-License-Identifier: Apache-2.0
"""kvcached-controller: one address for many models."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from kvcached.controller import config as configs
from kvcached.controller import connections, logs, proxy
from kvcached.controller.access import Keys, KeysError, read_keys
from kvcached.controller.app import Locks, Service
from kvcached.controller.discovery import Discovery
from kvcached.controller.document import ConfigError
from kvcached.controller.metrics import Metrics
from kvcached.controller.node import Node
from kvcached.controller.reservation import DaemonReserver, Reserver
from kvcached.controller.work import in_thread

log = logging.getLogger("kvcached.controller")

DONE, FAILED, USAGE = 0, 1, 2
QUIET_SECONDS = 0.05
KILL_SECONDS = 0.001  # aiohttp takes 0 for ever
ADMIN_CONNECTIONS, ADMIN_BACKLOG = 64, 64  # where administrators have a port of their own
NAME_THREADS = 64


class StartError(Exception):
    """One sentence."""


class Controller:
    """What one configuration makes. start(), and then stop() or kill(), which run() does for signals."""

    def __init__(
        self,
        config: configs.Config,
        locks: Locks,
        arguments: argparse.Namespace | None = None,
        reserver: Reserver | None = None,
    ) -> None:
        """`arguments`: where to read the configuration again, if it shall be. reserver: None: the daemons of
        the GPUs."""
        self._loop = asyncio.get_running_loop()
        self._config, self._arguments = config, arguments
        self._reserver = reserver or DaemonReserver()
        self._requests = proxy.connect_session()
        # No engine is asked later because others don't answer.
        self._asks = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=proxy.KEEP_ALIVE_S), trust_env=False
        )
        self.node = Node(self._asks, self._reserver, Metrics(), version())
        self.service = Service(self.node, self._requests, config.router, locks)
        self._discovery = Discovery(self._apply, self.node.metrics.discovery_failed)
        self._runners: list[web.AppRunner] = []
        self._servers: list[asyncio.AbstractServer] = []
        self._ports: list[connections.Port] = []
        self._killed = asyncio.Event()
        self._reloading: asyncio.Task[None] | None = None
        self._reload_again = False
        self.addresses: dict[str, str] = {}  # "user", and "admin" where it is another one

    async def start(self) -> None:
        """StartError: it cannot listen; close() is still to be called."""
        await self._discovery.begin(self._config)
        self._apply()
        await self._listen(self._config.router)
        self.node.start()

    async def stop(self) -> None:
        """Accepts nothing more, and returns when what was accepted has been answered, or after kill()."""
        for server in self._servers:
            server.close()
        self.node.stop()
        self.service.stop()
        while not self.killed and not self._quiet:
            try:
                await asyncio.wait_for(self._killed.wait(), QUIET_SECONDS)
            except asyncio.TimeoutError:
                continue

    @property
    def _quiet(self) -> bool:
        """What clients have been told has left, too."""
        handled = self.node.quiet and self.service.n_handlers == 0
        return handled and all(port.has_nothing for port in self._ports)

    def kill(self) -> None:
        self._killed.set()

    @property
    def killed(self) -> bool:
        return self._killed.is_set()

    async def close(self) -> None:
        if self._reloading:
            self._reloading.cancel()
        for server in self._servers:
            server.close()
        for runner in self._runners:
            await runner.cleanup()
        await self._discovery.close()
        await self.node.close()
        if isinstance(self._reserver, DaemonReserver):
            self._reserver.close()
        await self._requests.close()
        await self._asks.close()

    async def run(self) -> None:
        """Until a signal ends it."""
        ended = asyncio.Event()

        def end() -> None:
            """The second signal does not wait."""
            if ended.is_set():
                self.kill()
            ended.set()

        self._loop.add_signal_handler(signal.SIGHUP, self.reload)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, end)
        try:
            await self.start()
            for name, address in self.addresses.items():
                log.info("Listening on %s (%s)", address, name)
            notify("READY=1")
            await ended.wait()
            notify("STOPPING=1")
            log.info("Stopping: what was accepted is finished; another signal ends it now")
            await self.stop()
        finally:
            await self.close()

    def _apply(self) -> None:
        self.node.apply(self._config, self._discovery.instances, self._discovery.addresses)

    # ---- Listening ----

    async def _listen(self, router: configs.Router) -> None:
        service = self.service
        routes = [("user", router.router_host, router.router_port, service.user_routes())]
        if router.admin_port is None:
            # Those of administrators first: /health/all is no model's health.
            routes[0] = (*routes[0][:3], service.admin_routes() + service.user_routes())
        else:
            routes.append(("admin", router.admin_host, router.admin_port, service.admin_routes()))
        n_descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        most, backlog = connections.share(n_descriptors, router.max_connections)
        if most < router.max_connections:
            log.warning("%d descriptors suffice for %d connections of clients", n_descriptors, most)
        for name, host, port, of_port in routes:
            runner = web.AppRunner(
                service.application(of_port), handler_cancellation=True, shutdown_timeout=KILL_SECONDS
            )
            await runner.setup()
            self._runners.append(runner)
            if name == "admin":
                most, backlog = ADMIN_CONNECTIONS, ADMIN_BACKLOG
            await self._listen_at(name, host, port, runner.server, most, backlog)

    async def _listen_at(
        self, name: str, host: str, port: int, server: web.Server | None, most: int, backlog: int
    ) -> None:
        assert server
        metrics, refuse = self.node.metrics, self.service.refuse_unread
        clients = connections.Port(name, server, most, self._limits, refuse, metrics)
        self._ports.append(clients)
        try:
            listening = await self._loop.create_server(clients.connect, host, port, backlog=backlog)
        except OSError as fault:
            reason = os.strerror(fault.errno) if fault.errno and fault.errno > 0 else str(fault)
            raise StartError(f"Nobody can listen on {host}:{port}: {reason}") from None
        self._servers.append(listening)
        self.addresses[name] = f"http://{_join(listening.sockets[0].getsockname())}"

    def _limits(self) -> connections.Limits:
        router = self.service.router
        return connections.Limits(router.head_timeout_seconds, router.idle_timeout_seconds)

    # ---- Changes ----

    def reload(self) -> None:
        """Soon. One that is asked for meanwhile comes after it, for the file may have changed again."""
        self._reload_again = True
        if self._reloading is None or self._reloading.done():
            self._reloading = self._loop.create_task(self._reload())

    async def _reload(self) -> None:
        """All of it, or nothing."""
        while self._reload_again and self._arguments is not None:
            self._reload_again = False
            notify("RELOADING=1")
            result = "failed"
            try:
                await self._read(self._arguments)
                result = "ok"
                log.info("The configuration was read")
            except (StartError, ConfigError, KeysError) as fault:
                log.error("The old configuration stays: %s", fault)
            except Exception:
                log.exception("The old configuration stays")
            self.node.metrics.reloads.labels(result).inc()
            notify("READY=1")

    async def _read(self, arguments: argparse.Namespace) -> None:
        config, locks = await in_thread(read, arguments)
        if where(config.router) != where(self._config.router):
            log.warning("Other addresses and ports need a restart")
        config = replace(config, router=replace(config.router, **where(self._config.router)))
        await self._discovery.begin(config)
        # From here on nothing waits: requests see all of it.
        self._config, self.service.router, self.service.locks = config, config.router, locks
        self._apply()


def where(router: configs.Router) -> dict[str, Any]:
    """What only a start can change."""
    names = (
        "router_host",
        "router_port",
        "admin_host",
        "admin_port",
        "max_body_bytes",
        "max_connections",
        "metrics",
    )
    return {name: getattr(router, name) for name in names}


def read(arguments: argparse.Namespace) -> tuple[configs.Config, Locks]:
    """The configuration with what the command line says, and the keys. StartError, ConfigError, KeysError."""
    path = arguments.config
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as fault:
        raise StartError(f"{path} cannot be read: {getattr(fault, 'strerror', None) or fault}") from None
    config = configs.parse(text, path)
    given = {"router_host": arguments.host, "router_port": arguments.port}
    router = replace(config.router, **{name: value for name, value in given.items() if value is not None})
    if not router.enable_router:
        raise StartError(f"{path}: router.enable_router is false, so there is nothing to do")
    user = read_keys(router.api_keys_file) if router.api_keys_file else []
    admin = read_keys(router.admin_keys_file) if router.admin_keys_file else []
    return replace(config, router=router), Locks(Keys(user), Keys(admin))


def version() -> str:
    try:
        return metadata.version("kvcached")
    except metadata.PackageNotFoundError:
        return "unknown"


def notify(state: str) -> None:
    """The service manager, where there is one."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as there:
            there.setblocking(False)
            there.sendto(state.encode(), "\0" + path[1:] if path.startswith("@") else path)
    except OSError:
        pass  # it is told for its own sake


def _join(address: Sequence[object]) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port: a number from 0 to 65535")
    return int(text)


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="kvcached-controller",
        description="Serves many models at one address, and lets those sleep that nobody asks for.",
        epilog="Exit status: 0 done, 1 failed, 2 usage.",
    )
    parser.add_argument("--config", "--config_path", required=True, metavar="FILE", help="the configuration")
    parser.add_argument("--host", help="where to listen, rather than router.router_host")
    parser.add_argument("--port", type=_port, help="the port, rather than router.router_port; 0: any")
    parser.add_argument("--check-config", action="store_true", help="only check the configuration")
    parser.add_argument("--log-format", choices=logs.FORMATS, default="text")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    parser.add_argument("--version", action="version", version=f"kvcached-controller {version()}")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(words)
    logs.begin(arguments.log_format, arguments.log_level)
    try:
        if arguments.check_config:
            read(arguments)
        else:
            asyncio.run(_run(arguments))
    except (StartError, ConfigError, KeysError) as fault:
        print(f"kvcached-controller: {fault}", file=sys.stderr)
        return FAILED
    return DONE


async def _run(arguments: argparse.Namespace) -> None:
    config, locks = read(arguments)
    connections.raise_limit(config.router.max_connections)
    # aiohttp looks engines' names up in the loop's threads: some that nobody resolves are no others' affair.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(NAME_THREADS))
    controller = Controller(config, locks, arguments)
    await controller.run()
    if controller.killed:
        # Python would wait for its threads, and these for daemons and name servers.
        logging.shutdown()
        os._exit(DONE)


if __name__ == "__main__":
    sys.exit(main())
