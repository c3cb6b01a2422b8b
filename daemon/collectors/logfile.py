"""Follows log files as they grow, through rotation, truncation and downtime.

Gives whole lines in order, each once, with the range of the file that they came from, so that the same bytes can
be read again after a crash. It must never block the event loop for long, never hold more than a chunk and one
bounded line, and never interpret what it reads.
"""

from __future__ import annotations

import asyncio

# asyncio would load it with the first thread, when this process may have lost the right to read it.
import concurrent.futures.thread  # noqa: F401
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from .lines import LineCutter, count_lines
from .rotated import (
    HEAD_BYTES,
    READ_ERRORS,
    TAIL_BYTES,
    Checkpoint,
    Source,
    files_before,
    find,
    fingerprint,
    last_bytes,
    open_siblings,
    same_file,
    same_head,
)
from .stored import Chunk, read_chunks, unreadable
from .watch import Watcher

__all__ = ["Checkpoint", "Chunk", "Counters", "LogFollower", "read_chunks"]

_MOST_WAITING = 16  # newer files that are held open while an older one is still being read


@dataclass
class Counters:
    in_bytes: int = 0
    lines: int = 0
    cut_lines: int = 0  # longer than lines.LONGEST_LINE
    torn_lines: int = (
        0  # had no newline when their file came to its end; dropped, as half a line may say another thing
    )
    rotations: int = 0
    truncations: int = 0
    missing: int = 0  # times that the file, or what a checkpoint belongs to, was not there
    errors: int = 0  # failed reads and opens


