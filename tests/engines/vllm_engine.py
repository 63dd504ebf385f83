# SPDX-License-Identifier: Apache-2.0
"""A process with a vLLM engine, for tests; the engines' Python runs it: vllm_engine.py MODEL

It reads commands from its input, a JSON list [name, argument...] a line, and answers each with a line of
JSON: {"ok": ...} or {"error": "..."}. Engines come and go in it (start, stop); imports are paid once."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def asynchronous_on_cpus() -> Iterator[None]:
    """vLLM's platform of CPUs sets async scheduling off, since nothing is gained there; what its model runner
    asks of CUDA then has nothing to wait for."""
    import torch  # type: ignore[import-not-found, unused-ignore]
    from vllm.platforms.cpu import CpuPlatform

    plain = CpuPlatform.check_and_update_config

    def keep(_: Any, config: Any) -> None:
        plain(config)
        config.scheduler_config.async_scheduling = True

    torch.cuda.Event = torch.cuda.Stream = Ended
    torch.cuda.current_stream = Ended
    torch.cuda.stream = contextlib.nullcontext
    CpuPlatform.check_and_update_config = classmethod(keep)
    try:
        yield
    finally:
        CpuPlatform.check_and_update_config = plain


class Ended:
    """A stream or an event of work that has been done."""

    def __init__(self, **options: Any) -> None:
        pass

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def wait_stream(self, other: Any) -> None:
        pass


class Host:
    def __init__(self, model: str) -> None:
        self.model = model
        self.llm: Any = None
        self.done: dict[str, list[int]] = {}

    # ---- Engines ----

    def start(self, environment: dict[str, str], options: dict[str, Any]) -> str:
        from vllm import LLM

        os.environ.update(environment)
        self.done = {}
        given = {
            "model": self.model,
            "max_model_len": 512,
            "max_num_seqs": 16,
            "enforce_eager": True,
            "seed": 0,
            "dtype": "float32",
            "block_size": 32,
            "disable_log_stats": False,
        }
        with asynchronous_on_cpus() if options.get("async_scheduling") else contextlib.nullcontext():
            self.llm = LLM(**(given | options))
        return type(self.llm.llm_engine.engine_core).__name__

    def stop(self) -> None:
        from vllm.distributed import cleanup_dist_env_and_memory

        self.llm.llm_engine.engine_core.shutdown()
        self.llm = None
        cleanup_dist_env_and_memory()

    @property
    def scheduler(self) -> Any:
        return self.llm.llm_engine.engine_core.engine_core.scheduler

    @property
    def block_pool(self) -> Any:
        return self.scheduler.kv_cache_manager.block_pool

    # ---- Requests ----

    def _sampling(self, tokens: int) -> Any:
        from vllm import SamplingParams

        return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)

    def generate(self, prompts: list[list[int]], tokens: int) -> list[list[int]]:
        inputs = [{"prompt_token_ids": p} for p in prompts]
        outputs = self.llm.generate(inputs, self._sampling(tokens), use_tqdm=False)
        return [list(o.outputs[0].token_ids) for o in outputs]

    def add(self, prompts: dict[str, list[int]], tokens: int) -> None:
        for name, prompt in prompts.items():
            self.llm.llm_engine.add_request(name, {"prompt_token_ids": prompt}, self._sampling(tokens))

    def step(self, n: int) -> dict[str, Any]:
        """So many steps, or up to the end; requests that have ended, and how many have not."""
        engine, ended = self.llm.llm_engine, {}
        while n and engine.has_unfinished_requests():
            n -= 1
            for output in engine.step():
                if output.finished:
                    ended[output.request_id.partition("-")[0]] = list(output.outputs[0].token_ids)
        return {"ended": ended, "left": engine.get_num_unfinished_requests()}

    def sleep(self, level: int) -> None:
        self.llm.sleep(level)

    def wake(self) -> None:
        self.llm.wake_up()

    def reset(self) -> bool:
        return bool(self.llm.reset_prefix_cache())

    # ---- Looks inside ----

    def metrics(self) -> dict[str, float]:
        return {m.name: m.value for m in self.llm.get_metrics() if hasattr(m, "value")}

    def pool(self) -> dict[str, Any]:
        pool = self.block_pool
        return {
            "class": type(pool).__name__,
            "scheduler": type(self.scheduler).__name__,
            "held": pool.held,
            "evictable": pool.evictable,
            "blocks": pool.num_gpu_blocks,
            "free": pool.get_num_free_blocks(),
            "groups": len(self.scheduler.kv_cache_manager.coordinator.single_type_managers),
        }

    def touch(self, offset: int) -> bool:
        """Whether that byte of the KV buffer can be read; the kernel says so without a fault."""
        from kvcached import runtime

        pool = runtime.get().pool(0)
        assert pool is not None
        ends = os.pipe()
        copied = ctypes.CDLL(None).write(
            ends[1], ctypes.c_void_p(pool.region.address + offset), ctypes.c_size_t(1)
        )
        for end in ends:
            os.close(end)
        return bool(copied == 1)

    def span(self) -> int:
        from kvcached import runtime

        pool = runtime.get().pool(0)
        assert pool is not None
        return int(pool.region.span_bytes)

    def time_schedule(self, prompts: list[list[int]], tokens: int) -> dict[str, float]:
        """Medians in microseconds over the steps of these requests: of the scheduler's two calls, and of a
        step."""
        scheduler = self.scheduler
        spent: list[int] = []
        steps: list[int] = []
        plain = {name: getattr(scheduler, name) for name in ("schedule", "update_from_output")}

        def timed(name: str) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                begun = time.perf_counter_ns()
                result = plain[name](*args, **kwargs)
                spent[-1] += time.perf_counter_ns() - begun
                return result

            return call

        for name in plain:
            setattr(scheduler, name, timed(name))
        self.add({f"t{i}": p for i, p in enumerate(prompts)}, tokens)
        engine = self.llm.llm_engine
        while engine.has_unfinished_requests():
            spent.append(0)
            begun = time.perf_counter_ns()
            engine.step()
            steps.append(time.perf_counter_ns() - begun)
        for name in plain:
            delattr(scheduler, name)
        return {
            "steps": len(steps),
            "scheduler_us": statistics.median(spent) / 1000,
            "step_us": statistics.median(steps) / 1000,
        }


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what vLLM prints is for the log
    host = Host(sys.argv[1])
    import vllm

    print(json.dumps({"ok": vllm.__version__}), file=answers)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        try:
            answer = {"ok": getattr(host, name)(*arguments)}
        except BaseException as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
