# SPDX-License-Identifier: Apache-2.0
"""SGLang's own server on a CPU, without SGLang's kernels. Arguments are those of sglang.launch_server; each
of its processes imports this before it imports SGLang.

Three modules are replaced. torchvision: see torchvision_stub.py. vllm._custom_ops, by which SGLang turns
queries and keys where it has no kernel of its own: done with torch. torch_memory_saver, which gives the
weights' memory back: there is nothing to give here, so they are overwritten when they are released, and come
back from a copy, if there is to be one, else only when they are loaded again. KV memory is kvcached's, and
all else is SGLang's own."""

from __future__ import annotations

import contextlib
import importlib.machinery
import runpy
import sys
import types
from collections.abc import Iterator
from typing import Any

from engines import torchvision_stub

# isort: split
import torch  # type: ignore[import-not-found, unused-ignore]
from torch.nn.modules.module import register_module_parameter_registration_hook

__all__ = ["torchvision_stub"]


def rotary_embedding(
    positions: Any, query: Any, key: Any, head_size: int, cos_sin_cache: Any, is_neox: bool
) -> None:
    """In place; two halves of a head are turned together."""
    assert is_neox
    cos, sin = cos_sin_cache[positions].unsqueeze(1).to(query.dtype).chunk(2, dim=-1)
    for tensor in (query, key):
        heads = tensor.view(tensor.shape[0], -1, head_size)
        first, second = heads[..., : 2 * cos.shape[-1]].chunk(2, dim=-1)
        turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
        heads[..., : 2 * cos.shape[-1]] = turned


class MemorySaver:
    enabled = True
    hook_mode: Any = None

    def __init__(self) -> None:
        self._keeps = False
        self._weights: dict[tuple[Any, str], Any] = {}  # by module and name
        self._copies: list[tuple[Any, Any]] = []

    @contextlib.contextmanager
    def region(self, tag: str, enable_cpu_backup: bool) -> Iterator[None]:
        if tag != "weights":
            yield
            return
        self._keeps = enable_cpu_backup
        registration = register_module_parameter_registration_hook(self._note)
        try:
            yield
        finally:
            registration.remove()

    def _note(self, module: Any, name: str, weight: Any) -> None:
        if weight is not None:
            self._weights[module, name] = weight

    @contextlib.contextmanager
    def disable(self) -> Iterator[None]:
        yield

    def pause(self, tag: str) -> None:
        if tag == "weights":
            weights = list(self._weights.values())
            assert weights
            with torch.no_grad():
                self._copies = [(w, w.detach().clone()) for w in weights if self._keeps]
                for weight in weights:
                    weight.fill_(0.5)

    def resume(self, tag: str) -> None:
        if tag == "weights":
            with torch.no_grad():
                for weight, copy in self._copies:
                    weight.copy_(copy)


def install(name: str, **attributes: Any) -> None:
    made = types.ModuleType(name)
    made.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(made).update(attributes)
    sys.modules[name] = made


install("vllm", __path__=[])
install("vllm._custom_ops", rotary_embedding=rotary_embedding)
install("torch_memory_saver", torch_memory_saver=MemorySaver(), configure_subprocess=contextlib.nullcontext)

if __name__ == "__main__":
    sys.argv[0] = "sglang.launch_server"
    runpy.run_module("sglang.launch_server", run_name="__main__")
