# SPDX-License-Identifier: Apache-2.0
"""Settings from the environment, and the log.

Booleans are "true", "1", "yes", "on" or their opposites. What the library reads itself (KVCACHED_SOCKET, the
bounds of preallocation, KVCACHED_IPC_TIMEOUT, KVCACHED_GPU_UTILIZATION) is not repeated here.
"""

from __future__ import annotations

import logging
import operator
import os
import re
import sys
from typing import Any

from kvcached import _native
from kvcached.errors import KVCachedConfigError

MIB = 1 << 20
_TRUE = ("true", "1", "yes", "on")
_FALSE = ("false", "0", "no", "off", "")


def env_bool(name: str, default: bool) -> bool:
    value = os.environ.get(name, "").strip().lower()
    if value in _TRUE:
        return True
    if value in _FALSE:
        return default if value == "" else False
    raise KVCachedConfigError(f"{name}={value}: neither true nor false")


def env_int(name: str, default: int) -> int:
    value = os.environ.get(name, "").strip()
    try:
        return int(value) if value else default
    except ValueError:
        raise KVCachedConfigError(f"{name}={value}: not a whole number") from None


def ipc_timeout() -> float | None:
    """Seconds that an answer may take: KVCACHED_IPC_TIMEOUT, else 60; None: no limit."""
    value = os.environ.get("KVCACHED_IPC_TIMEOUT", "").strip() or "60"
    if not re.fullmatch(r"-?\d+(\.\d+)?", value):
        raise KVCachedConfigError(f"KVCACHED_IPC_TIMEOUT={value}: not a number of seconds")
    seconds = float(value)
    return seconds if seconds > 0 else None


def page_size() -> int:
    """Bytes of a page of one layer's K or V: KVCACHED_PAGE_SIZE_MB, a multiple of 2, else 2 MiB."""
    megabytes = env_int("KVCACHED_PAGE_SIZE_MB", 2)
    if megabytes < 2 or megabytes % 2:
        raise KVCachedConfigError(f"KVCACHED_PAGE_SIZE_MB={megabytes}: not a positive multiple of 2")
    return megabytes * MIB


def contiguous_layout() -> bool:
    """Whether a page has all layers together (KVCACHED_CONTIGUOUS_LAYOUT), or each layer pages of its own."""
    return env_bool("KVCACHED_CONTIGUOUS_LAYOUT", True)


def holes_zero(holes: str | None = None) -> bool:
    """Whether what is not mapped reads as zero, in place of faulting: `holes`, else KVCACHED_HOLES, "fault"
    (the default) or "zero". See KVC_REGION_HOLES_ZERO in kvclient.h for what zero costs."""
    value = holes or os.environ.get("KVCACHED_HOLES", "").strip().lower() or "fault"
    if value not in ("fault", "zero"):
        raise KVCachedConfigError(f"KVCACHED_HOLES={value}: neither fault nor zero")
    return value == "zero"


def sanity_check() -> bool:
    """KVCACHED_SANITY_CHECK: whether a KVCacheManager keeps books of its own, to compare."""
    return env_bool("KVCACHED_SANITY_CHECK", False)


def is_enabled() -> bool:
    """What ENABLE_KVCACHED says."""
    return env_bool("ENABLE_KVCACHED", False)


def autopatch() -> bool:
    """What KVCACHED_AUTOPATCH says; without it, what ENABLE_KVCACHED says."""
    return env_bool("KVCACHED_AUTOPATCH", is_enabled())


def max_cached_tokens(default: int = -1) -> int | None:
    """Of free cached prefixes, KVCACHED_MAX_CACHED_TOKENS; None: no bound, which is also the default."""
    tokens = env_int("KVCACHED_MAX_CACHED_TOKENS", default)
    return None if tokens < 0 else tokens


def align_up(n: int, to: int) -> int:
    return (n + to - 1) // to * to


def whole_number(number: Any, name: str, least: int = 0) -> int:
    """`number` as an int, whatever kind of one it is. TypeError: it is none; KVCachedConfigError: it is less
    than `least`."""
    try:
        value = operator.index(number)
    except TypeError:
        raise TypeError(f"{name} is {number!r}, and must be a whole number") from None
    if value < least:
        raise KVCachedConfigError(f"{name} is {value}, and must be at least {least}")
    return value


def whole_numbers(numbers: Any, name: str) -> list[int]:
    """A list, of whatever can be gone through once: offsets, numbers of pages. Errors as whole_number()'s."""
    if isinstance(numbers, (str, bytes)):
        raise TypeError(f"{name} are {numbers!r}, and must be whole numbers")
    try:
        listed = list(numbers)
    except TypeError:
        raise TypeError(f"{name} are {numbers!r}, and must be a list") from None
    return [whole_number(number, f"one of {name}") for number in listed]


def instance_name(engine: str) -> str:
    """KVCACHED_IPC_NAME with what a name may not have replaced, else kvcached_ENGINE_<process group>."""
    name = os.environ.get("KVCACHED_IPC_NAME") or f"kvcached_{engine}_{os.getpgrp()}"
    return re.sub(r"[^A-Za-z0-9._-]|^[.-]", "_", name)[:64]


def log_colour() -> str:
    """What begins a coloured line: KVCACHED_LOG_COLOR_CODE, in which the escape may be spelled, else cyan."""
    value = os.environ.get("KVCACHED_LOG_COLOR_CODE") or "\033[36m"
    code = re.sub(r"\\(033|x1b|e)", "\033", value, flags=re.IGNORECASE)
    if not re.fullmatch("(\033\\[[0-9;:]*m)+", code):
        raise KVCachedConfigError(f"KVCACHED_LOG_COLOR_CODE={value!r}: no colour such as \\033[36m")
    return code


class _Coloured(logging.Formatter):
    def __init__(self, fmt: str) -> None:
        super().__init__(fmt)
        self._colour = log_colour()

    def format(self, record: logging.LogRecord) -> str:
        return f"{self._colour}{super().format(record)}\033[0m"


def _make_logger() -> logging.Logger:
    logger = logging.getLogger("kvcached")
    if logger.handlers:
        return logger
    said = os.environ.get("KVCACHED_LOG_LEVEL", "").strip()
    level = said.upper() or "INFO"
    if level not in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"):
        raise KVCachedConfigError(f"KVCACHED_LOG_LEVEL={said}: not DEBUG, INFO, WARNING, ERROR or CRITICAL")
    handler = logging.StreamHandler(sys.stderr)
    coloured = env_bool("KVCACHED_LOG_COLOR", True) and sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    formatter = _Coloured if coloured else logging.Formatter
    handler.setFormatter(formatter("[kvcached][%(levelname)s][%(asctime)s][%(name)s] %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    return logger


_LEVELS = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR)


def _on_log(level: int, sentence: str) -> None:
    get_kvcached_logger().log(_LEVELS[level], "%s", sentence)


def get_kvcached_logger(name: str = "kvcached") -> logging.Logger:
    """On stderr, from KVCACHED_LOG_LEVEL on; the library's own words come through it, too."""
    root = _make_logger()
    return root if name == "kvcached" else root.getChild(name.removeprefix("kvcached."))


def start_log() -> None:
    _make_logger()
    _native.set_log_handler(_on_log)
