# SPDX-License-Identifier: Apache-2.0
"""What this process has of kvcachedd: its connections, and a pool of memory for each group of layers.

A process is one of three things, and says so when it begins:

  engine      it decides and maps: scheduler and worker in one process
  worker      it has the GPU, and maps what its scheduler, in another process, wants
  scheduler   it decides for workers in other processes, and doesn't touch a GPU

Ranks: a worker is known by pp_rank x world_size + tp_rank, and its memory by that and the group. Each
worker's GPU has a daemon of its own: rank r is taken to be on the r-th visible GPU, unless
KVCACHED_WORKER_GPUS lists one for each rank ("0,1" or UUIDs), or KVCACHED_SOCKET names the one daemon that
there is.

Threads: init(), shutdown() and the pools may be used from any thread. A forked child has nothing of its
parent's, and may begin anew; with a GPU only where the parent has used none, which is CUDA's rule.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from kvcached import _native, pool_registry
from kvcached.errors import DaemonNotFoundError, DisconnectedError, KVCachedConfigError
from kvcached.layout import Layout
from kvcached.utils import get_kvcached_logger, instance_name, start_log, whole_number

NOT_INITIALIZED = "kvcached is not initialized. Please call init_kvcached() first."
SHUT_DOWN = "kvcached was shut down by shutdown_kvcached()"
GROUPS_MAX = 64  # of one process; keeps (group, rank) small

ReclaimFn = Callable[[int, int], object]


@dataclass(frozen=True)
class Role:
    """Who this process is. `separate`: scheduler and workers are different processes."""

    engine: str = "proc"  # vLLM, SGLang; part of the instance's name
    tp_rank: int = 0
    world_size: int = 1
    pp_rank: int = 0
    pp_size: int = 1
    is_worker: bool = False
    separate: bool = False
    device: int | None = None  # ordinal; None: nobody said, which is 0

    @property
    def native_role(self) -> int:
        if not self.separate:
            return _native.ROLE_ENGINE
        return _native.ROLE_WORKER if self.is_worker else _native.ROLE_SCHEDULER

    @property
    def rank(self) -> int:
        return self.pp_rank * self.world_size + self.tp_rank

    @property
    def ranks(self) -> range:
        """Those that a scheduler drives."""
        return range(self.world_size * self.pp_size)

    def differences(self, first: Role) -> list[str]:
        """What is not as it was said first, in words. The scheduler's side of an engine knows no rank, and
        names a device or not; a scheduler in a process of its own has neither."""
        compared = [("world_size", first.world_size), ("pp_size", first.pp_size)]
        if first.native_role != _native.ROLE_SCHEDULER:
            if self.is_worker == first.is_worker:
                compared += [("tp_rank", first.tp_rank), ("pp_rank", first.pp_rank)]
            if self.device is not None:
                compared.append(("device", first.device or 0))
        now = [(name, getattr(self, name), was) for name, was in compared]
        return [f"{name} is {new}, and was {was}" for name, new, was in now if new != was]


def parse_device(device: Any) -> tuple[str, int | None]:
    """Kind and ordinal of "cuda:1", "cuda", "cpu", a torch.device, 1, or None, which says neither."""
    if device is None:
        return "cuda", None
    if isinstance(device, bool):
        raise TypeError(f"device is {device}, and must be one such as cuda:0")
    if hasattr(device, "__index__"):
        return "cuda", whole_number(device, "device")
    found = re.fullmatch(r"(cuda|cpu)(?::([0-9]{1,4}))?", str(device))
    if found is None:
        raise KVCachedConfigError(f"{device} is no device such as cuda:0")
    return found[1], None if found[2] is None else int(found[2])


def device_index(device: Any) -> int:
    """Of "cuda:1", "cuda", "cpu", 1, a torch.device, or None."""
    return named_device(device) or 0


def named_device(device: Any) -> int | None:
    """As device_index(); None: it names none, as "cuda" does."""
    return parse_device(device)[1]


def _listed_gpu(index: int) -> str:
    """The index-th of the visible GPUs, as the library takes it: a number in PCI bus order, or a UUID."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return str(index)
    gpus = [gpu.strip() for gpu in visible.split(",") if gpu.strip()]
    return gpus[index] if index < len(gpus) else str(index)


def _own_gpu(index: int) -> str | None:
    """Of an engine or a worker, which may ask CUDA once its framework has begun to use it."""
    if os.environ.get("KVCACHED_SOCKET"):
        return None
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        uuid = str(torch.cuda.get_device_properties(index).uuid)
        return uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"
    return _listed_gpu(index)


def gpu_of_rank(rank: int) -> str | None:
    """Where a scheduler looks for a worker."""
    listed = [gpu.strip() for gpu in os.environ.get("KVCACHED_WORKER_GPUS", "").split(",") if gpu.strip()]
    if listed:
        if rank >= len(listed):
            raise KVCachedConfigError(
                f"KVCACHED_WORKER_GPUS lists {len(listed)} GPUs, and there is a rank {rank}"
            )
        return listed[rank]
    return None if os.environ.get("KVCACHED_SOCKET") else _listed_gpu(rank)


