"""Going on at a checkpoint, reading a range again, and reading stored logs."""

from __future__ import annotations

import gzip
import itertools
import lzma
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from following import Reader, append, following, gives, in_loop
from gatewatch.daemon.collectors.lines import LONGEST_LINE
from gatewatch.daemon.collectors.logfile import Checkpoint, LogFollower, read_chunks
from gatewatch.daemon.errors import InputError


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
