# SPDX-License-Identifier: Apache-2.0
"""Region.tensor(): the capsule by the letter of dlpack.h, and consumers that keep it for longer than anybody
else."""

from __future__ import annotations

import ctypes
from typing import Any, Callable

import pytest

from harness.broker import Result
from kvcached import _native

PAGE = 2 << 20


class Device(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int32), ("id", ctypes.c_int32)]


class DataType(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", Device),
        ("ndim", ctypes.c_int32),
        ("dtype", DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class ManagedTensor(ctypes.Structure):
    pass


# Not PYFUNCTYPE: called without the interpreter's lock.
Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(ManagedTensor))
ManagedTensor._fields_ = [("tensor", Tensor), ("manager_ctx", ctypes.c_void_p), ("deleter", Deleter)]

get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
get_pointer.restype = ctypes.c_void_p
get_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
set_name = ctypes.pythonapi.PyCapsule_SetName
set_name.argtypes = [ctypes.py_object, ctypes.c_char_p]
USED = b"used_dltensor"


def consume(capsule: object) -> Any:
    """What a framework does: it renames the capsule, and is who calls the deleter from then on."""
    managed = ctypes.cast(get_pointer(capsule, b"dltensor"), ctypes.POINTER(ManagedTensor))
    assert set_name(capsule, USED) == 0
    return managed


def delete(managed: Any) -> None:
    managed.contents.deleter(managed)


@pytest.fixture
def region(client: _native.Client) -> _native.Region:
    return client.open_region(8, PAGE)


def test_fields(region: _native.Region) -> None:
    managed = consume(region.tensor(PAGE + 3, 5 * PAGE))
    tensor = managed.contents.tensor
    assert tensor.data == region.address + PAGE + 3
    assert (tensor.device.type, tensor.device.id) == (1, 0)
    assert (tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes) == (1, 8, 1)
    assert tensor.ndim == 1
    assert tensor.shape[0] == 5 * PAGE
    assert not tensor.strides
    assert tensor.byte_offset == 0
    delete(managed)


def test_all_segments(client: _native.Client) -> None:
    region = client.open_region(4, PAGE, segments=2, stride_bytes=100 * PAGE)
    managed = consume(region.tensor(0, region.span_bytes))
    assert managed.contents.tensor.shape[0] == 104 * PAGE
    delete(managed)


@pytest.mark.parametrize(
    ("offset", "n"),
    [(0, 8 * PAGE + 1), (8 * PAGE, 1), (8 * PAGE + 1, 0), (1, (1 << 64) - 1), ((1 << 64) - 1, 1)],
)
def test_beyond_the_region(region: _native.Region, offset: int, n: int) -> None:
    with pytest.raises(ValueError, match="bytes from byte"):
        region.tensor(offset, n)


def test_edges(region: _native.Region) -> None:
    for offset, n in ((0, 8 * PAGE), (8 * PAGE, 0), (0, 0), (8 * PAGE - 1, 1)):
        managed = consume(region.tensor(offset, n))
        assert managed.contents.tensor.shape[0] == n
        delete(managed)


def test_wrong_arguments(region: _native.Region) -> None:
    values: list[tuple[Any, ...]] = [(), (0,), (0, 1, 2), ("0", 1), (0, 1.5), (None, None)]
    for wrong in values:
        with pytest.raises(TypeError):
            region.tensor(*wrong)


def test_memory(region: _native.Region) -> None:
    region.map([2])
    managed = consume(region.tensor(2 * PAGE, PAGE))
    ctypes.memset(managed.contents.tensor.data, 0x17, PAGE)
    assert ctypes.string_at(region.address + 3 * PAGE - 1, 1) == b"\x17"
    delete(managed)


def test_an_unused_capsule_lets_go(region: _native.Region, driver: Any) -> None:
    capsules = [region.tensor(0, PAGE) for _ in range(100)]
    region.close()
    held = driver.stats().reservations
    del capsules[1:]
    assert driver.stats().reservations == held
    del capsules
    assert driver.stats().reservations == held - 1


@pytest.mark.parametrize("close", ["region", "client", "both", "drop"])
def test_addresses_outlive_their_region(
    kvcached_environment: pytest.MonkeyPatch, driver: Any, kvctl: Callable[..., Result], close: str
) -> None:
    before = driver.stats().reservations
    client = _native.Client(instance="engine")
    region = client.open_region(8, PAGE)
    region.map([0])
    managed = consume(region.tensor(0, PAGE))
    if close in ("region", "both"):
        region.close()
    if close in ("client", "both"):
        client.close()
    del region, client
    assert kvctl("info", "--json").json()["granted_bytes"] == 0
    assert driver.stats().reservations == before + 1
    delete(managed)
    assert driver.stats().reservations == before


def test_deleter_on_a_thread_that_is_not_python_s(
    kvcached_environment: pytest.MonkeyPatch, driver: Any
) -> None:
    """pthread_create() with the deleter itself; this thread keeps the interpreter's lock until it is done."""
    libc = ctypes.PyDLL(None)
    before = driver.stats().reservations
    client = _native.Client(instance="engine")
    managed = consume(client.open_region(8, PAGE).tensor(0, PAGE))
    client.close()
    thread = ctypes.c_ulong()
    deleter = ctypes.cast(managed.contents.deleter, ctypes.c_void_p)
    assert libc.pthread_create(ctypes.byref(thread), None, deleter, managed) == 0
    assert libc.pthread_join(thread, None) == 0
    assert driver.stats().reservations == before


def test_consumed_capsule_does_nothing_at_its_end(region: _native.Region, driver: Any) -> None:
    capsule = region.tensor(0, PAGE)
    managed = consume(capsule)
    region.close()
    held = driver.stats().reservations
    del capsule
    assert driver.stats().reservations == held
    delete(managed)
    assert driver.stats().reservations == held - 1


def test_deleter_after_the_interpreter_has_ended(run_python: Callable[..., Result]) -> None:
    """As a framework's destructors may: here libc's atexit(), which runs after Python's end."""
    run_python(
        """
        import ctypes
        from kvcached import _native
        class Managed(ctypes.Structure):
            _fields_ = [("tensor", ctypes.c_char * 48), ("context", ctypes.c_void_p),
                        ("deleter", ctypes.c_void_p)]
        get = ctypes.pythonapi.PyCapsule_GetPointer
        get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        client = _native.Client(instance="engine")
        region = client.open_region(8, 2 << 20)
        region.map([0])
        capsule = region.tensor(0, 2 << 20)
        pointer = get(capsule, b"dltensor")
        name = ctypes.pythonapi.PyCapsule_SetName
        name.argtypes = [ctypes.py_object, ctypes.c_char_p]
        name(capsule, b"used_dltensor")
        deleter = Managed.from_address(pointer).deleter
        libc = ctypes.CDLL(None)
        libc.__cxa_atexit.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
        assert libc.__cxa_atexit(deleter, pointer, None) == 0
        """
    )


def test_torch(region: _native.Region, torch: Any, driver: Any) -> None:
    region.map([0, 1])
    flat = torch.utils.dlpack.from_dlpack(region.tensor(0, region.span_bytes))
    assert (flat.dtype, flat.numel(), flat.data_ptr()) == (torch.uint8, 8 * PAGE, region.address)
    half = flat[: 2 * PAGE].view(torch.float16)
    half.fill_(1.5)
    assert ctypes.string_at(region.address + PAGE, 2) == b"\x00\x3e"
    region.close()
    held = driver.stats().reservations
    del flat
    assert driver.stats().reservations == held
    del half
    assert driver.stats().reservations == held - 1
