# SPDX-License-Identifier: Apache-2.0
"""The driver's contract once more, through NVIDIA's own Python bindings: a program that is not ours, and that
gets nothing but LD_LIBRARY_PATH. Each test is a script in a process of its own: a process has one driver."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None,
        reason="cuda-bindings is not installed",
    ),
]

# What every script begins with. `ok` takes the tuples that the bindings return.
PROLOGUE = """
import os, socket, sys
from cuda.bindings import driver as cu

R = cu.CUresult
FD = cu.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
READWRITE = cu.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
MIB = 1 << 20
G = 2 * MIB


def ok(result):
    assert result[0] == R.CUDA_SUCCESS, result
    return result[1] if len(result) == 2 else result[1:]


def expect(error, result):
    assert result[0] == error, result


def location(device=0):
    where = cu.CUmemLocation()
    where.type = cu.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    where.id = device
    return where


def prop(shareable=True):
    p = cu.CUmemAllocationProp()
    p.type = cu.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    p.location = location()
    if shareable:
        p.requestedHandleTypes = FD
    return p


def start():
    ok(cu.cuInit(0))
    device = ok(cu.cuDeviceGet(0))
    ok(cu.cuCtxSetCurrent(ok(cu.cuDevicePrimaryCtxRetain(device))))
    return device


def grant(address, size):
    access = cu.CUmemAccessDesc()
    access.location = location()
    access.flags = READWRITE
    ok(cu.cuMemSetAccess(address, size, [access], 1))


def free():
    return ok(cu.cuMemGetInfo())[0]


def peek(address, n):
    back = bytearray(n)
    ok(cu.cuMemcpyDtoH(back, address, n))
    return bytes(back)
