"""The follower gives every whole line once and in order, whatever happens to the file."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from following import LIMIT_S, append, following, gives, in_loop
from gatewatch.daemon.collectors.lines import LONGEST_LINE
from gatewatch.daemon.collectors.logfile import LogFollower
from gatewatch.daemon.errors import InputError

MOST_QUEUED = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())


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
