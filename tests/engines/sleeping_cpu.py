# SPDX-License-Identifier: Apache-2.0
"""A plug-in for vLLM, of tests only, with which it accepts --enable-sleep-mode on CPUs: there it says that
its platform has no sleep, and its worker's sleep does nothing.

All else is vLLM's own, and kvcached's: routes, modes, levels, metrics, the scheduler's pause and who waits
meanwhile, and the KV cache, which kvcached's scheduler gives back to the daemon. Only the weights have no
memory of their own that could be given back. So they are overwritten when the worker is put to sleep: with
level 1 a copy brings them back, as vLLM's copy in host memory does, with level 2 only reload_weights."""

from __future__ import annotations

from typing import Any

import torch  # type: ignore[import-not-found, unused-ignore]

from kvcached.integration.vllm import plugin, worker_cpu


class Worker(worker_cpu.Worker):
    _copies: dict[str, Any] | None = None  # of level 1

    def sleep(self, level: int = 1) -> None:
        model = self.model_runner.model
        self._copies = {n: p.detach().clone() for n, p in model.named_parameters()} if level == 1 else None
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.5)

    def wake_up(self, tags: list[str] | None = None) -> None:
        if (tags is None or "weights" in tags) and self._copies is not None:
            with torch.no_grad():
                for name, parameter in self.model_runner.model.named_parameters():
                    parameter.copy_(self._copies[name])
            self._copies = None


def register() -> None:
    from vllm.platforms.cpu import CpuPlatform

    CpuPlatform.is_sleep_mode_available = lambda _self: True
    plugin.WORKERS["vllm.v1.worker.cpu_worker.CPUWorker"] = "engines.sleeping_cpu.Worker"
