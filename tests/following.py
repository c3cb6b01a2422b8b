"""A log follower at work in a test, and what it gave."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from gatewatch.daemon.collectors.logfile import Checkpoint, Chunk, LogFollower

LIMIT_S = 20.0


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs a coroutine test in an event loop of its own."""

    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        asyncio.run(test(*arguments, **named))

    return run


class Reader:
    """A follower at work, and what it gave."""

    def __init__(self, follower: LogFollower) -> None:
        self.follower = follower
        self.chunks: list[Chunk] = []
        self.notices: list[str] = []

    @property
    def lines(self) -> list[bytes]:
        return b"".join(c.data for c in self.chunks).splitlines(keepends=True)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not condition():  # noqa: ASYNC110 - what it waits for is not always of this loop
                await asyncio.sleep(0.001)

    async def run(self) -> None:
        async for chunk in self.follower.chunks():
            self.chunks.append(chunk)


@asynccontextmanager
async def following(
    path: Path, checkpoint: Checkpoint | None = None, **options: object
) -> AsyncIterator[Reader]:
    notices: list[str] = []
    settings_: dict[str, object] = {"settle_s": 0.0, "poll_s": 0.5, "notice": notices.append, **options}
    reader = Reader(LogFollower(path, checkpoint, **settings_))  # type: ignore[arg-type]
    reader.notices = notices
    task = asyncio.create_task(reader.run())
    try:
        yield reader
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def append(path: Path, data: bytes) -> None:
    with path.open("ab", buffering=0) as file:
        file.write(data)


async def gives(reader: Reader, *lines: bytes) -> None:
    try:
        await reader.until(lambda: len(reader.lines) >= len(lines))
    except TimeoutError:
        pass
    assert reader.lines == list(lines)
