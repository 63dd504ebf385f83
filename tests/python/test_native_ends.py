# SPDX-License-Identifier: Apache-2.0
"""Ends: of the interpreter, in a forked child, of the daemon. Each in an interpreter of its own, which must
come to its end, in time, with status 0; and then the daemon has all its memory back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Callable

import pytest

from harness import tasks
from harness.broker import Daemon, Programs, Result, Site, eventually

PREAMBLE = """
import ctypes, os, signal, sys, threading, time
from kvcached import _native
PAGE = 2 << 20

def open_all(**options):
    client = _native.Client(instance="engine", **options)
    region = client.open_region(16, PAGE)
    blocks = _native.Blocks([region], PAGE)
    ids = blocks.alloc(6)
    return client, region, blocks, ids

"""


@pytest.fixture
def end(run_python: Callable[..., Result], kvctl: Callable[..., Result]) -> Iterator[Callable[..., Result]]:
    """run_python(), and then nothing is used."""

    def run(code: str, **options: Any) -> Result:
        return run_python(PREAMBLE + code, **options)

    yield run
    eventually(lambda: sum(i["used_bytes"] for i in kvctl("list", "--json").json()) == 0)


# ---- The interpreter's ----


def test_with_everything_open(end: Callable[..., Result]) -> None:
    end("client, region, blocks, ids = open_all(); capsules = [region.tensor(0, PAGE) for _ in range(3)]")


def test_with_everything_in_cycles(end: Callable[..., Result]) -> None:
    end(
        """
class Engine:
    def __init__(self):
        self.all = open_all(reclaim=self.reclaim)
    def reclaim(self, n_bytes, deadline_ms):
        pass
    def __del__(self):
        self.all[2].close()
Engine()
sys.engine = Engine
"""
    )


def test_by_an_exception(end: Callable[..., Result]) -> None:
    assert "KeyboardInterrupt" in end("all = open_all()\nraise KeyboardInterrupt", rc=-2).err


def test_with_a_thread_in_a_call(end: Callable[..., Result]) -> None:
    """A thread that is in a call for ever."""
    end(
        """
scheduler = _native.Client(instance="split", role=_native.ROLE_SCHEDULER)
all = open_all()
begun = threading.Event()
def attach():
    begun.set()
    scheduler.attach(0, 0, timeout_ms=-1)
sys.setswitchinterval(1000)
threading.Thread(target=attach, daemon=True).start()
begun.wait()
"""
    )


def test_with_threads_at_work(end: Callable[..., Result]) -> None:
    end(
        """
client, region, blocks, ids = open_all()
begun = threading.Barrier(5)
def work():
    begun.wait()
    while True:
        blocks.free(blocks.alloc(3))
        blocks.trim()
for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
begun.wait()
threading.excepthook = lambda args: None
"""
    )


def test_while_others_open(end: Callable[..., Result]) -> None:
    end(
        """
begun = threading.Barrier(4)
def work():
    begun.wait()
    while True:
        open_all()[0].close()
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
begun.wait()
threading.excepthook = lambda args: None
"""
    )


LOWER = """
def lower(instance="engine", to="8M"):
    import subprocess
    subprocess.run([os.environ["KVCTL"], "--socket", os.environ["KVCACHED_SOCKET"], "limit", instance, to],
                   check=True, stdout=subprocess.DEVNULL)
"""


def test_with_a_reclaim_under_way(end: Callable[..., Result], site: Site) -> None:
    """The function is at work when the interpreter ends, and would be for ever."""
    end(
        LOWER
        + """
begun = threading.Event()
def reclaim(n_bytes, deadline_ms):
    begun.set()
    threading.Event().wait()
all = open_all(reclaim=reclaim)
lower()
begun.wait()
""",
        KVCTL=str(site.program("kvctl/kvctl")),
    )


def test_with_a_reclaim_to_come(end: Callable[..., Result], site: Site) -> None:
    """Asked for, and the interpreter ends."""
    for _ in range(5):
        end(
            LOWER + 'lower(to="1G")\nall = open_all(reclaim=lambda n_bytes, deadline_ms: None)\nlower()',
            KVCTL=str(site.program("kvctl/kvctl")),
        )


def test_with_a_daemon_that_says_nothing(end: Callable[..., Result], daemon: Daemon) -> None:
    """A thread waits for it for ever, and what is closed is not confirmed."""
    try:
        end(
            f"""
