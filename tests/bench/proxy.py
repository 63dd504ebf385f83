# SPDX-License-Identifier: Apache-2.0
"""What it costs to ask an engine through kvcached-controller, and not directly.

Engine and clients share a processor, and the controller has another one, where there are two. The two ways
take turns.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from bench import report as reports
from bench import web_clients
from bench.rig import pinned
from bench.web_clients import Found, Load

ROOT = Path(__file__).resolve().parents[2]
ENGINE = Path(__file__).with_name("web_engine.py")

CLIENTS = (1, 64, 512)


def load_of(kind: str, clients: int, few: bool) -> Load:
    if kind == "whole":
        return Load(clients, 2 if few else max(8, 800 // clients))
    if kind == "paced":
        return Load(clients, 1 if few else 2 if clients > 1 else 6, 8 if few else 40)
    return Load(clients, 1 if few else 2, 50 if few else 400, paced=False)


NEEDS = ("aiohttp", "prometheus_client", "yaml")


def python() -> str:
    """One that has what the controller needs, if there is any: this one, or .venv's."""
    return sys.executable if all(map(find_spec, NEEDS)) else str(ROOT / ".venv/bin/python")


def can_measure() -> bool:
    words = [python(), "-c", f"import {', '.join(NEEDS)}"]
    try:
        return subprocess.run(words, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@contextmanager
def engine(processor: int | None = None) -> Iterator[str]:
    """Its address."""
    with pinned_if(processor):
        program = subprocess.Popen(
            [python(), str(ENGINE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    with program:
        assert program.stdout is not None
        try:
            yield program.stdout.readline().strip()
        finally:
            program.communicate()


@contextmanager
def controller(folder: Path, address: str, processor: int | None = None) -> Iterator[tuple[str, int]]:
    """In front of that engine: its address, and its process. It says what it logs only if it fails."""
    config = folder / "controller.yaml"
    instance = {"name": "engine", "model": "model", "engine": "vllm", "url": address}
    config.write_text(json.dumps({"router": {"router_port": 0}, "instances": [instance]}))
    words = [python(), "-m", "kvcached.controller.main", "--config", str(config)]
    variables = {**os.environ, "PYTHONPATH": str(ROOT / "python")}
    with pinned_if(processor):
        program = subprocess.Popen(words, env=variables, stderr=subprocess.PIPE, text=True)
    with program:
        assert program.stderr is not None
        log = iter(program.stderr.readline, "")
        said = []
        where = None
        for line in log:
            said.append(line)
            where = where or re.search(r"Listening on (\S+) \(user\)", line)
            if where and "awake" in line:
                break
        else:
            raise RuntimeError("".join(said) or "the controller has ended")
        assert where is not None
        rest = threading.Thread(target=lambda: [None for _ in log])  # lest its log fill the pipe
        rest.start()
        try:
            yield where[1], program.pid
        finally:
            program.terminate()
            program.wait()
            rest.join()


@contextmanager
def pinned_if(processor: int | None) -> Iterator[None]:
    if processor is None:
        yield
    else:
        with pinned(processor):
            yield


def measure(
    folder: Path, processors: tuple[int, int], rounds: int, few: bool, progress: Callable[[str], None]
) -> Iterator[reports.Proxied]:
    """By kind of request and number of clients."""
    own, other = processors
    with engine(own) as address, controller(folder, address, other) as (through, pid), pinned(own):
        addresses = {"direct": address, "controller": through}
        for kind in reports.KINDS:
            for clients in CLIENTS:
                progress(f"controller: {reports.KINDS[kind]}, {clients} clients")
                load = load_of(kind, clients, few)
                found = {way: Found() for way in addresses}
                used = 0
                for i in range(rounds + 1):
                    for way, where in addresses.items():
                        before = processor_time(pid)
                        one = asyncio.run(web_clients.ask(where, load))
                        if i:  # the first round makes connections, and is not counted
                            found[way].add(one)
                            used += processor_time(pid) - before if way == "controller" else 0
                yield proxied(kind, load, found, used)


def proxied(kind: str, load: Load, found: dict[str, Found], used: int) -> reports.Proxied:
    def way(name: str) -> reports.Way:
        of = found[name]
        return reports.Way.of(load.tokens, of.first_byte, of.rates, of.seconds)

    per_answer = used / len(found["controller"].first_byte)
    return reports.Proxied(kind, load.clients, load.tokens, way("direct"), way("controller"), per_answer)


def processor_time(pid: int) -> int:
    """Nanoseconds that its threads have run."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks)
