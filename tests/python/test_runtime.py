# SPDX-License-Identifier: Apache-2.0
"""Who this process is, what its environment says, and what its children have of it; no torch."""

from __future__ import annotations

import errno
import logging
import pickle
import weakref
from typing import Any, Callable

import pytest

from harness.broker import Result
from kvcached import (
    DaemonNotFoundError,
    DaemonTimeoutError,
    DisconnectedError,
    Error,
    KVCachedConfigError,
    runtime,
    utils,
)
from kvcached.integration.sglang import interfaces as sgi
from kvcached.integration.vllm import interfaces as kvi
from kvcached.layout import Layout

MIB = 1 << 20


@pytest.fixture
def set_(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """set_(name, value): a variable of the environment."""
    return monkeypatch.setenv


@pytest.mark.parametrize("default", [True, False])
def test_booleans(set_: Callable[[str, str], None], default: bool) -> None:
    for value, expected in (("true", True), (" Yes ", True), ("1", True), ("ON", True), ("false", False)):
        set_("KVCACHED_TEST", value)
        assert utils.env_bool("KVCACHED_TEST", default) is expected
    for value in ("0", "no", "OFF"):
        set_("KVCACHED_TEST", value)
        assert utils.env_bool("KVCACHED_TEST", default) is False
    set_("KVCACHED_TEST", " ")
    assert utils.env_bool("KVCACHED_TEST", default) is default
    assert utils.env_bool("KVCACHED_NOT_SET", default) is default
    set_("KVCACHED_TEST", "2")
    with pytest.raises(KVCachedConfigError, match="KVCACHED_TEST=2: neither true nor false"):
        utils.env_bool("KVCACHED_TEST", default)


def test_autopatch_follows_enable(set_: Callable[[str, str], None]) -> None:
    assert not utils.autopatch()
    set_("ENABLE_KVCACHED", "true")
    assert utils.autopatch()
    set_("KVCACHED_AUTOPATCH", "false")
    assert not utils.autopatch()


def test_numbers(set_: Callable[[str, str], None]) -> None:
    assert (utils.page_size(), utils.max_cached_tokens(), utils.max_cached_tokens(5)) == (2 * MIB, None, 5)
    set_("KVCACHED_PAGE_SIZE_MB", " 4 ")
    assert utils.page_size() == 4 * MIB
    for wrong in ("0", "-2", "3"):
        set_("KVCACHED_PAGE_SIZE_MB", wrong)
        with pytest.raises(KVCachedConfigError, match="not a positive multiple of 2"):
            utils.page_size()
    for value, expected in (("0", 0), ("-1", None), ("7", 7)):
        set_("KVCACHED_MAX_CACHED_TOKENS", value)
        assert utils.max_cached_tokens(5) == expected


def test_time_limit(set_: Callable[[str, str], None]) -> None:
    assert utils.ipc_timeout() == 60
    for value, expected in (("1.5", 1.5), (" 3 ", 3), ("0", None), ("-1", None), ("", 60)):
        set_("KVCACHED_IPC_TIMEOUT", value)
        assert utils.ipc_timeout() == expected
    for wrong in ("soon", "nan", "1e3", ".5"):
        set_("KVCACHED_IPC_TIMEOUT", wrong)
        with pytest.raises(KVCachedConfigError, match="not a number of seconds"):
            utils.ipc_timeout()


def test_holes(set_: Callable[[str, str], None]) -> None:
    assert not utils.holes_zero()
    set_("KVCACHED_HOLES", "Zero")
    assert utils.holes_zero()
    assert not utils.holes_zero("fault")
    set_("KVCACHED_HOLES", "one")
    with pytest.raises(KVCachedConfigError, match="KVCACHED_HOLES=one"):
        utils.holes_zero()


@pytest.mark.parametrize(
    ("name", "instance"),
    [
        ("llama-3.1_8b", "llama-3.1_8b"),
        ("a b/c", "a_b_c"),
        (".hidden", "_hidden"),
        ("-x", "_x"),
        ("n" * 99, "n" * 64),
    ],
)
def test_instance(set_: Callable[[str, str], None], name: str, instance: str) -> None:
    set_("KVCACHED_IPC_NAME", name)
    assert utils.instance_name("vLLM") == instance


def test_devices() -> None:
    class Device:  # as a torch.device
        index = 3

        def __str__(self) -> str:
            return "cuda:3"

    class Number:  # as numpy's
        def __index__(self) -> int:
            return 4

    for device, index in (
        (None, 0), ("cuda", 0), ("cuda:1", 1), ("cpu", 0), (2, 2), (Device(), 3), (Number(), 4)
    ):  # fmt: skip
        assert runtime.device_index(device) == index
    for wrong in ("cuda:x", "banana", "1", "cuda:", "cuda:-1", "cuda:²", "meta", 1.5):
        with pytest.raises(KVCachedConfigError, match="no device such as cuda:0"):
            runtime.device_index(wrong)
    with pytest.raises(KVCachedConfigError, match="device is -1, and must be at least 0"):
        runtime.device_index(-1)
    with pytest.raises(TypeError, match="device is True"):
        runtime.device_index(True)


def test_ranks() -> None:
    scheduler = runtime.Role(world_size=2, pp_size=3, separate=True)
    assert list(scheduler.ranks) == [0, 1, 2, 3, 4, 5]
    assert runtime.Role(world_size=2, pp_rank=2, pp_size=3, tp_rank=1, is_worker=True).rank == 5


def test_gpus_of_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KVCACHED_SOCKET", "KVCACHED_WORKER_GPUS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    assert runtime.gpu_of_rank(1) == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-5")
    assert [runtime.gpu_of_rank(rank) for rank in range(2)] == ["3", "GPU-5"]
    monkeypatch.setenv("KVCACHED_SOCKET", "/some.sock")
    assert runtime.gpu_of_rank(1) is None
    monkeypatch.setenv("KVCACHED_WORKER_GPUS", "6, 7")
    assert [runtime.gpu_of_rank(rank) for rank in range(2)] == ["6", "7"]
    with pytest.raises(KVCachedConfigError, match="lists 2 GPUs, and there is a rank 2"):
        runtime.gpu_of_rank(2)


def test_groups_have_a_bound(kvcached_environment: Any) -> None:
    current = runtime.init(runtime.Role())
    layout = Layout(1, 1, MIB, 2 * MIB, True)
    for group_id in (0, runtime.GROUPS_MAX - 1):
        assert current.open_pool(group_id, layout, 1) is current.pool(group_id)
    for wrong in (-1, runtime.GROUPS_MAX):
        with pytest.raises(KVCachedConfigError, match=f"group_id is {wrong}, and must be from 0 to 63"):
            current.open_pool(wrong, layout, 1)


def test_reclaimers_are_not_kept_alive(kvcached_environment: Any) -> None:
    class Engine:
        def give(self, n_bytes: int, deadline_ms: int) -> None:
            """Has nothing."""

    engine = Engine()
    runtime.init(runtime.Role()).add_reclaimer(engine.give)
    seen = weakref.ref(engine)
    del engine
    assert seen() is None


def test_what_is_opened_during_shutdown_is_closed(kvcached_environment: Any) -> None:
    current = runtime.init(runtime.Role())
    client, opened = current.client(), list[Any]()

    class Meanwhile:
        def open_region(self, *args: Any, **kwargs: Any) -> Any:
            opened.append(client.open_region(*args, **kwargs))
            current.close()
            return opened[0]

    kvcached_environment.setattr(current, "client", Meanwhile)
    with pytest.raises(RuntimeError, match="was shut down"):
        current.open_pool(0, Layout(1, 1, MIB, 2 * MIB, True), 1)
    assert opened[0].closed
    assert current.pool(0) is None


@pytest.mark.parametrize("module", ["pool_registry", "control"])
def test_a_forked_child_has_no_managers(run_python: Callable[..., Result], module: str) -> None:
    """Nor its parent's locks, which another thread may have held."""
    run_python(
        f"""
        import os, sys, threading
        from kvcached import control, pool_registry, runtime, {module}
        from kvcached.integration.vllm import interfaces as kvi
        from kvcached.layout import Layout

        kvi.init_kvcached()
        layout = Layout(2, 2, 16384, 2 << 20, True)
        runtime.get().open_pool(0, layout, 4)
        manager = kvi.get_kv_cache_manager(256, 16, 1024, 2)
        manager.alloc(1)
        held, go = threading.Event(), threading.Event()

        def hold():
            with {module}._lock:
                held.set()
                go.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        pid = os.fork()
        if pid == 0:
            assert kvi.kv_cache_pool_snapshots() == []
            assert control.instance_memory_limit_state().status == "unavailable"
            kvi.init_kvcached(separate=True)
            assert control.set_instance_memory_limit(1, revision=1).status == "unavailable"
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        go.set()
        thread.join()
        assert len(kvi.kv_cache_pool_snapshots()) == 1
        """
    )


def test_a_forked_child_begins_anew(run_python: Callable[..., Result]) -> None:
    """Here as a scheduler, since its process has used the GPU; the parent goes on."""
    run_python(
        """
        import os, sys
        from kvcached import runtime
        from kvcached.integration.vllm import interfaces as kvi

        kvi.init_kvcached()
        pid = os.fork()
        if pid == 0:
            assert runtime.get_or_none() is None
            kvi.shutdown_kvcached()
            kvi.init_kvcached(separate=True)
            assert runtime.get().client().status()["connected"]
            sys.exit()
        assert os.waitpid(pid, 0)[1] == 0
        assert runtime.get().client().status()["connected"]
        """
    )


ROLES = pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), {}),
        ((1, 2, 0, True, "cuda:1", True), {"tp_rank": 1, "world_size": 2, "is_worker": True, "device": 1}),
        # As it once was: is_worker in pp_rank's place.
        ((1, 2, True, "cuda:1", True), {"tp_rank": 1, "world_size": 2, "is_worker": True, "device": 1}),
        ((0, 1, False, "cuda:1"), {"device": 1}),
        ((0, 1, False, 1, True), {"device": 1}),
        ((0, 1, False, None, True), {}),
        ((0, 1, True), {"is_worker": True}),
    ],
)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[runtime.Role]:
    """Roles that init_kvcached() was called with."""
    roles: list[runtime.Role] = []
    monkeypatch.setattr(runtime, "init", roles.append)
    return roles


