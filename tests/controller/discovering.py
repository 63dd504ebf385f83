# SPDX-License-Identifier: Apache-2.0
"""Discovery in a test's hands: it looks as often as tests want it, at a configuration's names, or at a file
that a test writes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from kvcached.controller import config, discovery
from kvcached.controller.discovery import Discovery

failures: list[str] = []  # of the last looking_at()


@asynccontextmanager
async def begun(found: Discovery, text: str, often: str) -> AsyncIterator[None]:
    """With that configuration. often: FILE_SECONDS or DNS_SECONDS."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(discovery, often, 0.001)
        await found.begin(config.parse(text, "c.yaml"))
        try:
            yield
        finally:
            await found.close()


def put(path: Path, *instances: dict[str, Any]) -> None:
    """As whoever writes it should."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps({"instances": instances}))
    new.rename(path)


def engine(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "model": name, "engine": "vllm", "url": f"http://{name}:8000", **more}


@asynccontextmanager
async def looking_at(path: Path, *own: dict[str, Any]) -> AsyncIterator[tuple[Discovery, list[list[str]]]]:
    """Beside a configuration with those of its own. And the names that there were after each change."""
    changes: list[list[str]] = []
    found = Discovery(lambda: changes.append(names_of(found)), lambda source: failures.append(source))
    failures.clear()
    text = json.dumps({"router": {"discovery_file": str(path)}, "instances": own})
    async with begun(found, text, "FILE_SECONDS"):
        yield found, changes


def names_of(found: Discovery) -> list[str]:
    return [instance.name for instance in found.instances]
