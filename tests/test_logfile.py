"""The follower gives every whole line once and in order, whatever happens to the file."""

from __future__ import annotations

import asyncio
import functools
import gzip
import itertools
import lzma
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from gatewatch.daemon.collectors.lines import LONGEST_LINE, LineCutter
from gatewatch.daemon.collectors.logfile import Checkpoint, Chunk, LogFollower, read_chunks
from gatewatch.daemon.errors import InputError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

LIMIT_S = 20.0
MOST_QUEUED = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())


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


@in_loop
async def test_lines_there_before_are_told_from_lines_that_come(tmp_path: Path) -> None:
    log = tmp_path / "auth.log"
    log.write_bytes(b"one\ntwo\nthr")
    async with following(log) as reader:
        await gives(reader, b"one\n", b"two\n")
        append(log, b"ee\nfour\n")
        await gives(reader, b"one\n", b"two\n", b"three\n", b"four\n")
    assert [c.existing for c in reader.chunks] == [True, False]
    assert [c.first_line for c in reader.chunks] == [1, 3]
    assert [(c.start, c.end) for c in reader.chunks] == [(0, 8), (8, 19)]
    assert reader.chunks[-1].checkpoint.line == 4
    assert reader.follower.counters.in_bytes == 19


@in_loop
async def test_a_file_that_is_not_there_yet_is_waited_for_and_said_once(tmp_path: Path) -> None:
    log = tmp_path / "later" / "auth.log"
    async with following(log, poll_s=0.01) as reader:
        await reader.until(lambda: bool(reader.notices))
        log.parent.mkdir()
        await asyncio.sleep(0.05)
        log.write_bytes(b"one\n")
        await gives(reader, b"one\n")
    assert len(reader.notices) == 1
    assert "does not exist" in reader.notices[0]


@in_loop
async def test_a_directory_that_appears_is_noticed_without_the_poll(tmp_path: Path) -> None:
    log = tmp_path / "a" / "b" / "auth.log"
    async with following(log, poll_s=3600.0) as reader:
        await reader.until(lambda: bool(reader.notices))
        (tmp_path / "a").mkdir()
        await asyncio.sleep(0.02)
        (tmp_path / "a" / "b").mkdir()
        await asyncio.sleep(0.02)
        log.write_bytes(b"one\n")
        await gives(reader, b"one\n")


@in_loop
async def test_rename_and_create_loses_nothing_written_late_to_the_old_file(tmp_path: Path) -> None:
    log = tmp_path / "auth.log"
    log.write_bytes(b"one\n")
    writer = log.open("ab", buffering=0)
    async with following(log) as reader:
        await gives(reader, b"one\n")
        log.rename(tmp_path / "auth.log.1")
        log.touch()
        writer.write(b"two\n")
        await gives(reader, b"one\n", b"two\n")
        writer.write(b"three\n")
        append(log, b"four\n")
        await gives(reader, b"one\n", b"two\n", b"three\n", b"four\n")
    writer.close()
    assert reader.follower.counters.rotations == 1
    assert reader.chunks[-1].first_line == 1