@ROLES
def test_both_orders_of_init(
    said: list[runtime.Role], arguments: tuple[Any, ...], expected: dict[str, Any]
) -> None:
    kvi.init_kvcached(*arguments)
    several = expected.get("world_size", 1) > 1
    assert said == [runtime.Role(**{"engine": "vLLM", "separate": several, **expected})]


def test_init_by_name(said: list[runtime.Role]) -> None:
    kvi.init_kvcached(0, 1, False, device="cuda:2", async_sched=True)
    kvi.init_kvcached(tp_rank=1, tp_size=4, is_worker=True, device=3)
    sgi.init_kvcached(tp_rank=1, tp_size=2, is_worker=False, device="cuda:1", async_sched=True)
    sgi.init_kvcached(tp_rank=1, world_size=2, pp_rank=1, device=1)
    sgi.init_kvcached(0, 1, False, "cuda:1", True)
    assert said == [
        runtime.Role("vLLM", device=2),
        runtime.Role("vLLM", tp_rank=1, world_size=4, is_worker=True, separate=True, device=3),
        runtime.Role("SGLang", tp_rank=1, world_size=2, device=1),
        runtime.Role("SGLang", tp_rank=1, world_size=2, pp_rank=1, pp_size=2, is_worker=True, device=1),
        runtime.Role("SGLang", device=1),
    ]


