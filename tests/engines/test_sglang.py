# SPDX-License-Identifier: Apache-2.0
"""The integration with SGLang's own classes, over a daemon with an emulated GPU. No engine is started.

SGLang is imported by an interpreter of its own, $KVCACHED_SGLANG_PYTHON or .venv-engines/sglang/bin/python
(tests/engines/requirements-sglang.txt says what is in there). There sglang_runner.py runs the checks, which
lie by subject in sglang_checks_*.py: "pools.hole" is hole() of sglang_checks_pools.py.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.broker import Programs, Site, describe_end

ROOT = Path(__file__).resolve().parents[2]
START_S = 400.0  # SGLang is large
CHECK_S = 200.0

pytestmark = [pytest.mark.emulator, pytest.mark.timeout(START_S + CHECK_S)]


class Interpreter:
    """SGLang's, with sglang_runner.py in it."""

    def __init__(self, python: Path, package: Path, log: Path) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("KVCACHED_")}
        environment |= {
            "PYTHONPATH": f"{package}:{ROOT / 'tests'}",
            "SGLANG_PLUGINS": "kvcached",
            "TRITON_INTERPRET": "1",
        }
        self._log = log.open("w+")
        self._process = subprocess.Popen(
            [str(python), str(ROOT / "tests" / "engines" / "sglang_runner.py")],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self._reply(START_S)

    def _reply(self, within: float) -> Any:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], within)
        line = self._process.stdout.readline() if ready else ""
        if line:
            return json.loads(line)
        self._log.seek(0)
        raise AssertionError(f"SGLang's interpreter does not answer:\n{self._log.read()}")

    def run(self, check: str, arguments: dict[str, Any], environment: dict[str, str], output: Path) -> int:
        """The check's exit status, negative for a signal."""
        assert self._process.stdin is not None
        order = {"check": check, "arguments": arguments, "environment": environment, "output": str(output)}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._reply(CHECK_S)["status"])

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(CHECK_S)
        self._process.stdout.close()
        self._log.close()


@pytest.fixture
def site(build_dir: Path, tmp_run: Path) -> Iterator[Site]:
    """The surroundings of this test, with an emulated device of its own."""
    memory = Path(tempfile.mkdtemp(prefix="kvcached-test-", dir="/dev/shm"))
    yield Site(build=build_dir, run=tmp_run, emulate_dir=memory / "devices")
    shutil.rmtree(memory)


@pytest.fixture
def programs(site: Site) -> Iterator[Programs]:
    """Starts daemons and kvctl, and ends what the test leaves running."""
    started = Programs(site)
    yield started
    started.end()