@dataclass
class Pool:
    """A group's memory: a region of this process, or, in a scheduler, one of each worker. known_layout: a
    scheduler's pool has none before a manager brings one, since regions don't say what lies in them."""

    group_id: int
    known_layout: Layout | None
    regions: list[_native.Region]
    client: _native.Client
    managers: list[weakref.ref[Any]] = field(default_factory=list)  # which have its blocks

    @property
    def layout(self) -> Layout:
        if self.known_layout is None:
            raise RuntimeError(f"What lies in the workers' group {self.group_id} has not been said")
        return self.known_layout

    @property
    def region(self) -> _native.Region:
        return self.regions[0]

    def close(self) -> None:
        with contextlib.ExitStack() as last:
            for region in reversed(self.regions):
                last.callback(region.close)


class Runtime:
    """Of one process, between init() and shutdown()."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self.instance = instance_name(role.engine)
        self.pools: dict[int, Pool] = {}
        self.own_limit: tuple[int | None, int] | None = None  # bytes and revision, of control
        self.manual_page_size = 0  # of vmm_ops; 0 and None: what the settings say
        self.manual_contiguous: bool | None = None
        self._closed = False
        self._clients: dict[str | None, _native.Client] = {}
        self._reclaimers: list[weakref.WeakMethod[Any]] = []
        # Held for moments only: the library's thread takes it for a reclaim, for which others may wait.
        self._lock = threading.Lock()
        # Held while the daemon, or a worker, is waited for.
        self._opening = threading.Lock()
        if role.native_role != _native.ROLE_SCHEDULER:
            self.client()

    # ---- Connections ----

    def client(self, rank: int | None = None) -> _native.Client:
        """Of this process' GPU, or, in a scheduler, of a rank's."""
        if self.role.native_role == _native.ROLE_SCHEDULER:
            gpu = gpu_of_rank(self.role.rank if rank is None else rank)
        else:
            gpu = _own_gpu(self.role.device or 0)
        with self._opening:
            return self._client_of(gpu)

    def _client_of(self, gpu: str | None) -> _native.Client:
        with self._lock:
            self.check_open()
            client = self._clients.get(gpu)
        if client is None or client.closed:
            try:
                client = _native.Client(
                    instance=self.instance, gpu=gpu, role=self.role.native_role, reclaim=self._on_reclaim
                )
            except DaemonNotFoundError as error:
                error.filename = os.environ.get("KVCACHED_SOCKET") or None
                raise
            self._keep(self._clients, gpu, client)
            get_kvcached_logger().debug("connected as %s, GPU %s", self.instance, client.device()["uuid"])
        return client

    def check_open(self) -> None:
        """RuntimeError after close()."""
        if self._closed:
            raise RuntimeError(SHUT_DOWN)

    def _keep(self, known: dict[Any, Any], key: Any, opened: _native.Client | Pool) -> None:
        """Closes it instead where another thread has called close() meanwhile."""
        with self._lock:
            if not self._closed:
                known[key] = opened
                return
        opened.close()
        raise RuntimeError(SHUT_DOWN)

    def clients(self) -> list[_native.Client]:
        with self._lock:
            return list(self._clients.values())

    def reconnect(self) -> None:
        """Where a connection has ended. DisconnectedError: there is memory yet, which came over it."""
        with self._lock:
            known = dict(self._clients)
        dead = {
            gpu: client for gpu, client in known.items() if client.closed or not client.status()["connected"]
        }
        if not dead:
            return
        if any(True for _ in self.each_pool()):
            raise DisconnectedError(
                "The connection to kvcachedd has ended; call shutdown_kvcached() before init_kvcached()"
            )
        with self._lock:
            for gpu, client in dead.items():
                if self._clients.get(gpu) is client:
                    del self._clients[gpu]
        for client in dead.values():
            client.close()
        if self.role.native_role != _native.ROLE_SCHEDULER:
            self.client()

    # ---- Reclaim ----

    def add_reclaimer(self, method: ReclaimFn) -> None:
        """A bound method (bytes, deadline_ms) that frees what it can spare, in an order of its own; it is
        called on a thread of the library, and forgotten with its object."""
        with self._lock:
            self._reclaimers[:] = [known for known in self._reclaimers if known() is not None]
            self._reclaimers.append(weakref.WeakMethod(method))

    def _on_reclaim(self, n_bytes: int, deadline_ms: int) -> None:
        with self._lock:
            methods = [method for method in (ref() for ref in self._reclaimers) if method is not None]
        for method in methods:
            try:
                method(n_bytes, deadline_ms)
            except BaseException:  # sys.exit() keeps no other from being asked, either
                get_kvcached_logger().exception("An engine that was asked for memory failed")

    # ---- Pools ----

    def open_pool(self, group_id: int, layout: Layout, pages: int, flags: int = 0) -> Pool:
        """Reserves addresses for so many pages. Of an engine or a worker."""
        if not 0 <= group_id < GROUPS_MAX:
            raise KVCachedConfigError(f"group_id is {group_id}, and must be from 0 to {GROUPS_MAX - 1}")
        if self.role.native_role == _native.ROLE_SCHEDULER:
            raise KVCachedConfigError("A scheduler has no GPU, so it makes no tensors: its workers do")
        client = self.client()
        if self.role.separate:
            flags |= _native.ORDERED
        with self._opening:
            if self.pool(group_id) is not None:
                raise RuntimeError(f"KV tensors of group {group_id} exist already")
            region = client.open_region(
                pages,
                layout.segment_page_bytes,
                segments=layout.segments,
                flags=flags,
                group=group_id,
                rank=self.role.rank,
            )
            pool = Pool(group_id, layout, [region], client)
            self._keep(self.pools, group_id, pool)
            return pool

    def drop_pool(self, pool: Pool) -> None:
        """Of whoever cannot make its tensors after all: its group may be opened again."""
        with self._lock:
            if self.pools.get(pool.group_id) is pool:
                del self.pools[pool.group_id]
        pool.close()

    def attach_pool(self, group_id: int, layout: Layout | None = None) -> Pool:
        """A group's regions at all workers, which are waited for. Of a scheduler."""
        clients = [self.client(rank) for rank in self.role.ranks]
        # One at a time: of two schedulers of a worker the last one rules.
        with self._opening:
            pool = self.pool(group_id)
            if pool is None:
                regions = [client.attach(group_id, rank) for rank, client in enumerate(clients)]
                pool = Pool(group_id, layout, regions, clients[0])
                self._keep(self.pools, group_id, pool)
            return pool

    def may_claim(self, pool: Pool, manager: object) -> bool:
        """Whether no other manager has the group's blocks."""
        return all(ref() in (None, manager) for ref in pool.managers)

    def claim(self, pool: Pool, manager: object) -> bool:
        """Has it be the group's only one. False: there is another."""
        with self._lock:
            if not self.may_claim(pool, manager):
                return False
            pool.managers[:] = [weakref.ref(manager)]
            return True

    def unclaim(self, manager: object) -> None:
        with self._lock:
            for pool in self.pools.values():
                pool.managers[:] = [ref for ref in pool.managers if ref() not in (None, manager)]

    def pool(self, group_id: int) -> Pool | None:
        with self._lock:
            return self.pools.get(group_id)

    def each_pool(self) -> Iterator[Pool]:
        with self._lock:
            pools = list(self.pools.values())
        return iter(pools)

    def close(self) -> None:
        """An exception on the way, such as a KeyboardInterrupt, keeps nothing from being closed."""
        pool_registry.clear_kv_cache_pools()
        with self._lock:
            self._closed = True
            pools, clients = list(self.pools.values()), list(self._clients.values())
            self.pools.clear()
            self._clients.clear()
        with contextlib.ExitStack() as last:
            for client in clients:
                last.callback(client.close)
            for pool in pools:
                last.callback(pool.close)
                for manager in (ref() for ref in pool.managers):
                    if manager is not None:
                        last.callback(manager.close)


