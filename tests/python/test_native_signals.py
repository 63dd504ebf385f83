# SPDX-License-Identifier: Apache-2.0
"""Signals: Ctrl-C ends a call, whatever it waits for, and what the call had asked for is undone. Each test in
an interpreter of its own, whose daemon is stopped while the call waits, for as long as it takes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any, Callable

import pytest

from harness.broker import Daemon, Result, eventually

PREAMBLE = """
import contextlib, os, signal, sys, threading, time
from kvcached import _native
signal.signal(signal.SIGINT, signal.default_int_handler) # a shell has its background jobs ignore it
PAGE = 2 << 20
DAEMON = int(os.environ["DAEMON"])

def count_turns():
    turns = 0
    for task in os.listdir(f"/proc/{DAEMON}/task"):
        with open(f"/proc/{DAEMON}/task/{task}/status") as status:
            turns += sum(int(line.split()[1]) for line in status if "ctxt_switches" in line)
    return turns

def await_rest():
    # The daemon has done what there was to do.
    before = -1
    while before != (now := count_turns()):
        before = now
        time.sleep(0.05)

def stop_daemon():
    # While it sleeps: the emulated device has a lock that all processes share.
    await_rest()
    os.kill(DAEMON, signal.SIGSTOP)

@contextlib.contextmanager
def interrupted(exception=KeyboardInterrupt):
    # Not before the call waits, and then soon.
    stop_daemon()
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    began = time.monotonic()
    try:
        yield
        time.sleep(0) # where the call has succeeded
    except exception:
        pass
    else:
        raise AssertionError("not interrupted")
    finally:
        os.kill(DAEMON, signal.SIGCONT)
    assert 0.2 < time.monotonic() - began < 2

def open_all(**options):
    client = _native.Client(instance="engine", timeout_ms=-1, **options)
    region = client.open_region(16, PAGE)
    blocks = _native.Blocks([region], PAGE // 8)
    return client, region, blocks

def soon(condition):
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)

"""


@pytest.fixture
def under_signals(
    run_python: Callable[..., Result], daemon: Daemon, kvctl: Callable[..., Result]
) -> Iterator[Callable[..., Result]]:
    """run_python(), and then nothing is used."""

    def run(code: str, **options: Any) -> Result:
        return run_python(PREAMBLE + code, DAEMON=str(daemon.pid), **options)

    yield run
    if not daemon.site.killed:
        os.kill(daemon.pid, signal.SIGCONT)
        eventually(lambda: sum(i["used_bytes"] for i in kvctl("list", "--json").json()) == 0)


def test_opening(under_signals: Callable[..., Result]) -> None:
    under_signals(
        """
with interrupted():
    _native.Client(timeout_ms=-1)
client = _native.Client(instance="engine", timeout_ms=-1)
with interrupted():
    client.open_region(16, PAGE)
region = client.open_region(16, PAGE)
region.map([0])
region.unmap([0])
with interrupted():
    client.trim()
