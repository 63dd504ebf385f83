# SPDX-License-Identifier: Apache-2.0
"""The entry point `vllm.general_plugins`, which vLLM calls in each of its processes before it does anything.

Where ENABLE_KVCACHED or KVCACHED_AUTOPATCH says so, engines get kvcached's worker and scheduler by vLLM's own
settings for these, --worker-cls and --scheduler-cls. There is no hook that sets them, so EngineArgs'
create_engine_config() is wrapped; in other processes there is nothing to do, since they receive the
configuration.
"""

from __future__ import annotations

import functools
import os
from typing import Any

from kvcached.errors import KVCachedConfigError
from kvcached.integration.vllm import interfaces, versions
from kvcached.utils import autopatch, get_kvcached_logger, instance_name

WORKERS = {
    "vllm.v1.worker.gpu_worker.Worker": "kvcached.integration.vllm.worker_gpu.Worker",
    "vllm.v1.worker.cpu_worker.CPUWorker": "kvcached.integration.vllm.worker_cpu.Worker",
}
SCHEDULER = "kvcached.integration.vllm.scheduler.elastic_scheduler"


def configure(config: Any) -> None:
    """Puts kvcached into a VllmConfig. Again: does nothing. KVCachedConfigError: the two don't go
    together."""
    parallel, scheduling = config.parallel_config, config.scheduler_config
    if scheduling.scheduler_cls == SCHEDULER:
        return
    refuse(config)
    parallel.worker_cls = WORKERS.get(parallel.worker_cls, parallel.worker_cls)
    scheduling.scheduler_cls = SCHEDULER
    if parallel.distributed_executor_backend != "uni" and not os.environ.get("KVCACHED_IPC_NAME"):
        name = instance_name(interfaces.ENGINE)
        # Two engines of one shell command are in one process group, and their workers would be taken for the
        # same ones. Workers inherit the name.
        alone = os.getpgrp() == os.getpid()
        os.environ["KVCACHED_IPC_NAME"] = name if alone else f"{name}_{os.getpid()}"


def refuse(config: Any) -> None:
    parallel = config.parallel_config
    known = {*WORKERS, *WORKERS.values()}
    if parallel.worker_cls not in known:
        raise KVCachedConfigError(
            f"--worker-cls is {parallel.worker_cls}; kvcached has workers for {', '.join(WORKERS)}"
        )
    if config.scheduler_config.scheduler_cls is not None:
        raise KVCachedConfigError(
            f"--scheduler-cls is {config.scheduler_config.scheduler_cls}, and kvcached needs its own"
        )
    if parallel.distributed_executor_backend not in ("uni", "mp"):
        raise KVCachedConfigError(
            f"--distributed-executor-backend is {parallel.distributed_executor_backend}; uni and mp are "
            "supported"
        )
    if parallel.data_parallel_size > 1:
        raise KVCachedConfigError("--data-parallel-size above 1 is not supported: start several engines")
    if config.kv_transfer_config is not None:
        raise KVCachedConfigError(
            "KV connectors register or copy the whole KV buffer, most of which has no memory behind it"
        )


def register() -> None:
    """Of the entry point; any number of times, in every process."""
    if not autopatch():
        return
    from vllm.engine.arg_utils import EngineArgs

    plain = EngineArgs.create_engine_config
    if getattr(plain, "kvcached", False):
        return
    versions.check_config(EngineArgs)
    versions.note()

    @functools.wraps(plain)
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        config = plain(self, *args, **kwargs)
        configure(config)
        return config

    create_engine_config.kvcached = True  # type: ignore[attr-defined]
    EngineArgs.create_engine_config = create_engine_config
    get_kvcached_logger("kvcached.vllm").debug("vLLM %s will use kvcached", versions.installed())
