# SPDX-License-Identifier: Apache-2.0
"""What it costs to look at a daemon: those who look, and those who ask it for memory meanwhile."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.broker import Daemon, Programs, Site
from harness.terminal import Terminal
from harness.web import Web, ask

LOOKS = 20
STATE_LASTS_S = 0.12  # with a margin
PERIOD_S = 0.1  # of those who look again and again: the shortest that they take
STORM = 16  # connections


def time_listing(site: Site, daemon: Daemon) -> float:
    """Of the program alone, from its start to its end."""
    command = [str(site.program("kvctl/kvctl")), "--socket", str(daemon.socket), "list"]
    nowhere = [(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)]
    start = time.perf_counter_ns()
    pid = os.posix_spawn(command[0], command, site.environment(), file_actions=nowhere)
    status = os.waitpid(pid, 0)[1]
    elapsed = time.perf_counter_ns() - start
    if status != 0:
        raise RuntimeError(f"kvctl list: status {os.waitstatus_to_exitcode(status)}")
    return elapsed


def time_answers(web: Web, path: str) -> list[float]:
    """Of requests that each get a state of their own, over one connection."""
    client = web.client()
    elapsed = []
    for _ in range(LOOKS):
        time.sleep(STATE_LASTS_S)  # until the last one's state serves no other
        start = time.perf_counter_ns()
        answer = ask(client, "GET", path)
        elapsed.append(float(time.perf_counter_ns() - start))
        if answer.status != 200:
            raise RuntimeError(f"{path}: status {answer.status}")
    client.close()
    return elapsed


def processor_time(pid: int) -> int:
    """Nanoseconds that a process of one thread has run."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


@contextmanager
def background(work: Callable[[], None], threads: int = 1) -> Iterator[None]:
    """Does something over and over until the end."""
    done = threading.Event()

    def repeat() -> None:
        while not done.is_set():
            work()

    crowd = [threading.Thread(target=repeat) for _ in range(threads)]
    for thread in crowd:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in crowd:
            thread.join()


@contextmanager
def kvtop(site: Site, daemon: Daemon) -> Iterator[int]:
    """Drawing as often as it can be told to, on a large screen; its process."""
    command = [str(site.program("kvctl/kvctl")), "--socket", str(daemon.socket)]
    command += ["kvtop", "-r", str(PERIOD_S)]
    with Terminal(command, site.environment(), columns=200, rows=60) as terminal:
        terminal.expect("KVCache Memory Usage")
        with background(lambda: terminal.drop(PERIOD_S)):
            yield terminal.process.pid


def time_kvtop(site: Site, daemon: Daemon) -> list[float]:
    """The processor's time of a look: asking, drawing, and writing to the terminal."""
    used = []
    with kvtop(site, daemon) as pid:
        for _ in range(LOOKS):
            before = processor_time(pid)
            time.sleep(PERIOD_S)
            used.append(float(processor_time(pid) - before))
    return used


@contextmanager
def page(web: Web) -> Iterator[None]:
    client = web.client()

    def look() -> None:
        ask(client, "GET", "/api/v1/state")
        time.sleep(PERIOD_S)

    with background(look):
        yield
    client.close()


@contextmanager
def storm(web: Web) -> Iterator[None]:
    local = threading.local()

    def scrape() -> None:
        if not hasattr(local, "client"):
            local.client = web.client()
        ask(local.client, "GET", "/metrics")

    with background(scrape, STORM):
        yield


def take(site: Site, few: Daemon, many: Daemon, measure: Callable[[str], None]) -> dict[str, list[float]]:
    """Nanoseconds by what looks. `measure` has grants of `many` measured, under a name: "watched", while
    kvtop and a status page look; "storm", while many connections scrape without a pause; "elsewhere", while
    they scrape the other daemon, which costs the machine the same."""
    web, other = Web(Programs(site), many), Web(Programs(site), few)
    found = {
        "list": [time_listing(site, many) for _ in range(LOOKS)],
        "metrics": time_answers(web, "/metrics"),
        "state": time_answers(web, "/api/v1/state"),
        "kvtop": time_kvtop(site, many),
    }
    measure("quiet")
    with kvtop(site, many), page(web):
        measure("watched")
    with storm(other):
        measure("elsewhere")
    with storm(web):
        measure("storm")
    return found
