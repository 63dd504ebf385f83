# SPDX-License-Identifier: Apache-2.0
"""Which batches the GPU may still be working on.

The scheduler frees tokens while a batch that reads them is under way. They may be written by a later batch at
once, which the GPU gets to in order; but the page that they lie in must not be unmapped before. So what is
freed carries the number of the last batch, its epoch, and an event after each batch says how far the GPU is.

Threads: the scheduler's only.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch


class Fence:
    """Epochs count batches from 1 on; 0 is before all of them."""

    def __init__(self) -> None:
        self.begun = 0
        self.completed = 0
        self._events: deque[tuple[int, list[torch.cuda.Event]]] = deque()

    def begin(self) -> None:
        """A batch is about to be launched."""
        self.begun += 1

    def end(self, *streams: Any) -> None:
        """The batch is launched on these CUDA streams. Streams of another kind: it has run already."""
        self._events.append(
            (self.begun, [s.record_event() for s in streams if isinstance(s, torch.cuda.Stream)])
        )

    def poll(self) -> int:
        """The last epoch that the GPU is through with."""
        while self._events and all(event.query() for event in self._events[0][1]):
            self.completed = self._events.popleft()[0]
        return self.completed

    def wait(self) -> int:
        """As poll(), of all that has been launched."""
        for _, events in self._events:
            for event in events:
                event.synchronize()
        return self.poll()

    @property
    def pending(self) -> int:
        """The epoch of what is freed now; 0: the GPU is idle."""
        return self.begun if self.poll() < self.begun else 0