@pytest.fixture(scope="session")
def package_dir(build_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH: the package with this build's extension, and its entry points."""
    native = build_dir / "python" / "_native.abi3.so"
    if not native.exists():
        pytest.skip(f"{native} has not been built")
    folder = tmp_path_factory.mktemp("site-packages")
    shutil.copytree(
        ROOT / "python" / "kvcached", folder / "kvcached", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(native, folder / "kvcached")
    about = folder / "kvcached-0.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: kvcached\nVersion: 0.0\n")
    (about / "entry_points.txt").write_text(
        "[sglang.srt.plugins]\nkvcached = kvcached.integration.sglang.plugin:register\n"
    )
    return folder


@pytest.fixture(scope="session")
def interpreter(
    sglang_python: str, package_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Interpreter]:
    started = Interpreter(Path(sglang_python), package_dir, tmp_path_factory.mktemp("sglang") / "log")
    yield started
    started.close()


@pytest.fixture
def outcome(interpreter: Interpreter, programs: Programs, site: Site) -> Callable[..., tuple[int, str]]:
    """outcome("pools.hole", environment={}, budget="1G", **its arguments): exit status, what it has said."""

    def run(
        check: str, environment: dict[str, str] | None = None, budget: str = "1G", **arguments: Any
    ) -> tuple[int, str]:
        daemon = programs.daemon("1G", budget=budget)
        output = site.run / "output"
        settings = {
            "KVCACHED_SOCKET": str(daemon.socket),
            "KVCACHED_EMULATOR_DIR": str(site.build / "tests" / "cuemu"),
            "KVCACHED_EMULATE_DIR": str(site.emulate_dir),
            "KVCACHED_IPC_NAME": "sglang-test",
            "KVCACHED_CONTIGUOUS_LAYOUT": "false",
            "ENABLE_KVCACHED": "true",
            "TEST_DAEMON": str(daemon.process.pid),
            "TEST_KVCTL": str(site.build / "kvctl" / "kvctl"),
        }
        status = interpreter.run(check, arguments, settings | (environment or {}), output)
        return status, output.read_text()

    return run


@pytest.fixture
def passes(outcome: Callable[..., tuple[int, str]]) -> Callable[..., None]:
    """passes("pools.shapes", ...): it ends well."""

    def run(check: str, *arguments: Any, **named: Any) -> None:
        status, said = outcome(check, *arguments, **named)
        assert status == 0, f"{check}: {describe_end(status)}\n{said}"

    return run


both_layouts = pytest.mark.parametrize("contiguous", ["false", "true"], ids=["per_layer", "contiguous"])


def layout(contiguous: str) -> dict[str, str]:
    return {"KVCACHED_CONTIGUOUS_LAYOUT": contiguous}


@both_layouts
def test_buffers_are_as_sglang_has_them(passes: Callable[..., None], contiguous: str) -> None:
    passes("pools.shapes", layout(contiguous), contiguous=contiguous == "true")


@both_layouts
def test_what_is_written_reads_back(passes: Callable[..., None], contiguous: str) -> None:
    passes("pools.round_trip", layout(contiguous))


@both_layouts
def test_a_slot_without_memory_faults(outcome: Callable[..., tuple[int, str]], contiguous: str) -> None:
    status, said = outcome("pools.hole", layout(contiguous) | {"KVCACHED_PAGE_PREALLOC_ENABLED": "false"})
    assert "all is well so far" in said, said
    assert status == -signal.SIGSEGV, describe_end(status)


def test_fresh_pages_read_as_zero(passes: Callable[..., None]) -> None:
    passes("pools.fresh_is_zero")


@both_layouts
def test_pools_that_are_made_of_ours(passes: Callable[..., None], contiguous: str) -> None:
    passes("pools.other_pools", layout(contiguous))


@both_layouts
def test_states_of_mamba_layers(passes: Callable[..., None], contiguous: str) -> None:
    passes("pools.mamba_states", layout(contiguous))


@pytest.mark.parametrize("kernels", [False, True], ids=["torch", "triton"])
def test_decides_as_sglang_does_while_memory_is_ample(passes: Callable[..., None], kernels: bool) -> None:
    passes("allocators.same_decisions", kernels=kernels)


def test_tokens_across_pages(passes: Callable[..., None]) -> None:
    passes("allocators.across_pages")


@pytest.mark.parametrize("page_size", [1, 4])
def test_shortage_is_refused_without_error(passes: Callable[..., None], page_size: int) -> None:
    passes("allocators.shortage", budget="40M", page_size=page_size)


def test_what_is_refused_keeps_nobody_from_asking(passes: Callable[..., None]) -> None:
    passes("allocators.asks_for_less", budget="26M")


def test_promises_hold_against_other_engines(passes: Callable[..., None]) -> None:
    passes("allocators.promise", budget="96M")


def test_serves_on_without_its_daemon(passes: Callable[..., None], programs: Programs) -> None:
    try:
        passes("allocators.daemon_dies", {"KVCACHED_PAGE_PREALLOC_ENABLED": "false"})
    finally:
        programs.daemons[0].kill()  # the check has, so nobody expects a good end of it


def test_what_is_not_out_cannot_be_freed(passes: Callable[..., None]) -> None:
    passes("allocators.refusals")


def test_pages_of_a_running_batch_stay_mapped(passes: Callable[..., None]) -> None:
    passes("allocators.fence_holds_pages", {"KVCACHED_PAGE_PREALLOC_ENABLED": "false"})


def test_admission_asks_for_what_a_request_needs(passes: Callable[..., None]) -> None:
    passes("allocators.prefill_budget")


@pytest.mark.parametrize("kind", ["radix", "python", "rust"])
def test_trees_of_prefixes(passes: Callable[..., None], kind: str) -> None:
    passes("trees.trees", kind=kind)


def test_leak_checker(passes: Callable[..., None]) -> None:
    passes("trees.leak_checker")


@pytest.mark.parametrize("kind", ["radix", "python", "rust"])
def test_memory_is_given_up_on_notice(passes: Callable[..., None], kind: str) -> None:
    passes("reclaim.reclaim_on_notice", kind=kind)


@pytest.mark.parametrize("kind", ["radix", "python"])
def test_evicts_what_keeps_a_page(passes: Callable[..., None], kind: str) -> None:
    passes("reclaim.evicts_by_page", kind=kind)


def test_whole_pages(passes: Callable[..., None]) -> None:
    passes("allocators.whole_pages")


def test_cheapest_pages(passes: Callable[..., None]) -> None:
    passes("reclaim.cheapest_pages")


def test_cached_prefixes_are_bounded(passes: Callable[..., None]) -> None:
    passes("reclaim.bounded_cache", {"KVCACHED_MAX_CACHED_TOKENS": "120"})


def test_sleeps_with_nothing_and_wakes(passes: Callable[..., None]) -> None:
    passes("reclaim.sleep_and_wake")


@pytest.mark.parametrize("use_mla", [False, True], ids=["mha", "mla"])
@pytest.mark.parametrize("page_size", [1, 64])
def test_plug_in_from_entry_point_to_pool(passes: Callable[..., None], page_size: int, use_mla: bool) -> None:
    passes("plugin.configured", page_size=page_size, use_mla=use_mla)


def test_pools_that_are_not_ours_are_noticed(passes: Callable[..., None]) -> None:
    passes("plugin.configured_without_us")


@pytest.mark.parametrize("setting", ["", "false", "0"])
def test_plug_in_keeps_out_unless_asked(passes: Callable[..., None], setting: str) -> None:
    passes("plugin.not_asked_for", {"ENABLE_KVCACHED": setting})


def test_flags_that_are_refused(passes: Callable[..., None]) -> None:
    passes("plugin.refused_flags")


def test_another_release_of_sglang(passes: Callable[..., None]) -> None:
    passes("plugin.another_release")


def test_budget(passes: Callable[..., None]) -> None:
    passes("plugin.budget")
