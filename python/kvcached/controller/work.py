# SPDX-License-Identifier: Apache-2.0
"""Work that would keep all requests waiting if the event loop did it: large texts that are read or written.

Its threads are not those that asyncio has: these wait for names that are looked up, as long as that takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

_threads = ThreadPoolExecutor(4, thread_name_prefix="work")


async def in_thread(work: Callable[..., T], *arguments: Any) -> T:
    return await asyncio.get_running_loop().run_in_executor(_threads, work, *arguments)