_lock = threading.RLock()
_runtime: Runtime | None = None


def init(role: Role) -> Runtime:
    """Connects to the daemon. Again with the same role: does nothing, unless the connection has ended: then
    there is a new one, or DisconnectedError. An engine's worker and scheduler sides, in one process, are the
    same. RuntimeError: it is another role, device, rank or size."""
    global _runtime
    with _lock:
        if _runtime is None:
            start_log()
            _runtime = Runtime(role)
            return _runtime
        known = _runtime.role
        differ = ["in another role"] if known.native_role != role.native_role else role.differences(known)
        if differ:
            raise RuntimeError(
                f"kvcached is initialized already, {'; '.join(differ)}; call shutdown_kvcached() first"
            )
        _runtime.reconnect()
        return _runtime


def get() -> Runtime:
    runtime = _runtime
    if runtime is None:
        raise RuntimeError(NOT_INITIALIZED)
    return runtime


def get_or_none() -> Runtime | None:
    return _runtime


def shutdown() -> None:
    """Returns all memory and disconnects; tensors keep their addresses, which fault. Without init(), and a
    second time, it does nothing."""
    global _runtime
    with _lock:
        runtime, _runtime = _runtime, None
    if runtime is not None:
        runtime.close()


def _begin_anew() -> None:
    """In a forked child: the parent's handles don't work there, and its locks may be held for ever."""
    global _runtime, _lock
    _lock = threading.RLock()
    _runtime = None


os.register_at_fork(after_in_child=_begin_anew)
