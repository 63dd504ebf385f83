# SPDX-License-Identifier: Apache-2.0
"""The worker for CPUs, which are a GPU where a daemon emulates one. vLLM has no sleep there: weights stay
where they are, and the KV cache is given back by the scheduler's side."""

from __future__ import annotations

from vllm.v1.worker.cpu_worker import CPUWorker

from kvcached.integration.vllm.worker import Elastic


class Worker(Elastic, CPUWorker):
    def _profile(self, usable: int) -> None:
        self.cache_config.kv_cache_memory_bytes = usable
        if self._should_warm_up_model():
            self.model_runner.warming_up_model()
        if self.parallel_config.pipeline_parallel_size > 1:
            # Makes the tensors that a stage receives; nothing else does where nothing is compiled.
            self.model_runner.profile_run()

    def sleep(self, level: int = 1) -> None:
        pass

    def wake_up(self, tags: list[str] | None = None) -> None:
        pass

    def discard(self, tags: tuple[str, ...]) -> None:
        pass