@in_loop
async def test_several_processes_that_move_over_one_after_another_lose_no_line(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    log.write_bytes(b"one\n")
    slow = log.open("ab", buffering=0)
    async with following(log, settle_s=0.3) as reader:
        await gives(reader, b"one\n")
        log.rename(tmp_path / "access.log.1")
        append(log, b"new\n")
        await asyncio.sleep(0.05)
        slow.write(b"old\n")
        await gives(reader, b"one\n", b"old\n", b"new\n")
    slow.close()


@in_loop
async def test_two_rotations_before_a_look_lose_nothing(tmp_path: Path) -> None:
    log = tmp_path / "auth.log"
    log.write_bytes(b"one\n")
    async with following(log) as reader:
        await gives(reader, b"one\n")
        append(log, b"two\n")
        for rotation in range(3):
            for number in range(rotation, 0, -1):
                (tmp_path / f"auth.log.{number}").rename(tmp_path / f"auth.log.{number + 1}")
            log.rename(tmp_path / "auth.log.1")
            log.write_bytes(b"file %d\n" % rotation)
        await gives(reader, b"one\n", b"two\n", b"file 0\n", b"file 1\n", b"file 2\n")


@in_loop
async def test_a_file_that_came_and_went_is_read_although_the_newest_is_still_empty(tmp_path: Path) -> None:
    log = tmp_path / "auth.log"
    log.write_bytes(b"one\n")
    async with following(log) as reader:
        await gives(reader, b"one\n")
        log.rename(tmp_path / "auth.log.2")
        log.write_bytes(b"two\n")
        log.rename(tmp_path / "auth.log.1")
        log.touch()
        await gives(reader, b"one\n", b"two\n")


WRITER = """
import os, sys, time
path, name = sys.argv[1:]
fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
number = 0
while os.getppid() > 1 and not os.path.exists(path + "-stop"):
    for _ in range(40):
        os.write(fd, b"%s %d\\n" % (name.encode(), number))
        number += 1
    time.sleep(0.001)
    # As a worker that is told to reopen its log: some time after the rotation.
    if number % 200 == 0 and (not os.path.exists(path) or os.stat(path).st_ino != os.fstat(fd).st_ino):
        os.close(fd)
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
print(number)
"""


@in_loop
async def test_real_writers_that_reopen_in_their_own_time_lose_no_line(tmp_path: Path) -> None:
    log, names = tmp_path / "access.log", ("a", "b", "c")
    log.touch()
    async with following(log, settle_s=0.3) as reader:
        writers = [
            await asyncio.create_subprocess_exec(
                sys.executable, "-c", WRITER, str(log), name, stdout=asyncio.subprocess.PIPE
            )
            for name in names
        ]
        for rotation in range(3):
            await reader.until(lambda rotation=rotation: reader.follower.counters.rotations == rotation)
            lines = reader.follower.counters.lines
            await reader.until(lambda lines=lines: reader.follower.counters.lines > lines + 1000)
            for number in range(rotation, 0, -1):
                (tmp_path / f"access.log.{number}").rename(tmp_path / f"access.log.{number + 1}")
            log.rename(tmp_path / "access.log.1")
            log.touch()
        await reader.until(lambda: reader.follower.counters.rotations == 3)
        (tmp_path / "access.log-stop").touch()
        counts = [int((await writer.communicate())[0]) for writer in writers]
        await reader.until(lambda: reader.follower.counters.lines >= sum(counts))
    for name, count in zip(names, counts, strict=True):
        mine = [line for line in reader.lines if line.startswith(name.encode())]
        assert mine == [b"%s %d\n" % (name.encode(), n) for n in range(count)]


@in_loop
async def test_copytruncate_reads_what_it_missed_from_the_copy(tmp_path: Path) -> None:
    log = tmp_path / "auth.log"
    log.write_bytes(b"one\n")
    async with following(log) as reader:
        await gives(reader, b"one\n")
        append(log, b"two\n")
        shutil.copy(log, tmp_path / "auth.log.1")
        os.truncate(log, 0)
        append(log, b"three is longer than what was there before\n")
        await gives(reader, b"one\n", b"two\n", b"three is longer than what was there before\n")
    assert reader.follower.counters.truncations == 1


@in_loop
async def test_two_copytruncates_before_a_look_lose_nothing(tmp_path: Path) -> None:
    log = tmp_path / "auth.log"
    log.write_bytes(b"one\n")
    async with following(log) as reader:
        await gives(reader, b"one\n")
        append(log, b"two\n")
        shutil.copy(log, tmp_path / "auth.log.2")
        os.truncate(log, 0)
        append(log, b"three\n")
        shutil.copy(log, tmp_path / "auth.log.1")
        os.truncate(log, 0)
        append(log, b"four\n")
        await gives(reader, b"one\n", b"two\n", b"three\n", b"four\n")


@in_loop
async def test_a_truncated_log_that_begins_as_before_and_grew_past_the_offset_is_noticed(
    tmp_path: Path,
) -> None:
    log = tmp_path / "app.log"
    banner = b"# fields: " + b"x" * 300 + b"\n"
    log.write_bytes(banner + b"one\n")
    async with following(log) as reader:
        await gives(reader, banner, b"one\n")
        with log.open("r+b", buffering=0) as writer:
            writer.truncate(0)
            writer.write(banner + b"a line that is longer than one\n")
        await gives(reader, banner, b"one\n", banner, b"a line that is longer than one\n")


@in_loop
async def test_a_truncated_file_starts_again_at_its_beginning(tmp_path: Path) -> None:
    log = tmp_path / "auth.log"
    log.write_bytes(b"one\ntwo\nhalf")
    async with following(log) as reader:
        await gives(reader, b"one\n", b"two\n")
        await reader.until(lambda: reader.follower.counters.in_bytes == 12)
        log.write_bytes(b"x\n")
        await gives(reader, b"one\n", b"two\n", b"x\n")
    assert reader.follower.counters.torn_lines == 1


@in_loop
async def test_a_writer_that_goes_on_at_its_old_offset_leaves_a_hole_that_is_not_read(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    log.write_bytes(b"")
    with log.open("r+b", buffering=0) as writer:
        async with following(log) as reader:
            writer.write(b"x" * (1 << 20) + b"\n")
            await reader.until(lambda: len(reader.lines) == 1)
            os.truncate(log, 0)
            writer.write(b"after\n")
            await reader.until(lambda: len(reader.lines) == 2)
    assert reader.lines[1].lstrip(b"\0") == b"after\n"
    assert reader.follower.counters.in_bytes < (1 << 20) + 2 * 4096


@in_loop
async def test_deletion_and_creation_go_on_with_the_new_file(tmp_path: Path) -> None:
    log = tmp_path / "auth.log"
    log.write_bytes(b"one\n")
    async with following(log) as reader:
        await gives(reader, b"one\n")
        append(log, b"two\n")
        log.unlink()
        await reader.until(lambda: any("does not exist" in n for n in reader.notices))
        log.write_bytes(b"three\n")
        await gives(reader, b"one\n", b"two\n", b"three\n")


@in_loop
async def test_a_symlink_that_is_switched_leads_to_the_new_target(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "one.log").write_bytes(b"one\n")
    (tmp_path / "x" / "two.log").write_bytes(b"two\n")
    log = tmp_path / "current"
    log.symlink_to("x/one.log")
    async with following(log, poll_s=3600.0) as reader:
        await gives(reader, b"one\n")
        append(tmp_path / "x" / "one.log", b"more\n")
        (tmp_path / "new").symlink_to("x/two.log")
        (tmp_path / "new").rename(log)
        await gives(reader, b"one\n", b"more\n", b"two\n")


@in_loop
async def test_an_editor_that_writes_the_file_anew_repeats_nothing(tmp_path: Path) -> None:
    log = tmp_path / "auth.log"
    log.write_bytes(b"one\ntwo\n")
    async with following(log) as reader:
        await gives(reader, b"one\n", b"two\n")
        new = tmp_path / "sedXYZ"
        new.write_bytes(b"one\ntwo\nthree\n")
        new.rename(log)
        await gives(reader, b"one\n", b"two\n", b"three\n")


@in_loop
async def test_the_directory_may_be_replaced(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "auth.log"
    log.parent.mkdir()
    log.write_bytes(b"one\n")
    async with following(log, poll_s=0.05) as reader:
        await gives(reader, b"one\n")
        log.parent.rename(tmp_path / "gone")
        log.parent.mkdir()
        log.write_bytes(b"two\n")
        await gives(reader, b"one\n", b"two\n")


async def resumed(log: Path, checkpoint: Checkpoint, *expected: bytes) -> Reader:
    async with following(log, checkpoint) as reader:
        await gives(reader, *expected)
    return reader


async def checkpoint_after(log: Path, *lines: bytes) -> Checkpoint:
    async with following(log) as reader:
        await gives(reader, *lines)
    return reader.chunks[-1].checkpoint


@in_loop
async def test_resuming_goes_on_where_the_checkpoint_stands(tmp_path: Path) -> None:
    log = tmp_path / "auth.log"
    log.write_bytes(b"one\n")
    checkpoint = await checkpoint_after(log, b"one\n")
    append(log, b"two\n")
    reader = await resumed(log, checkpoint, b"two\n")
    assert reader.chunks[0].first_line == 2
    assert reader.chunks[0].existing


@pytest.mark.parametrize("compress", [None, gzip.compress, lzma.compress])
@in_loop
async def test_resuming_after_a_rotation_reads_the_rest_of_the_rotated_file_first(
    tmp_path: Path, compress: Callable[[bytes], bytes] | None
) -> None:
    log = tmp_path / "auth.log"
    log.write_bytes(b"one\n")
    checkpoint = await checkpoint_after(log, b"one\n")
    append(log, b"two\n")
    log.rename(tmp_path / "auth.log.2")
    if compress is not None:
        (tmp_path / "auth.log.2.gz").write_bytes(compress((tmp_path / "auth.log.2").read_bytes()))
        (tmp_path / "auth.log.2").unlink()
    (tmp_path / "auth.log.1").write_bytes(b"three\n")
    (tmp_path / "auth.log.3").write_bytes(b"an older one\n")
    log.write_bytes(b"four\n")
    reader = await resumed(log, checkpoint, b"two\n", b"three\n", b"four\n")
    assert all(c.existing for c in reader.chunks)
    assert [c.first_line for c in reader.chunks] == [2, 1, 1]


@in_loop
async def test_resuming_after_copytruncate_reads_the_rest_from_the_copy(tmp_path: Path) -> None:
    log = tmp_path / "auth.log"
    log.write_bytes(b"one\n")
    checkpoint = await checkpoint_after(log, b"one\n")
    append(log, b"two\n")
    shutil.copy(log, tmp_path / "auth.log-20261124")
    os.truncate(log, 0)
    append(log, b"three\nfour\n")
    await resumed(log, checkpoint, b"two\n", b"three\n", b"four\n")


@in_loop
async def test_resuming_with_the_checkpoint_of_another_content_starts_at_the_beginning(
    tmp_path: Path,
) -> None:
    log = tmp_path / "auth.log"
    log.write_bytes(b"one\n")
    checkpoint = await checkpoint_after(log, b"one\n")
    log.write_bytes(b"eno\ntwo\n")
    reader = await resumed(log, checkpoint, b"eno\n", b"two\n")
    assert reader.follower.counters.missing == 1


@in_loop
async def test_logs_that_begin_alike_are_not_taken_for_each_other(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    banner = b"# fields: " + b"x" * 300 + b"\n"
    log.write_bytes(banner + b"one\n")
    checkpoint = await checkpoint_after(log, banner, b"one\n")
    (tmp_path / "app.log.1").write_bytes(banner + b"two\n" * 100)
    log.rename(tmp_path / "elsewhere")
    log.write_bytes(banner + b"three\n" * 2)
    await resumed(log, checkpoint, banner, b"three\n", b"three\n")


@in_loop
async def test_a_compressed_sibling_is_decompressed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "auth.log"
    content = b"".join(b"line %d\n" % n for n in range(100_000))
    log.write_bytes(content[: 10 * 7])
    checkpoint = await checkpoint_after(log, *content[:70].splitlines(keepends=True))
    (tmp_path / "auth.log.1.gz").write_bytes(gzip.compress(content))
    log.unlink()
    rewinds = 0
    rewind = gzip._GzipReader._rewind  # type: ignore[attr-defined]

    def counted(self: Any) -> None:
        nonlocal rewinds
        rewinds += 1
        rewind(self)

    monkeypatch.setattr(gzip._GzipReader, "_rewind", counted)  # type: ignore[attr-defined]
    async with following(log, checkpoint, chunk_bytes=4096) as reader:
        await reader.until(lambda: len(b"".join(c.data for c in reader.chunks)) >= len(content) - 70)
    assert b"".join(c.data for c in reader.chunks) == content[70:]
    assert rewinds == 0


@in_loop
async def test_a_damaged_compressed_sibling_is_told_and_passed(tmp_path: Path) -> None:
    log = tmp_path / "auth.log"
    content = b"".join(b"line %d %s\n" % (n, os.urandom(16).hex().encode()) for n in range(5000))
    log.write_bytes(content[: content.index(b"\n") + 1])
    checkpoint = await checkpoint_after(log, content[: content.index(b"\n") + 1])
    packed = gzip.compress(content)
    (tmp_path / "auth.log.1.gz").write_bytes(packed[: len(packed) // 2])
    log.unlink()
    log.write_bytes(b"new\n")
    async with following(log, checkpoint) as reader:
        await reader.until(lambda: reader.lines[-1:] == [b"new\n"])
    got = b"".join(reader.lines[:-1])
    assert content[content.index(b"\n") + 1 :].startswith(got)
    assert reader.follower.counters.errors == 1


@in_loop
async def test_the_bytes_of_a_chunk_can_be_read_again_after_a_rotation(tmp_path: Path) -> None:
    log = tmp_path / "auth.log"
    log.write_bytes(b"one\n")
    async with following(log) as reader:
        await gives(reader, b"one\n")
        append(log, b"x" * (LONGEST_LINE + 10) + b"\ntwo\n")
        await reader.until(lambda: len(reader.lines) == 3)
        log.rename(tmp_path / "auth.log.1")
        log.write_bytes(b"three\n")
        await reader.until(lambda: len(reader.lines) == 4)
    follower = LogFollower(log)
    for chunk in reader.chunks:
        assert follower.read_range(chunk.start, chunk.end, chunk.checkpoint) == chunk.data
    content = (tmp_path / "auth.log.1").read_bytes()
    (tmp_path / "auth.log.1").unlink()
    (tmp_path / "auth.log.2.gz").write_bytes(gzip.compress(content))
    for chunk in reader.chunks:
        assert follower.read_range(chunk.start, chunk.end, chunk.checkpoint) == chunk.data
    (tmp_path / "auth.log.2.gz").unlink()
    assert follower.read_range(0, 4, reader.chunks[0].checkpoint) is None


@in_loop
async def test_a_long_line_is_cut_counted_and_its_rest_skipped(tmp_path: Path) -> None:
    log = tmp_path / "auth.log"
    log.touch()
    async with following(log, chunk_bytes=4096) as reader:
        append(log, b"a" * (3 * LONGEST_LINE))
        append(log, b"b\nnext\n")
        await gives(reader, b"a" * LONGEST_LINE + b"\n", b"next\n")
    assert reader.follower.counters.cut_lines == 1
    assert reader.chunks[-1].checkpoint.offset == 3 * LONGEST_LINE + 7


@in_loop
async def test_binary_is_passed_on(tmp_path: Path) -> None:
    log = tmp_path / "auth.log"
    noise = bytes(range(256)).replace(b"\n", b"") + b"\n"
    log.write_bytes(noise)
    async with following(log) as reader:
        await reader.until(lambda: bool(reader.chunks))
    assert reader.chunks[0].data == noise


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
@in_loop
async def test_what_is_no_file_is_refused_at_the_start(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "auth.log")
    with pytest.raises(InputError, match=r"auth\.log: not a regular file; name a log"):
        async for _ in LogFollower(tmp_path / "auth.log").chunks():
            pass


UNREADABLE = """
import asyncio, os, sys
from pathlib import Path
from gatewatch.daemon.collectors.logfile import LogFollower, read_chunks
from gatewatch.daemon.errors import InputError
import encodings.idna
os.setgid(65534); os.setuid(65534)
async def follow():
    async for _ in LogFollower(Path(sys.argv[1])).chunks(): pass
for attempt in (lambda: asyncio.run(follow()), lambda: list(read_chunks(sys.argv[1]))):
    try:
        attempt()
    except InputError as error:
        print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_file_without_permission_names_the_group_to_join() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        log = Path(folder) / "auth.log"
        log.write_bytes(b"one\n")
        log.chmod(0o600)
        done = subprocess.run([sys.executable, "-c", UNREADABLE, str(log)], capture_output=True, text=True)
    assert done.stdout.count(f"{log}: no permission to read it; add the user") == 2, done.stderr


FOLLOW_AS_NOBODY = """
import asyncio, os, sys
from pathlib import Path
from gatewatch.daemon.collectors.logfile import LogFollower
import encodings.idna
os.setgroups([]); os.setgid(65534); os.setuid(65534)
def say(text): print(text, flush=True)
async def follow():
    async for chunk in LogFollower(Path(sys.argv[1]), notice=say, settle_s=0.0, poll_s=0.5).chunks():
        say(chunk.data.decode().strip())
asyncio.run(follow())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@in_loop
async def test_a_new_file_without_permission_is_told_and_read_once_it_may_be() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # noqa: PTH101
        log = Path(folder) / "auth.log"
        log.write_bytes(b"one\n")
        reader = await asyncio.create_subprocess_exec(
            sys.executable, "-c", FOLLOW_AS_NOBODY, str(log), stdout=asyncio.subprocess.PIPE
        )
        assert reader.stdout is not None
        try:
            async with asyncio.timeout(LIMIT_S):
                assert await reader.stdout.readline() == b"one\n"
                log.rename(log.with_suffix(".1"))
                os.close(os.open(log, os.O_WRONLY | os.O_CREAT, 0o600))
                append(log, b"two\n")
                while (told := await reader.stdout.readline()).endswith(b"waits until it does\n"):
                    pass  # It may have looked between the renaming and the new file.
                assert told.endswith(b"cannot be opened (Permission denied); tries again\n")
                log.chmod(0o644)
                assert await reader.stdout.readline() == b"two\n"
        finally:
            reader.kill()
            await reader.wait()


@in_loop
async def test_without_inotify_it_polls_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(**_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("gatewatch.daemon.collectors.watch.Inotify", exhausted)
    log = tmp_path / "auth.log"
    log.write_bytes(b"one\n")
    async with following(log, poll_s=0.01) as reader:
        await gives(reader, b"one\n")
        append(log, b"two\n")
        log.rename(tmp_path / "auth.log.1")
        log.write_bytes(b"three\n")
        await gives(reader, b"one\n", b"two\n", b"three\n")
    assert "only polled" in reader.notices[0]


@in_loop
async def test_a_flood_of_events_that_overflows_the_queue_loses_no_line(tmp_path: Path) -> None:
    log = tmp_path / "auth.log"
    log.touch()
    async with following(log) as reader:
        await asyncio.sleep(0.01)
        for number in range(
            MOST_QUEUED // 2 + 10
        ):  # a create and a delete each; the loop does not run meanwhile
            other = tmp_path / f"n{number}"
            other.touch()
            other.unlink()
        append(log, b"one\n")
        log.rename(tmp_path / "auth.log.1")
        log.write_bytes(b"two\n")
        await gives(reader, b"one\n", b"two\n")


def test_stored_logs_are_read_plain_and_compressed(tmp_path: Path) -> None:
    content = b"".join(b"line %d\n" % n for n in range(1000)) + b"no newline"
    for name, data in (
        ("a.log", content),
        ("a.log.gz", gzip.compress(content)),
        ("a.xz", lzma.compress(content)),
    ):
        (tmp_path / name).write_bytes(data)
        chunks = list(read_chunks(tmp_path / name, chunk_bytes=700))
        assert b"".join(c.data for c in chunks) == content + b"\n"
        assert chunks[0].first_line == 1
        assert chunks[-1].checkpoint.line == 1001
        assert chunks[-1].end == len(content)
        assert all(one.end == two.start for one, two in itertools.pairwise(chunks))
        follower = LogFollower(tmp_path / name)
        assert follower.read_range(chunks[3].start, chunks[3].end, chunks[3].checkpoint) == chunks[3].data


@pytest.mark.parametrize("name", ["missing.log", "folder", "damaged.gz"])
def test_a_stored_log_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "damaged.gz").write_bytes(gzip.compress(b"one\n" * 1000)[:-20])
    with pytest.raises(InputError, match=name) as caught:
        list(read_chunks(tmp_path / name))
    assert caught.value.remedy


def test_standard_input_is_read_for_a_dash(tmp_path: Path) -> None:
    code = "from gatewatch.daemon.collectors.logfile import read_chunks; print([c.data for c in read_chunks('-')])"
    done = subprocess.run([sys.executable, "-c", code], input=b"one\ntwo", capture_output=True, check=True)
    assert done.stdout.strip() == b"[b'one\\n', b'two\\n']"


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