with interrupted():
    _native.Blocks([region], PAGE // 8, null_block=True)
blocks = _native.Blocks([region], PAGE // 8, null_block=True)
"""
    )


def test_pages(under_signals: Callable[..., Result]) -> None:
    """A map is undone, an unmap done."""
    under_signals(
        """
client = _native.Client(instance="engine", timeout_ms=-1, min_reserved_pages=0, max_reserved_pages=0)
region = client.open_region(16, PAGE)
region.map([0])
with interrupted():
    region.map([1, 2])
soon(lambda: client.status()["used_bytes"] == PAGE)
region.map([1, 2])
with interrupted():
    region.unmap([0, 1])
soon(lambda: client.status()["used_bytes"] == PAGE)
region.unmap([2])
"""
    )


@pytest.mark.parametrize("ready", [0, 2])
def test_blocks(under_signals: Callable[..., Result], ready: int) -> None:
    """Nobody has blocks that nobody was told of."""
    under_signals(
        f"""
client, region, blocks = open_all(min_reserved_pages={ready}, max_reserved_pages={ready})
"""
        """
for call in (lambda: blocks.alloc(100), lambda: blocks.reserve(100), lambda: blocks.want(100, -1)):
    with interrupted():
        call()
    status = blocks.status()
    assert status["used_blocks"] == status["reserved_blocks"] == 0, status
ids = blocks.alloc(128)
assert len(set(ids)) == 128
with interrupted():
    blocks.free(ids)
blocks.free(blocks.alloc(128))
"""
    )


def test_a_call_that_succeeds_all_the_same(under_signals: Callable[..., Result]) -> None:
    """The answer comes while the handler runs: there are blocks, and they are free again."""
    under_signals(
        """
client, region, blocks = open_all()
def on_signal(number, frame):
    os.kill(DAEMON, signal.SIGCONT)
    soon(lambda: client.status()["used_bytes"] >= 13 * PAGE)
    await_rest()
    raise KeyboardInterrupt
signal.signal(signal.SIGINT, on_signal)
with interrupted():
    blocks.alloc(100)
status = blocks.status()
assert status["used_blocks"] == 0 and status["mapped_total"] >= 13, status
"""
    )


def test_waiting_for_another_thread(under_signals: Callable[..., Result]) -> None:
    """One maps all pages, the other waits for that one; which goes on."""
    under_signals(
        """
client, region, blocks = open_all(min_reserved_pages=0)
lists = []
def take():
    lists.append(blocks.alloc(128))
with interrupted():
    thread = threading.Thread(target=take)
    thread.start()
    while blocks.status()["empty_pages"] > 0:
        time.sleep(0.01)
    blocks.alloc(8)
thread.join()
assert len(lists[0]) == blocks.status()["used_blocks"] == 128
"""
    )


def test_attaching(under_signals: Callable[..., Result]) -> None:
    under_signals(
        """
scheduler = _native.Client(instance="split", role=_native.ROLE_SCHEDULER, timeout_ms=-1)
worker = _native.Client(instance="split", role=_native.ROLE_WORKER)
with interrupted():
    scheduler.attach(0, 0, timeout_ms=-1)
own = worker.open_region(8, PAGE, flags=_native.ORDERED)
remote = scheduler.attach(0, 0)
with interrupted():
    remote.map([1])
remote.close()
"""
    )


@pytest.mark.parametrize("what", ["blocks", "region", "client"])
def test_closing(under_signals: Callable[..., Result], what: str) -> None:
    """What is closed is closed."""
    under_signals(
        f"""
client, region, blocks = open_all()
blocks.alloc(100)
with interrupted():
    {what}.close()
"""
        """
client.close()
other = _native.Client(instance="other", timeout_ms=-1)
soon(lambda: other.status()["used_bytes"] == 0)
"""
    )


def test_at_the_end(under_signals: Callable[..., Result]) -> None:
    """The interpreter comes to its end."""
    under_signals(
        """
import atexit
client, region, blocks = open_all()
blocks.alloc(100)
stop_daemon()
timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
timer.daemon = True
timer.start()
""",
        limit_s=10,
    )


def test_a_handler_that_does_not_raise(under_signals: Callable[..., Result]) -> None:
    """It runs while the call waits, and the call goes on."""
    under_signals(
        """
client, region, blocks = open_all()
heard = []
def on_signal(number, frame):
    heard.append(blocks.status()["used_blocks"])
    blocks.available()
    os.kill(DAEMON, signal.SIGCONT)
signal.signal(signal.SIGINT, on_signal)
stop_daemon()
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
assert len(blocks.alloc(100)) == 100
assert heard == [0]
"""
    )


def test_a_handler_that_closes_all(under_signals: Callable[..., Result]) -> None:
    """What is in use is closed when the call has ended."""
    under_signals(
        """
client, region, blocks = open_all()
def on_signal(number, frame):
    for each in (blocks, region, client):
        each.close()
    raise SystemExit(7)
signal.signal(signal.SIGINT, on_signal)
with interrupted(SystemExit):
    blocks.alloc(100)
assert client.closed
"""
    )


def test_other_threads_go_on(under_signals: Callable[..., Result]) -> None:
    """Signals are the main thread's."""
    under_signals(
        """
client, region, blocks = open_all()
answers = []
stop_daemon()
thread = threading.Thread(target=lambda: answers.append(blocks.alloc(100)))
thread.start()
with interrupted():
    time.sleep(1)
thread.join()
assert len(answers[0]) == 100
"""
    )


# ---- In the log's handler ----


def test_an_interrupt_in_the_log_handler(under_signals: Callable[..., Result], daemon: Daemon) -> None:
    """An exception that is no error is the main thread's, and what is said next is passed on, too."""
    under_signals(
        """
heard = []
def handler(level, sentence):
    heard.append(sentence)
    raise KeyboardInterrupt if len(heard) == 1 else ValueError(sentence)
_native.set_log_handler(handler)
clients = [_native.Client(instance=name) for name in ("a", "b")]
unraisable = []
sys.unraisablehook = unraisable.append
try:
    os.kill(DAEMON, signal.SIGKILL)
    soon(lambda: len(heard) == 2)
    raise AssertionError("it is lost")
except KeyboardInterrupt:
    pass
soon(lambda: len(heard) == 2)
assert [type(each.exc_value) for each in unraisable] == [ValueError], unraisable
"""
    )
    daemon.wait()
    daemon.site.killed = True


def test_a_child_says_nothing_of_its_parent(under_signals: Callable[..., Result], daemon: Daemon) -> None:
    """What has been queued when a thread forks, while the main thread does not run Python."""
    result = under_signals(
        """
parent = os.getpid()
_native.set_log_handler(lambda level, sentence: os.write(1, b"%d\\n" % (os.getpid() == parent)))
client = _native.Client(instance="engine")
def fork():
    time.sleep(0.2) # the main thread waits
    os.kill(DAEMON, signal.SIGKILL)
    soon(lambda: not client.status()["connected"])
    time.sleep(0.2)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGUSR1, lambda number, frame: None)
        for _ in range(5):
            os.kill(os.getpid(), signal.SIGUSR1) # what is to be done between two steps is done
            time.sleep(0.02)
        os._exit(0)
    os.waitpid(child, 0)
thread = threading.Thread(target=fork)
thread.start()
thread.join()
soon(lambda: sum(range(100)) > 0)
"""
    )
    daemon.wait()
    daemon.site.killed = True
    assert result.out == "1\n"


# ---- Interpreters ----

IN_ANOTHER_INTERPRETER = """
import sys
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters

def create():
    if sys.version_info >= (3, 13):
        return interpreters.create(KIND)
    if sys.version_info >= (3, 12):
        return interpreters.create(isolated=KIND == "isolated")
    return interpreters.create()

def run():
    other = create()
    interpreters.run_string(other, '''if True:
        import os
        try:
            import kvcached._native
        except ImportError as error:
            os.write(1, (str(error) + chr(10)).encode())
        else:
            os.write(1, b"imported" + bytes([10]))
    ''')
    interpreters.destroy(other)

"""


@pytest.mark.parametrize("kind", ["legacy", "isolated"])
@pytest.mark.parametrize("first", [True, False])
def test_in_a_sub_interpreter(run_python: Callable[..., Result], kind: str, first: bool) -> None:
    """It is refused there, and works in the main interpreter, before and after."""
    code = f"KIND = {kind!r}\n" + IN_ANOTHER_INTERPRETER
    use = """
from kvcached import _native
client = _native.Client()
client.close()
"""
    said = run_python(code + ("run()" + use if first else use + "run()\nclient = _native.Client()")).out
    if kind == "legacy":
        assert said == "kvcached works in the main interpreter only, and this is a sub-interpreter\n"
    else:
        assert "interpreter" in said
        assert "imported" not in said


def test_imported_anew(run_python: Callable[..., Result]) -> None:
    run_python(
        """
import sys
from kvcached import _native
first = _native
client = first.Client()
del sys.modules["kvcached._native"], sys.modules["kvcached"]
from kvcached import _native
assert _native.Client is first.Client and _native.Error is first.Error
_native.Client().close()
"""
    )