"""

Run = Callable[..., str]


def is_sanitized(build: Path) -> bool:
    options = json.loads((build / "meson-info" / "intro-buildoptions.json").read_text())
    return any(o["name"] == "b_sanitize" and o["value"] not in ("none", []) for o in options)


@pytest.fixture
def run(build_dir: Path) -> Iterator[Run]:
    """Runs a script on the driver, with an emulated device of its own where that is the driver."""
    emulated = os.environ.get("KVCACHED_TEST_DRIVER") != "gpu"
    if emulated and is_sanitized(build_dir):
        pytest.skip("an uninstrumented Python cannot load a sanitized library")
    folder = Path(tempfile.mkdtemp(prefix="kvcached-test-", dir="/dev/shm"))

    def call(script: str, **environment: str) -> str:
        env = {**os.environ, "KVCACHED_EMULATE_DIR": str(folder / "devices"), **environment}
        if emulated:
            env["LD_LIBRARY_PATH"] = str(build_dir / "tests" / "cuemu")
        done = subprocess.run(
            [sys.executable, "-c", PROLOGUE + textwrap.dedent(script)],
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    yield call
    left = list(folder.iterdir())
    shutil.rmtree(folder)
    assert not left, "the device folder outlives its last user"


def test_devices(run: Run) -> None:
    """Items 10 and 15."""
    run("""
        expect(R.CUDA_ERROR_NOT_INITIALIZED, cu.cuDeviceGetCount())
        device = start()
        assert ok(cu.cuDriverGetVersion()) >= 12000
        assert ok(cu.cuDeviceGetCount()) >= 1
        assert ok(cu.cuDeviceGetName(128, device)).strip(b"\\0")
        assert ok(cu.cuDeviceTotalMem(device)) >= 1 << 30
        assert len(ok(cu.cuDeviceGetUuid(device)).bytes) == 16
        bus = ok(cu.cuDeviceGetPCIBusId(32, device)).split(b"\\0")[0]
        assert int(ok(cu.cuDeviceGetByPCIBusId(bus))) == int(device)
        vmm = cu.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED
        assert ok(cu.cuDeviceGetAttribute(vmm, device)) == 1
        assert ok(cu.cuGetErrorName(R.CUDA_ERROR_OUT_OF_MEMORY)) == b"CUDA_ERROR_OUT_OF_MEMORY"
    """)


def test_map_and_unmap(run: Run) -> None:
    """Items 1 to 6 and 11."""
    run("""
        start()
        before = free()
        assert ok(cu.cuMemGetAllocationGranularity(prop(),
            cu.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM)) == G
        va = int(ok(cu.cuMemAddressReserve(8 * G, 0, 0, 0)))
        a, b = ok(cu.cuMemCreate(2 * G, prop(), 0)), ok(cu.cuMemCreate(G, prop(), 0))
        ok(cu.cuMemMap(va, 2 * G, 0, a, 0))
        ok(cu.cuMemMap(va + 2 * G, G, 0, b, 0))
        grant(va, 3 * G)
        assert free() == before - 3 * G
        assert peek(va, 4096) == bytes(4096)
        ok(cu.cuMemsetD8(va + 2 * G - 8, 7, 16))
        assert peek(va + 2 * G - 9, 18) == b"\\0" + b"\\7" * 16 + b"\\0"
        expect(R.CUDA_ERROR_INVALID_VALUE, cu.cuMemUnmap(va, G))
        expect(R.CUDA_ERROR_INVALID_VALUE, cu.cuMemUnmap(va, 4 * G))
        expect(R.CUDA_ERROR_INVALID_VALUE, cu.cuMemMap(va + G, G, 0, b, 0))
        expect(R.CUDA_ERROR_INVALID_VALUE, cu.cuMemAddressFree(va, 8 * G))
        ok(cu.cuMemUnmap(va, 3 * G))
        ok(cu.cuMemMap(va + 4 * G, G, 0, b, 0))
        grant(va + 4 * G, G)
        assert peek(va + 4 * G, 8) == b"\\7" * 8
        ok(cu.cuMemRelease(a))
        ok(cu.cuMemRelease(b))
        assert free() == before - G
        ok(cu.cuMemUnmap(va + 4 * G, G))
        ok(cu.cuMemAddressFree(va, 8 * G))
        assert free() == before
    """)


def test_share_between_processes(run: Run) -> None:
    """Items 3, 7 and 12."""
    run("""
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        child = os.fork()
        start()
        va = int(ok(cu.cuMemAddressReserve(G, 0, 0, 0)))
        if child == 0:
            here.close()
            _, fds, _, _ = socket.recv_fds(there, 16, 1)
            handle = ok(cu.cuMemImportFromShareableHandle(fds[0], FD))
            os.close(fds[0])
            ok(cu.cuMemMap(va, G, 0, handle, 0))
            ok(cu.cuMemRelease(handle))
            grant(va, G)
            assert peek(va, 3) == b"\\5" * 3
            ok(cu.cuMemsetD8(va, 6, 1))
            ok(cu.cuCtxSynchronize())
            there.send(b"changed")
            assert there.recv(16) == b""
            os._exit(0)
        there.close()
        before = free()
        handle = ok(cu.cuMemCreate(G, prop(), 0))
        ok(cu.cuMemMap(va, G, 0, handle, 0))
        grant(va, G)
        ok(cu.cuMemsetD8(va, 5, G))
        ok(cu.cuCtxSynchronize())
        fd = ok(cu.cuMemExportToShareableHandle(handle, FD, 0))
        socket.send_fds(here, [b"x"], [fd])
        os.close(fd)
        assert here.recv(16) == b"changed"
        assert peek(va, 3) == b"\\6\\5\\5"
        ok(cu.cuMemUnmap(va, G))
        ok(cu.cuMemRelease(handle))
        assert free() < before
        here.close()
        assert os.waitpid(child, 0)[1] == 0
        assert free() >= before
        expect(R.CUDA_ERROR_INVALID_VALUE, cu.cuMemImportFromShareableHandle(0, FD))
    """)


def test_retain_and_properties(run: Run) -> None:
    """Item 8."""
    run("""
        start()
        va = int(ok(cu.cuMemAddressReserve(G, 0, 0, 0)))
        handle = ok(cu.cuMemCreate(G, prop(), 0))
        ok(cu.cuMemMap(va, G, 0, handle, 0))
        ok(cu.cuMemRelease(handle))
        same = ok(cu.cuMemRetainAllocationHandle(va + 100))
        assert int(same) == int(handle)
        ok(cu.cuMemUnmap(va, G))
        p = ok(cu.cuMemGetAllocationPropertiesFromHandle(same))
        assert p.requestedHandleTypes == FD and p.location.id == 0
        ok(cu.cuMemRelease(same))
        ok(cu.cuMemAddressFree(va, G))
    """)


def test_ordinary_memory_streams_and_events(run: Run) -> None:
    """Items 16 to 19."""
    run("""
        device = start()
        before = free()
        block = int(ok(cu.cuMemAlloc(64 * MIB)))
        assert free() <= before - 64 * MIB
        stream, event = ok(cu.cuStreamCreate(1)), ok(cu.cuEventCreate(0))
        later = ok(cu.cuEventCreate(0))
        ok(cu.cuEventRecord(event, stream))
        ok(cu.cuMemsetD32Async(block, 0x01020304, 16, stream))
        ok(cu.cuMemcpyDtoDAsync(block + 64, block, 64, stream))
        ok(cu.cuEventRecord(later, stream))
        ok(cu.cuStreamSynchronize(stream))
        ok(cu.cuEventQuery(later))
        assert ok(cu.cuEventElapsedTime(event, later)) >= 0
        assert peek(block + 124, 4) == b"\\4\\3\\2\\1"
        ok(cu.cuMemcpyHtoD(block, b"hello", 5))
        assert peek(block, 6) == b"hello\\3"
        ok(cu.cuEventDestroy(event))
        ok(cu.cuEventDestroy(later))
        ok(cu.cuStreamDestroy(stream))
        ok(cu.cuMemFree(block))
        assert free() == before
        ok(cu.cuCtxSynchronize())
        ok(cu.cuDevicePrimaryCtxRelease(device))
    """)


@pytest.mark.emulator
def test_missing_entry_points(run: Run) -> None:
    """Item 20: what the emulator has not is an error of the bindings, and no crash."""
    run("""
        start()
        try:
            result = cu.cuGraphCreate(0)
        except RuntimeError as error:
            assert "cuGraphCreate" in str(error), error
        else:
            raise AssertionError(result)
    """)


@pytest.mark.emulator
def test_settings(run: Run) -> None:
    """Several devices, of which one is visible, and a fault."""
    run(
        """
        start()
        assert ok(cu.cuDeviceGetCount()) == 1
        assert ok(cu.cuDeviceTotalMem(0)) == 2 << 30
        ok(cu.cuMemRelease(ok(cu.cuMemCreate(G, prop(), 0))))
        expect(R.CUDA_ERROR_OUT_OF_MEMORY, cu.cuMemCreate(G, prop(), 0))
        """,
        KVCACHED_EMULATE="1G,2G",
        CUDA_VISIBLE_DEVICES="1",
        KVCACHED_EMULATE_FAULTS="cuMemCreate:2",
    )