class LogFollower:
    """Follows the log at `path`; starts after `checkpoint`, or at the beginning.

    Parameters
    ----------
    chunk_bytes: the most that one turn of the event loop reads.
    clock: nanoseconds since the epoch, for `Chunk.receive_ns`.
    notice: is told, once each time that it comes to be so, what a person should know.
    settle_s: how long after a new file has its first bytes the old one is still read, because a writer of several
        processes does not move over at one moment.
    poll_s: how often the path is looked at although inotify said nothing.
    """

    def __init__(
        self,
        path: Path,
        checkpoint: Checkpoint | None = None,
        chunk_bytes: int = 1 << 18,
        clock: Callable[[], int] = time.time_ns,
        *,
        notice: Callable[[str], None] = lambda text: None,
        settle_s: float = 0.1,
        poll_s: float = 1.0,
    ) -> None:
        self.path = Path(path)
        self.counters = Counters()
        self._resume = checkpoint
        self._chunk_bytes = chunk_bytes
        self._clock = clock
        self._notice = notice
        self._settle_s = settle_s
        self._poll_s = poll_s
        self._said: set[str] = set()
        self._source: Source | None = None
        self._queue: deque[Source] = deque()  # to be read after `_source`, which is then a rotated one
        self._waiting: list[Source] = []  # stand, or stood, at the path, while `_source` is still being read
        self._again: Source | None = None  # what read_range has found last, for which checkpoint
        self._again_for: Checkpoint | None = None
        self._starting = True
        self._settled_at: float | None = None
        self._begin(None)

    async def chunks(self) -> AsyncIterator[Chunk]:
        """The lines as they come; ends only by cancellation.

        Raises InputError at the start where the path cannot be read, or is no regular file.
        """
        watcher = Watcher(self.path, self._notice)
        try:
            watcher.refresh()
            await self._start(watcher)
            draining = False
            while True:
                chunk, more = self._read()
                if chunk is not None:
                    yield chunk
                if more:
                    await asyncio.sleep(0)
                elif self._changed:
                    await self._recover()
                elif self._queue:
                    self._next(watcher)
                elif draining and chunk is None:
                    draining = False
                    await self._switch(watcher)
                elif draining or self._must_switch():
                    # Once more to the end of the old file: its last lines came before the new one's first.
                    draining = True
                elif await watcher.wait(self._limit()):
                    watcher.refresh()
                    self._look(watcher)
        finally:
            watcher.close()
            for source in (self._source, self._again, *self._queue, *self._waiting):
                if source is not None:
                    source.close()
            self._queue.clear()
            self._waiting.clear()
            self._source = self._again = None

    def read_range(self, start: int, end: int, checkpoint: Checkpoint) -> bytes | None:
        """The lines of a former chunk (its `start`, `end` and `checkpoint`) again; None where they are gone.

        Looks in the file and in its rotated siblings. Blocks while it reads.
        """
        source = self._ranged(checkpoint)
        if source is None:
            return None
        cutter, lines = LineCutter(start), []
        try:
            while cutter.position < end:
                data = source.read(cutter.position, min(self._chunk_bytes, end - cutter.position))
                if not data:
                    return None
                lines.append(cutter.feed(data))
        except READ_ERRORS:
            return None
        return b"".join(lines)

    def _ranged(self, checkpoint: Checkpoint) -> Source | None:
        """The file that a checkpoint belongs to; kept open, as ranges are asked for one after another."""
        former, again = self._again_for, self._again
        self._again_for = checkpoint
        if again is not None and former is not None and former.inode == checkpoint.inode:
            # To look back in a compressed file is to decompress it once more; nobody rewrites it.
            if again.compressed and same_head(former, checkpoint):
                return again
            if not again.compressed and again.holds(checkpoint):
                return again
        found = find(self.path, checkpoint)
        self._again = found.source if found.intact else None
        for other in (again, *found.later, None if found.intact else found.source):
            if other is not None:
                other.close()
        return self._again

    async def _start(self, watcher: Watcher) -> None:
        source: Source | None = None
        try:
            source = Source(self.path)
        except (FileNotFoundError, NotADirectoryError):
            self._missing()
        except OSError as error:
            raise unreadable(self.path, error) from error
        if source is not None:
            watcher.watch(source)
        if self._resume is None:
            self._begin(source)
        else:
            found = await asyncio.to_thread(find, self.path, self._resume)
            at = self._resume if found.intact else None
            self._queue.extend(files_before(source, found.later))
            if at is None and self._resume.offset:
                self.counters.missing += 1
                self._notice(f"{self.path}: what was being read is gone; starts at the beginning")
            if found.source is None:
                self._begin(source)
            elif source is not None and same_file(found.source, source):
                found.source.close()
                self._begin(source, at)
            else:
                self._begin(found.source, at)
                if source is not None:
                    self._queue.append(source)
        self._existing_until = self._source.size() if self._source is not None else 0
        self._starting = bool(self._queue)

    def _begin(self, source: Source | None, at: Checkpoint | None = None) -> None:
        """Makes `source` the current file, to be read from `at`."""
        if at is None:
            offset = source.first_data() if source is not None else 0
            device, inode = (source.device, source.inode) if source is not None else (0, 0)
            at = Checkpoint(device, inode, offset, 0, "")
        self._source, self._last = source, at
        self._cutter = LineCutter(at.offset)
        self._changed = False
        self._existing_until = 0
        self._head = self._tail = b""
        if source is None or not at.offset:
            return
        if source.checked is not None and source.checked[0] == at.offset:
            _, self._head, self._tail = source.checked
            return
        try:
            self._head = source.read(0, min(HEAD_BYTES, at.offset))
            before = min(TAIL_BYTES, at.offset)
            self._tail = source.read(at.offset - before, before)
        except READ_ERRORS as error:
            self._failed(f"cannot be read at offset {at.offset} ({error})")

    def _read(self) -> tuple[Chunk | None, bool]:
        """One read of the current file: the lines that it completes, and whether there is more to read at once."""
        source, cutter, tail = self._source, self._cutter, self._tail
        if source is None:
            return None, False
        count = self._chunk_bytes
        if cutter.position < self._existing_until:
            count = min(count, self._existing_until - cutter.position)
        try:
            # A compressed file cannot go back cheaply, and nobody rewrites it.
            overlap = 0 if source.compressed else len(tail)
            head = self._head if source.compressed else source.read(0, HEAD_BYTES)
            data = source.read(cutter.position - overlap, overlap + count)
        except READ_ERRORS as error:
            self._failed(f"cannot be read at offset {cutter.position} ({error})")
            return None, False
        # What stood before it proves that a read comes from the same content as the reads before.
        if not head.startswith(self._head) or not data.startswith(tail[:overlap]):
            self._changed = True
            return None, False
        data = data[overlap:]
        if not data:
            return None, False
        receive_ns = self._clock()
        self._said.discard("failed")
        self._head = data[:HEAD_BYTES] if source.compressed and cutter.position == 0 else head
        start, cut = cutter.start, cutter.cut
        whole = cutter.feed(data)
        self.counters.in_bytes += len(data)
        self.counters.cut_lines += cutter.cut - cut
        self._tail = last_bytes(tail, data, len(data))
        more = len(data) == count
        if not whole:
            return None, more
        first_line = self._last.line + 1
        self._last = self._checkpoint(source, count_lines(whole), tail, data)
        existing = cutter.start <= self._existing_until
        return (
            Chunk(str(self.path), whole, first_line, start, cutter.start, self._last, receive_ns, existing),
            more,
        )

    def _checkpoint(self, source: Source, lines: int, tail: bytes, data: bytes) -> Checkpoint:
        """Where the last whole line in `data` ends; `tail` stood before it."""
        self.counters.lines += lines
        end = self._cutter.start
        within = len(data) - (self._cutter.position - end)
        marked = fingerprint(self._head[:end], last_bytes(tail, data, within))
        return Checkpoint(source.device, source.inode, end, self._last.line + lines, marked)

    async def _recover(self) -> None:
        """The current file was truncated or rewritten: what was not read may stand in a copy (copytruncate)."""
        source, cutter, last = self._source, self._cutter, self._last
        assert source is not None
        self.counters.truncations += 1
        reached = fingerprint(self._head[: cutter.position], self._tail)
        lost = Checkpoint(source.device, source.inode, cutter.position, 0, reached)
        found = await asyncio.to_thread(find, self.path, lost)
        copy = found.source
        if copy is None or not found.intact or same_file(copy, source):
            again = copy is not None and found.intact
            self.counters.torn_lines += cutter.partial and not again
            self._begin(source, last if again else None)
            for other in (copy, *found.later):
                if other is not None:
                    other.close()
            return
        self._begin(copy, last)
        self._queue.extendleft(reversed([*files_before(source, found.later), source]))

    async def _switch(self, watcher: Watcher) -> None:
        """The current file is at its end and another stands at the path."""
        self.counters.rotations += 1
        self._settled_at = None
        found = await asyncio.to_thread(find, self.path, self._last)
        newest = self._waiting[-1]
        again = (
            found.source is not None
            and found.intact
            and self._last.offset
            and same_file(found.source, newest)
        )
        if again:
            # Written anew with what was read already, as an editor does.
            self._queue.append(self._waiting.pop())
            dropped = [*self._waiting, *found.later]
        else:
            dropped = []
            self._queue.extend(files_before(self._waiting[0], found.later))
            self._queue.extend(self._waiting)
        self._waiting.clear()
        for source in dropped:
            watcher.unwatch(source)
            source.close()
        if found.source is not None:
            found.source.close()
        self._next(watcher, self._last if again else None)

    def _next(self, watcher: Watcher, at: Checkpoint | None = None) -> None:
        """Leaves the current file for the first in the queue."""
        assert self._source is not None
        self.counters.torn_lines += self._cutter.partial
        watcher.unwatch(self._source)
        self._source.close()
        source = self._queue.popleft()
        self._begin(source, at)
        self._existing_until = source.size() if self._starting else self._former(source)
        if not self._queue:
            self._starting = False

    def _former(self, source: Source) -> int:
        """How much of a file that has just come to stand at the path cannot have been written just now."""
        size = source.size()
        old = source.modified_ns() < self._clock() - 2_000_000_000
        return size if old or size > self._chunk_bytes else 0

    def _look(self, watcher: Watcher) -> None:
        """Opens what stands at the path where that is another file than before."""
        newest = self._waiting[-1] if self._waiting else self._source
        try:
            status = self.path.stat()
            there = (status.st_dev, status.st_ino)
            if newest is not None and there == (newest.device, newest.inode):
                self._said.discard("missing")
                return
            source = Source(self.path)
        except (FileNotFoundError, NotADirectoryError):
            self._missing()
            return
        except OSError as error:
            self._failed(f"cannot be opened ({error.strerror or error})")
            return
        self._said.discard("missing")
        if self._source is None:
            watcher.watch(source)
            self._begin(source)
            self._existing_until = self._former(source)
        elif same_file(source, self._source) or len(self._waiting) >= _MOST_WAITING:
            source.close()
        else:
            # Files that came and went between two looks are read too, even while the newest is still empty.
            for waiting in (*self._passed(source), source):
                watcher.watch(waiting)
                self._waiting.append(waiting)

    def _passed(self, newest: Source) -> list[Source]:
        """The rotated files between those that are held open and `newest`."""
        last = self._waiting[-1] if self._waiting else self._source
        older = open_siblings(self.path)
        at = next(
            (at for at, source in enumerate(older) if last is not None and same_file(source, last)),
            len(older),
        )
        for source in older[: at + 1]:
            source.close()
        return files_before(newest, older[at + 1 :])

    def _must_switch(self) -> bool:
        if not any(source.size() for source in self._waiting):
            self._settled_at = None
            return False
        now = asyncio.get_running_loop().time()
        if self._settled_at is None:
            self._settled_at = now + self._settle_s
        return now >= self._settled_at

    def _limit(self) -> float:
        if self._settled_at is None:
            return self._poll_s
        return max(0.0, min(self._poll_s, self._settled_at - asyncio.get_running_loop().time()))

    def _missing(self) -> None:
        if "missing" not in self._said:
            self._said.add("missing")
            self.counters.missing += 1
            self._notice(f"{self.path}: does not exist; waits until it does")

    def _failed(self, what: str) -> None:
        self.counters.errors += 1
        if "failed" not in self._said:
            self._said.add("failed")
            self._notice(f"{self.path}: {what}; tries again")