def test_what_init_cannot_tell_apart(said: list[runtime.Role]) -> None:
    for init, wrong, text in (
        (kvi, (0, 1, 0, "cuda:0"), "is_worker is 'cuda:0', and must be true or false"),
        (kvi, (0, 1, 0, False, True), "device is True"),
        (kvi, (0, 1, False, "cuda:0", "cuda:1"), "async_sched is 'cuda:1'"),
        (kvi, (0, 1, False, True), "is_worker is False, as the third argument, and True"),
        (kvi, ("cuda:0",), "tp_rank is 'cuda:0', and must be a whole number"),
        (kvi, (0, True), "world_size is True"),
        (sgi, (0, 1, "cuda:0", True), "pp_rank is 'cuda:0'"),
        (sgi, (0, 1, 0, False, "cuda:0"), "async_sched is 'cuda:0'"),
        (sgi, (0, 1, 0, True), "device is True"),
    ):
        with pytest.raises(TypeError, match=text):
            init.init_kvcached(*wrong)
    for values, text in (
        ({"tp_rank": 2, "tp_size": 2}, "tp_rank is 2, and there are 2 ranks"),
        ({"tp_size": 0}, "_size is 0, and must be at least 1"),
        ({"tp_size": 2, "world_size": 4}, "world_size is 4, and tp_size 2"),
        ({"pp_rank": -1}, "pp_rank is -1"),
        ({"device": "banana"}, "banana is no device"),
    ):
        for init in (kvi, sgi):
            with pytest.raises(KVCachedConfigError, match=text):
                init.init_kvcached(**values)
    assert said == []


