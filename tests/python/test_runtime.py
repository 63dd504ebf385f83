# SPDX-License-Identifier: Apache-2.0
"""Who this process is, what its environment says, and what its children have of it; no torch."""

from __future__ import annotations

import weakref
from typing import Any, Callable

import pytest

from harness.broker import Result
from kvcached import KVCachedConfigError, runtime, utils
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
    class Device:
        index = 3

    for device, index in ((None, 0), ("cuda", 0), ("cuda:1", 1), ("cpu", 0), (2, 2), (Device(), 3)):
        assert runtime.device_index(device) == index
    with pytest.raises(KVCachedConfigError, match="cuda:x is no device"):
        runtime.device_index("cuda:x")


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
