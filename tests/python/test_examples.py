# SPDX-License-Identifier: Apache-2.0
"""The examples do what their texts say: those of docs/examples/, and each step as the interface's reference
has it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import pytest

from harness.tensors import check_round_trip
from kvcached import vmm_ops
from kvcached.integration.sglang import interfaces as sgi
from kvcached.integration.vllm import interfaces as kvi

MIB = 1 << 20
EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


def run(site: Any, daemon: Any, name: str) -> list[str]:
    environment = site.environment(KVCACHED_SOCKET=str(daemon.socket), KVCACHED_PAGE_PREALLOC_ENABLED="false")
    command = [sys.executable, str(EXAMPLES / name)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_two_models(torch: Any, site: Any, daemon: Any) -> None:
    lines = run(site, daemon, "two_models.py")
    words = [line.split() for line in lines]
    grown = [int(line[2]) for line in words if line[1] == "grow:"]
    mapped = [int(line[4]) for line in words]
    assert len(grown) == 2
    assert grown[0] == grown[1] > 0
    assert all(megabytes > 512 for megabytes in mapped[::2])
    assert all(megabytes <= 16 for megabytes in mapped[1::2])


def test_two_models_that_get_nothing(torch: Any, site: Any, daemon: Any, programs: Any) -> None:
    """Another engine has all: they say so, and end."""
    environment = site.environment(KVCACHED_SOCKET=str(daemon.socket), KVCACHED_PAGE_PREALLOC_ENABLED="false")
    hog = programs.peer(daemon, "hog")
    assert hog.ask("open").startswith("ok")
    assert hog.ask("region r page=64M pages=16").startswith("ok"), hog.log()
    assert hog.ask("map r 0-11").startswith("ok")
    command = [sys.executable, str(EXAMPLES / "two_models.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1, done.stderr
    assert [line.split(",")[0] for line in done.stdout.splitlines()] == [
        f"{name}: {order}: 0 blocks" for name in ("first", "second") for order in ("grow", "shrink")
    ]


def test_memory_control(torch: Any, site: Any, daemon: Any) -> None:
    lines = run(site, daemon, "memory_control.py")
    assert lines[0] == "limit 64 MiB: deferred, 64 MiB over"
    assert lines[1] == "after freeing 600 blocks: applied, 64 MiB mapped"
    assert lines[2] == "1000 blocks more: None"
    assert lines[3] == "no limit: applied"
    assert lines[4].endswith(": 400 of 2047 blocks in 4 pages")


def test_manual_integration(torch: Any, site: Any, daemon: Any) -> None:
    lines = run(site, daemon, "manual_integration.py")
    assert lines[0] == "4 tensors of 33554432 elements, nothing mapped"
    assert lines[1] == "page 3 of each layer's K: [0, 1, 2, 3]"
    assert lines[2].startswith("mapped twice: ")


@pytest.fixture
def environment(kvcached_environment: Any, torch: Any) -> Any:
    kvcached_environment.setenv("KVCACHED_PAGE_PREALLOC_ENABLED", "false")
    return kvcached_environment


def test_documented_vllm(environment: Any, torch: Any) -> None:
    """Each step as the reference has it."""
    kvi.init_kvcached(
        tp_rank=0,
        tp_size=1,
        is_worker=False,
        device="cuda:0",
        async_sched=False,
    )
    num_blocks, block_size, num_layers = 1000, 16, 4
    kv_tensors = kvi.alloc_kv_cache(
        (2, num_blocks, block_size, 8, 64),
        block_size,
        torch.float16,
        "cuda",
        num_layers,
        attention_type="MHA",
        kv_layout="NHD",
    )
    assert len(kv_tensors) == num_layers
    manager = kvi.get_kv_cache_manager(num_blocks, block_size, 8 * 64 * 2, num_layers)
    block_ids = manager.alloc(200)
    assert block_ids is not None
    assert 0 not in block_ids
    check_round_trip(torch, [tensor[kv, block_ids[-1]] for tensor in kv_tensors for kv in range(2)])
    available = manager.available_size()
    assert 0 < available <= num_blocks - 1 - 200
    assert manager.alloc(available) is not None
    manager.free(block_ids)
    kvi.shutdown_kvcached()


def test_documented_sglang(environment: Any, torch: Any) -> None:
    sgi.init_kvcached(tp_rank=0, tp_size=1, is_worker=False, device="cuda:0", async_sched=True)
    k_tensors, v_tensors = sgi.alloc_kv_cache(
        (4096, 8, 64), torch.bfloat16, "cuda", 2, page_size=1, attention_type="MHA", kv_layout="NHD"
    )
    assert [len(k_tensors), len(v_tensors)] == [2, 2]
    manager = sgi.get_kv_cache_manager(4096, 1, 8 * 64 * 2, 2)
    ids = manager.alloc(5)
    assert ids is not None
    check_round_trip(torch, [tensors[i][ids] for tensors in (k_tensors, v_tensors) for i in range(2)][:0])
    for i in ids:
        check_round_trip(torch, [tensors[n][i] for tensors in (k_tensors, v_tensors) for n in range(2)])
    sgi.shutdown_kvcached()


def test_documented_manual_integration(environment: Any, torch: Any, kvctl: Any) -> None:
    environment.setenv("KVCACHED_CONTIGUOUS_LAYOUT", "false")
    vmm_ops.init_kvcached("cuda:0")
    mem_size_per_layer, dtype_size, num_layers = 16 * MIB, 2, 3
    raw_tensors = vmm_ops.create_kv_tensors(mem_size_per_layer, dtype_size, "cuda:0", num_layers)
    assert [tuple(tensor.shape) for tensor in raw_tensors] == [(8 * MIB,)] * num_layers
    assert vmm_ops.kv_tensors_created()
    page_ids, block_ids = [0, 3], [0, 1]
    assert vmm_ops.map_to_kv_tensors(page_ids, block_ids)
    page = MIB  # elements
    check_round_trip(
        torch,
        [
            tensor[half + i * page :][:page]
            for tensor in raw_tensors
            for half in (0, 4 * page)
            for i in page_ids
        ],
    )
    (row,) = kvctl("list", "--json").json()
    assert row["used_bytes"] == 2 * num_layers * 2 * 2 * MIB
    with pytest.raises(ValueError, match="mapped already"):
        vmm_ops.map_to_kv_tensors([2 * MIB, 3 * 2 * MIB])
    assert vmm_ops.map_to_kv_tensors([2 * MIB], 0)
    assert vmm_ops.unmap_from_kv_tensors([0, 2 * MIB, 6 * MIB])
    with pytest.raises(ValueError, match="not mapped"):
        vmm_ops.unmap_from_kv_tensors(page_ids, block_ids)
    with pytest.raises(ValueError, match="Offset 5 is not a multiple of 2097152"):
        vmm_ops.map_to_kv_tensors([5])
    vmm_ops.shutdown_kvcached()
    with pytest.raises(RuntimeError, match="kvcached is not initialized"):
        vmm_ops.map_to_kv_tensors([0])


MODEL = "meta-llama/Llama-3.1-8B-Instruct"
Started = Callable[..., "tuple[list[str], str]"]


@pytest.fixture
def start(tmp_path: Path) -> Started:
    """start(script, arguments...): with which arguments, and which ENABLE_KVCACHED, it calls Python."""
    python = tmp_path / "python"
    python.write_text(
        f"#!{sys.executable}\n"
        "import json, os, sys\n"
        "print(json.dumps([sys.argv[1:], os.environ.get('ENABLE_KVCACHED')]))\n"
    )
    python.chmod(0o755)

    def start(script: str, *arguments: str, **variables: str) -> tuple[list[str], str]:
        path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
        done = subprocess.run(
            [str(EXAMPLES / script), *arguments],
            env={**path, **variables},
            capture_output=True,
            text=True,
            check=True,
        )
        called, enabled = json.loads(done.stdout)
        return called, enabled

    return start


def options(called: list[str]) -> dict[str, str]:
    return dict(zip(called[::2], called[1::2]))


def test_start_server(start: Started) -> None:
    vllm, sglang = ["-m", "vllm.entrypoints.openai.api_server"], ["-m", "sglang.launch_server"]
    assert start("start_server.sh", "vllm") == ([*vllm, "--model", MODEL, "--port", "12346"], "true")
    for name in ("sglang", "sgl"):
        called = start("start_server.sh", name)
        assert called == ([*sglang, "--model-path", MODEL, "--port", "30000"], "true")
    more = ("some/model", "--max-model-len", "two words")
    called = start("start_server.sh", "vllm", *more, PORT="7", ENABLE_KVCACHED="false")
    assert called == ([*vllm, "--model", "some/model", "--port", "7", *more[1:]], "false")
    called = start("start_server.sh", "sglang", *more, PORT="7")
    assert called == ([*sglang, "--model-path", "some/model", "--port", "7", *more[1:]], "true")


def test_start_client(start: Started) -> None:
    lengths = {"--random-input-len": "256", "--random-output-len": "256", "--dataset-name": "random"}
    common = {"--num-prompts": "100", "--request-rate": "4", "--model": MODEL, **lengths}
    called, _ = start("start_client.sh", "vllm")
    assert called[0] == "-c"
    compile(called[1], "serve", "exec")
    assert options(called[2:]) == {"--backend": "vllm", "--port": "12346", **common}
    called, _ = start("start_client.sh", "sglang")
    assert called[:2] == ["-m", "sglang.bench_serving"]
    assert options(called[2:]) == {"--backend": "sglang", "--port": "30000", **common}
    for name in ("vllm", "sgl"):
        called, _ = start(
            "start_client.sh", name, "some/model", "--seed", "3",
            PORT="7", NUM_PROMPTS="1", REQUEST_RATE="2", INPUT_LEN="3", OUTPUT_LEN="4",
        )  # fmt: skip
        assert called[-2:] == ["--seed", "3"]
        said = options(called[2:])
        assert [said[f"--{name}"] for name in ("model", "port", "num-prompts", "request-rate")] == [
            "some/model", "7", "1", "2",
        ]  # fmt: skip
        assert [said["--random-input-len"], said["--random-output-len"]] == ["3", "4"]


@pytest.mark.parametrize("script", ["start_server.sh", "start_client.sh"])
@pytest.mark.parametrize("arguments", [[], ["tensorrt"]])
def test_engines_that_scripts_dont_know(script: str, arguments: list[str]) -> None:
    done = subprocess.run([str(EXAMPLES / script), *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"usage: {script} vllm|sglang [MODEL [ARGUMENT...]]\n"