def test_errors_have_what_pythons_have(kvcached_environment: Any, tmp_path: Any, daemon: Any) -> None:
    for error, number in (
        (DaemonNotFoundError("x"), errno.ENOENT),
        (DisconnectedError("x"), errno.ECONNRESET),
        (DaemonTimeoutError("x"), errno.ETIMEDOUT),
    ):
        assert (str(error), error.errno, error.code) == ("x", number, 0)
    assert Error("x").code == 0
    socket = str(tmp_path / "none.sock")
    kvcached_environment.setenv("KVCACHED_SOCKET", socket)
    with pytest.raises(FileNotFoundError, match="There is no kvcachedd") as found:
        kvi.init_kvcached()
    error = pickle.loads(pickle.dumps(found.value))
    for one in (found.value, error):
        assert isinstance(one, DaemonNotFoundError)
        assert (one.errno, one.filename) == (errno.ENOENT, socket)
        assert one.code < 0
        assert str(one) == f"There is no kvcachedd: {socket} does not exist"


def test_log_levels(run_python: Callable[..., Result]) -> None:
    code = """
        from kvcached.utils import get_kvcached_logger
        try:
            print(get_kvcached_logger().level)
        except ValueError as error:
            print(error)
    """
    for level, said in (("", "20"), (" debug ", "10"), ("Critical", "50")):
        assert run_python(code, KVCACHED_LOG_LEVEL=level).out == f"{said}\n"
    said = run_python(code, KVCACHED_LOG_LEVEL="foo").out
    assert said == "KVCACHED_LOG_LEVEL=foo: not DEBUG, INFO, WARNING, ERROR or CRITICAL\n"


def test_log_colours(set_: Callable[[str, str], None]) -> None:
    def coloured() -> str:
        record = logging.LogRecord("kvcached", logging.INFO, "", 0, "text", None, None)
        return utils._Coloured("%(message)s").format(record)

    assert coloured() == "\033[36mtext\033[0m"
    for value in ("\033[1;31m", r"\033[1;31m", r"\x1b[1;31m", r"\e[1;31m"):
        set_("KVCACHED_LOG_COLOR_CODE", value)
        assert coloured() == "\033[1;31mtext\033[0m"
    for wrong in ("red", "\033[2J", "\033]0;title\a"):
        set_("KVCACHED_LOG_COLOR_CODE", wrong)
        with pytest.raises(KVCachedConfigError, match="no colour such as"):
            utils.log_colour()


class Interrupted:
    """What is closed while a Ctrl-C comes."""

    closed = False

    def close(self) -> None:
        self.closed = True
        raise KeyboardInterrupt


def test_an_interrupt_keeps_nothing_from_being_closed(kvcached_environment: Any) -> None:
    current = runtime.init(runtime.Role())
    client = current.client()
    regions = [Interrupted(), Interrupted()]
    for group, region in enumerate(regions):
        current.pools[group] = runtime.Pool(group, None, [region, region], client)  # type: ignore[list-item]
    with pytest.raises(KeyboardInterrupt):
        runtime.shutdown()
    assert all(region.closed for region in regions)
    assert client.closed
