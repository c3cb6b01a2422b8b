"""Any sequence of appends, rotations, truncations and restarts gives every line once and in order."""

from __future__ import annotations

import asyncio
import gzip
import os
import shutil
import tempfile
from pathlib import Path

from following import Reader, append, following
from gatewatch.daemon.collectors.lines import LineCutter
from gatewatch.daemon.collectors.logfile import Checkpoint, Chunk, LogFollower
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@given(
    st.lists(st.integers(0, 40), max_size=30),
    st.lists(st.integers(1, 60), max_size=40),
    st.integers(1, 20),
    st.booleans(),
)
def test_cutting_does_not_depend_on_how_the_bytes_are_divided(
    lengths: list[int], splits: list[int], longest: int, ended: bool
) -> None:
    data = b"\n".join(b"abcdefghij"[: n % 10] * (n // 10 + 1) for n in lengths) + (b"\n" if ended else b"")
    cutter, got, at = LineCutter(longest=longest), b"", 0
    for split in [*splits, len(data)]:
        got += cutter.feed(data[at : at + split])
        at += split
        assert cutter.start <= cutter.position <= len(data)
        assert data[: cutter.start] == b"" or data[cutter.start - 1 : cutter.start] == b"\n"
    whole = data[: data.rfind(b"\n") + 1]
    assert got == b"".join(line[:longest] + b"\n" for line in whole.split(b"\n")[:-1])
    assert cutter.start == len(whole)


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 400)),
        st.tuples(
            st.sampled_from(
                ["rotate", "copytruncate", "truncate", "recreate", "settle", "compress", "restart"]
            )
        ),
    ),
    max_size=25,
)


class Site:
    """A log and what an administrator does to it; every line is written once and never again."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "auth.log"
        self.log.touch()
        self.written = b""
        self.stream = b"".join(b"line %d of %d\n" % (n, n * 7919) for n in range(4000))

    def append(self, count: int) -> None:
        piece = self.stream[len(self.written) : len(self.written) + count]
        append(self.log, piece)
        self.written += piece

    def end_line(self) -> None:
        if self.written and not self.written.endswith(b"\n"):
            self.append(self.stream.index(b"\n", len(self.written)) + 1 - len(self.written))

    def whole(self) -> bytes:
        return self.written[: self.written.rfind(b"\n") + 1]

    def shift(self) -> None:
        folder = self.log.parent
        for number in range(30, 0, -1):
            for ending in ("", ".gz"):
                old = folder / f"auth.log.{number}{ending}"
                if old.exists():
                    old.rename(folder / f"auth.log.{number + 1}{ending}")

    def compress(self) -> None:
        for old in self.log.parent.glob("auth.log.*"):
            if old.suffix != ".gz" and old.name != "auth.log.1":
                packed = old.with_name(old.name + ".gz")
                packed.write_bytes(gzip.compress(old.read_bytes()))
                old.unlink()


async def play(folder: Path, operations: list[tuple[str, int] | tuple[str]], chunk_bytes: int) -> None:
    site = Site(folder)
    given_before: list[Chunk] = []
    checkpoint: Checkpoint | None = None

    def got(reader: Reader) -> bytes:
        return b"".join(c.data for c in [*given_before, *reader.chunks])

    remaining = list(operations)
    while True:
        async with following(site.log, checkpoint, chunk_bytes=chunk_bytes) as reader:

            async def settle(reader: Reader = reader) -> None:
                whole = site.whole()
                try:
                    await reader.until(lambda: len(got(reader)) >= len(whole))
                except TimeoutError:
                    pass
                assert got(reader) == whole

            restart = False
            while remaining and not restart:
                operation = remaining.pop(0)
                match operation[0]:
                    case "append":
                        site.append(operation[-1])  # type: ignore[arg-type]
                        await asyncio.sleep(0)
                    case "rotate":
                        site.end_line()
                        site.shift()
                        site.log.rename(folder / "auth.log.1")
                        site.log.touch()
                    case "copytruncate":
                        site.end_line()
                        await settle()
                        if site.log.stat().st_size:
                            site.append(50)
                            site.end_line()
                        site.shift()
                        shutil.copy(site.log, folder / "auth.log.1")
                        os.truncate(site.log, 0)
                    case "truncate":
                        site.end_line()
                        await settle()
                        os.truncate(site.log, 0)
                    case "recreate":
                        site.end_line()
                        await settle()
                        site.log.unlink()
                        site.append(50)
                        site.end_line()
                        await settle()
                    case "settle":
                        await settle()
                    case "compress":
                        await settle()
                        site.compress()
                    case "restart":
                        restart = True
            if not restart:
                await settle()
        given_before += reader.chunks
        checkpoint = given_before[-1].checkpoint if given_before else None
        if not restart:
            break
    follower = LogFollower(site.log)
    for chunk in given_before:
        assert follower.read_range(chunk.start, chunk.end, chunk.checkpoint) in (chunk.data, None)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(OPERATIONS, st.sampled_from([7, 64, 1000, 1 << 18]))
def test_any_sequence_of_appends_rotations_and_restarts_gives_every_line_once_and_in_order(
    operations: list[tuple[str, int] | tuple[str]], chunk_bytes: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(play(Path(folder), operations, chunk_bytes))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 30), st.integers(0, 3), st.booleans())
def test_resuming_from_any_checkpoint_gives_the_rest(at: int, rotations: int, compressed: bool) -> None:
    async def scenario(folder: Path) -> None:
        site = Site(folder)
        site.append(700)
        site.end_line()
        async with following(site.log, chunk_bytes=20) as reader:
            await reader.until(lambda: b"".join(reader.lines) == site.whole())
        chunk = reader.chunks[min(at, len(reader.chunks) - 1)]
        done = chunk.end
        for _ in range(rotations):
            site.shift()
            site.log.rename(folder / "auth.log.1")
            site.log.touch()
            site.append(100)
            site.end_line()
        if compressed:
            site.compress()
        async with following(site.log, chunk.checkpoint) as rest:
            await rest.until(lambda: len(b"".join(rest.lines)) >= len(site.whole()) - done)
        assert b"".join(rest.lines) == site.whole()[done:]

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(scenario(Path(folder)))
