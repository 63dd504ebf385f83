# SPDX-License-Identifier: Apache-2.0
"""The worker for GPUs. Sleeping is vLLM's for the weights; the KV cache is given back by the scheduler's
side."""

from __future__ import annotations

from vllm.v1.worker import gpu_worker

from kvcached.integration.vllm.worker import Elastic


class Worker(Elastic, gpu_worker.Worker):
    def _profile(self, usable: int) -> None:
        self.cache_config.kv_cache_memory_bytes = usable
        gpu_worker.Worker.determine_available_memory(self)
