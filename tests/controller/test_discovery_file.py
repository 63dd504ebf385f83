# SPDX-License-Identifier: Apache-2.0
"""Engines that a file names, and what becomes of them when something goes wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from controller.discovering import engine, failures, looking_at, put
from controller.live import eventually, run


def test_a_look_that_fails_is_not_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And a file that could be read, though what came after it failed, is read again."""

    async def main() -> None:
        path = tmp_path / "engines.yaml"
        put(path)
        async with looking_at(path) as (found, changes):
            look_up, fails = found._names.look_up, [True, True]

            async def fail(names: Any) -> None:
                if fails:
                    fails.pop()
                    raise RuntimeError("what nobody expects")
                await look_up(names)

            monkeypatch.setattr(found._names, "look_up", fail)
            put(path, engine("a"))
            await eventually(lambda: changes == [["a"]])
            assert not fails
        assert caplog.text.count("Engines could not be looked for") == 2

    run(main())


def test_an_engine_that_the_configuration_has_is_no_other_models(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """However it is spelled. That is said once, until it is over."""

    async def main() -> None:
        path = tmp_path / "engines.yaml"
        put(path)
        own, other = engine("own", url="http://127.0.0.1:8000"), engine("other", url="HTTP://LOCALHOST:8000")
        async with looking_at(path, own) as (_, changes):
            put(path, other, engine("b"))
            await eventually(lambda: changes[-1:] == [["own", "b"]])
            put(path, other, engine("c"))
            await eventually(lambda: changes[-1:] == [["own", "c"]])
            said = "Instance other is ignored at HTTP://LOCALHOST:8000, for own is there"
            assert caplog.text.count(said) == 1
            put(path)
            await eventually(lambda: changes[-1] == ["own"])
            put(path, other, engine("d"))
            await eventually(lambda: changes[-1] == ["own", "d"])
            assert caplog.text.count(said) == 2

    run(main())


def test_failures_are_counted_as_long_as_they_last(tmp_path: Path) -> None:
    """A file that is missing, one that is wrong, and none that is right, or right again."""

    async def main() -> None:
        path = tmp_path / "engines.yaml"
        put(path, engine("a"))
        async with looking_at(path) as (_, changes):
            put(path, engine("b"))
            await eventually(lambda: changes == [["b"]])
            assert not failures
            right = tmp_path / "right"
            path.rename(right)
            await eventually(lambda: len(failures) > 2)
            (tmp_path / "wrong").write_text("instances: 3")
            (tmp_path / "wrong").rename(path)
            before = len(failures)
            await eventually(lambda: len(failures) > before + 2)
            assert set(failures) == {"file"}
            right.rename(path)
            put(path, engine("c"))
            await eventually(lambda: changes == [["b"], ["c"]])
            before = len(failures)
            put(path, engine("d"))
            await eventually(lambda: changes == [["b"], ["c"], ["d"]])
            assert len(failures) == before

    run(main())