other = _native.Client(instance="other", timeout_ms=-1)
other_region = other.open_region(64, PAGE)
all = open_all(timeout_ms=300)
os.kill({daemon.pid}, signal.SIGSTOP)
begun = threading.Event()
def wait():
    begun.set()
    other_region.map(range(60))
sys.setswitchinterval(1000)
threading.Thread(target=wait, daemon=True).start()
begun.wait()
"""
        )
    finally:
        tasks.go_on(daemon)


# The library's thread waits for the interpreter's lock with a reclaim. From before the limit is lowered until
# then this thread keeps the lock, so it asks the kernel by functions of the C library that do.
A_RECLAIM_WAITS = """
import platform, subprocess
calls = []
client = _native.Client(instance="engine", reclaim=lambda *_: calls.append(1))
region = client.open_region(8, PAGE)
region.map(range(6))
folders = [f"/proc/self/task/{task}" for task in os.listdir("/proc/self/task")]
(folder,) = [folder for folder in folders if open(folder + "/comm").read() == "kvclient\\n"]
limit = [os.environ["KVCTL"], "--socket", os.environ["KVCACHED_SOCKET"], "limit", "engine", "8M"]
when_told = ["sh", "-c", 'read -r _ && exec "$@"', "sh"]
kvctl = subprocess.Popen(when_told + limit, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
libc = ctypes.PyDLL(None)
FUTEX = {"x86_64": b"202", "aarch64": b"98"}[platform.machine()]
def waits_for_a_lock():
    call = ctypes.create_string_buffer(256)
    fd = libc.open((folder + "/syscall").encode(), os.O_RDONLY)
    assert fd >= 0 and libc.read(fd, call, 255) > 0 and libc.close(fd) == 0
    return call.value.split()[0] == FUTEX
sys.setswitchinterval(1000)
assert libc.write(kvctl.stdin.fileno(), b"\\n", 1) == 1
while not waits_for_a_lock():
    pass
"""


def test_a_reclaim_that_comes_too_late(end: Callable[..., Result], site: Site) -> None:
    """The client is closed meanwhile: the engine is not called any more."""
    end(
        A_RECLAIM_WAITS
        + """
client.close()
kvctl.stdin.close()
assert kvctl.wait() == 0
assert calls == []
""",
        KVCTL=str(site.program("kvctl/kvctl")),
    )


def test_with_a_sentence_to_come(run_python: Callable[..., Result], daemon: Daemon) -> None:
    """The library has something to say, and its handler is not called any more, or for the last time."""
    run_python(
        PREAMBLE
        + f"""
_native.set_log_handler(lambda level, sentence: None)
scheduler = _native.Client(instance="split", role=_native.ROLE_SCHEDULER)
all = open_all()
threading.Thread(target=lambda: scheduler.attach(0, 0, timeout_ms=-1), daemon=True).start()
os.kill({daemon.pid}, signal.SIGKILL)
threading.excepthook = lambda args: None
"""
    )
    daemon.wait()
    daemon.site.killed = True


@pytest.mark.parametrize("what", ["sentence", "reclaim"])
def test_after_the_end_nobody_comes(
    run_python: Callable[..., Result], site: Site, daemon: Daemon, what: str
) -> None:
    """A client that a thread is in stays open for longer than the interpreter, and its library's thread must
    not go there any more. What runs after Python's end is libc's atexit()."""
    lower = f"{site.program('kvctl/kvctl')} --socket {daemon.socket} limit engine 8M"
    then = {"sentence": f"kill -KILL {daemon.pid}", "reclaim": f"kill -CONT {daemon.pid}; {lower}"}[what]
    try:
        run_python(
            PREAMBLE
            + f"""
client = _native.Client(instance="engine", timeout_ms=-1, reclaim=lambda n_bytes, deadline_ms: None)
region = client.open_region(64, PAGE)
region.map(range(6))
_native.set_log_handler(lambda level, sentence: None)
libc = ctypes.CDLL(None)
libc.strdup.restype = ctypes.c_void_p
libc.__cxa_atexit.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
command = libc.strdup({f"{then} >/dev/null; sleep 0.5".encode()!r})
assert libc.__cxa_atexit(ctypes.cast(libc.system, ctypes.c_void_p), command, None) == 0
os.kill({daemon.pid}, signal.SIGSTOP)
begun = threading.Event()
def wait():
    begun.set()
    region.map(range(6, 60))
sys.setswitchinterval(1000)
threading.Thread(target=wait, daemon=True).start()
begun.wait()
"""
        )
    finally:
        if what == "sentence":
            daemon.wait()
            daemon.site.killed = True
        else:
            tasks.go_on(daemon)


def test_handlers_of_atexit_may_still_use_it(end: Callable[..., Result]) -> None:
    """Those that were registered after the import come first."""
    done = end(
        """
import atexit
client, region, blocks, ids = open_all()
atexit.register(lambda: print(len(blocks.alloc(2)), client.closed))
"""
    )
    assert done.out == "2 False\n"


def test_after_the_end_all_is_closed(end: Callable[..., Result]) -> None:
    done = end(
        """
client, region, blocks, ids = open_all()
class Late:
    def __init__(self):
        self.kept = client, blocks
    def __del__(self):
        try:
            self.kept[1].alloc(1)
        except ValueError:
            os.write(1, b"refused, %d\\n" % self.kept[0].closed)
late = Late()
"""
    )
    assert done.out == "refused, 1\n"


def test_without_a_daemon(end: Callable[..., Result], run_python: Callable[..., Result]) -> None:
    end(
        """
try:
    _native.Client(socket="/nowhere.sock")
except FileNotFoundError:
    pass
"""
    )


# ---- A forked child's ----

REFUSED = """
def refused(call):
    try:
        call()
    except _native.Error as error:
        assert error.code == _native.E_FORKED, (error, error.code)
    else:
        raise AssertionError("not refused")

def check_child():
    for call in (client.trim, client.dispatch, client.status, lambda: client.open_region(1, PAGE),
                 lambda: region.map([12]), lambda: region.tensor(0, 1),
                 lambda: blocks.alloc(9), lambda: blocks.alloc(1), lambda: blocks.free(ids), blocks.trim,
                 lambda: blocks.want(1), blocks.status):
        refused(call)
    assert blocks.available() == 0

def check_parent():
    assert client.status()["mapped_bytes"] >= 6 * PAGE
    blocks.free(ids)
    assert len(blocks.alloc(9)) == 9
    ctypes.memset(region.address, 1, PAGE)
"""


@pytest.mark.parametrize("way", ["sys.exit()", "os._exit(0)", "client.close(); sys.exit()", "blocks.close()"])
def test_fork(end: Callable[..., Result], way: str) -> None:
    end(
        REFUSED
        + f"""
client, region, blocks, ids = open_all(reclaim=lambda n_bytes, deadline_ms: None)
capsule = region.tensor(0, PAGE)
pid = os.fork()
if pid == 0:
    check_child()
    del capsule
    {way}
    sys.exit()
assert os.waitpid(pid, 0)[1] == 0
check_parent()
"""
    )


def test_fork_and_begin_anew(end: Callable[..., Result]) -> None:
    """A child may have clients of its own, on a device that its process has not used yet."""
    end(
        """
pid = os.fork()
if pid == 0:
    client, region, blocks, ids = open_all()
    sys.exit()
client, region, blocks, ids = open_all()
assert os.waitpid(pid, 0)[1] == 0
assert len(blocks.alloc(3)) == 3
"""
    )


def test_fork_after_the_driver(end: Callable[..., Result]) -> None:
    """A client in a child of a process that has used CUDA cannot be, and says why."""
    end(
        """
client, region, blocks, ids = open_all()
pid = os.fork()
if pid == 0:
    try:
        _native.Client()
    except _native.Error as error:
        assert "CUDA does not survive a fork" in str(error), error
        os._exit(0)
    os._exit(1)
assert os.waitpid(pid, 0)[1] == 0
"""
    )


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(end: Callable[..., Result], tmp_run: Any, method: str) -> None:
    script = tmp_run / "main.py"
    script.write_text(
        PREAMBLE
        + f"""
def child(queue):
    if {method == "fork"}:
        try:
            client.trim()
        except _native.Error as error:
            queue.put(error.code == _native.E_FORKED)
    else:
        mine = open_all()
        queue.put(len(mine[3]) == 6)

if __name__ == "__main__":
    import multiprocessing
    client, region, blocks, ids = open_all()
    context = multiprocessing.get_context("{method}")
    queue = context.Queue()
    process = context.Process(target=child, args=(queue,))
    process.start()
    assert queue.get(timeout=20)
    process.join()
    assert process.exitcode == 0
    assert len(blocks.alloc(3)) == 3
"""
    )
    end(f"import runpy; sys.argv = [{str(script)!r}]; runpy.run_path({str(script)!r}, run_name='__main__')")


def test_fork_while_threads_are_in_the_library(end: Callable[..., Result]) -> None:
    """Their locks are held for ever in the child, which comes to its end all the same."""
    end(
        REFUSED
        + """
client, region, blocks, ids = open_all()
stop = threading.Event()
def work():
    while not stop.is_set():
        blocks.free(blocks.alloc(3))
        blocks.trim()
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads:
    thread.start()
for _ in range(20):
    pid = os.fork()
    if pid == 0:
        check_child()
        client.close()
        sys.exit()
    assert os.waitpid(pid, 0)[1] == 0
stop.set()
for thread in threads:
    thread.join()
"""
    )


def test_fork_inside_reclaim(end: Callable[..., Result], site: Site) -> None:
    end(
        LOWER
        + """
statuses, done = [], threading.Event()
def reclaim(n_bytes, deadline_ms):
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    statuses.append(os.waitpid(pid, 0)[1])
    done.set()
all = open_all(reclaim=reclaim)
lower()
done.wait()
assert statuses == [0]
""",
        KVCTL=str(site.program("kvctl/kvctl")),
    )


def test_fork_while_a_reclaim_comes(end: Callable[..., Result], site: Site) -> None:
    """The child, which doesn't have the library's thread, doesn't wait for it at its end."""
    end(
        A_RECLAIM_WAITS
        + """
pid = os.fork()
if pid == 0:
    signal.alarm(10)
    sys.exit()
assert os.waitpid(pid, 0)[1] == 0
kvctl.stdin.close()
assert kvctl.wait() == 0
""",
        KVCTL=str(site.program("kvctl/kvctl")),
    )


# ---- The daemon's ----


@pytest.mark.parametrize("way", ["kill", "stop"])
def test_the_daemon_goes_first(
    run_python: Callable[..., Result], programs: Programs, daemon: Daemon, way: str
) -> None:
    """What is mapped goes on; everything else says so; the end is an ordinary one."""
    kill = {"kill": "SIGKILL", "stop": "SIGTERM"}[way]
    code = f"""
client, region, blocks, ids = open_all(min_reserved_pages=0)
capsule = region.tensor(0, PAGE)
os.kill({daemon.pid}, signal.{kill})
while client.status()["connected"]:
    time.sleep(0.001)
ctypes.memset(region.address, 1, PAGE)
blocks.free(ids[:3])
blocks.alloc(1)
try:
    blocks.alloc(12)
except _native.DisconnectedError as error:
    assert isinstance(error, ConnectionError)
else:
    raise AssertionError
"""
    run_python(PREAMBLE + code)
    assert daemon.wait() == {"kill": -9, "stop": 0}[way]
    daemon.site.killed = True


def test_a_call_waits_when_the_daemon_goes(run_python: Callable[..., Result], daemon: Daemon) -> None:
    run_python(
        PREAMBLE
        + f"""
scheduler = _native.Client(instance="split", role=_native.ROLE_SCHEDULER)
answers, begun = [], threading.Event()
def attach():
    begun.set()
    try:
        scheduler.attach(0, 0, timeout_ms=-1)
    except ConnectionError as error:
        answers.append(error)
sys.setswitchinterval(1000)
thread = threading.Thread(target=attach)
thread.start()
begun.wait()
os.kill({daemon.pid}, signal.SIGKILL)
thread.join()
assert type(answers[0]) is _native.DisconnectedError
"""
    )
    daemon.wait()
    daemon.site.killed = True


def test_a_killed_engine(site: Site, daemon: Daemon, kvctl: Callable[..., Result]) -> None:
    code = PREAMBLE + "all = open_all()\nprint(flush=True)\nsignal.pause()"
    environment = site.environment(KVCACHED_SOCKET=str(daemon.socket))
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        process.kill()
    eventually(lambda: sum(i["used_bytes"] for i in kvctl("list", "--json").json()) == 0)
