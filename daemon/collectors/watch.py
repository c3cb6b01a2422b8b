"""Waits until something happened to a log file: inotify on the file and on the directories that lead to it.

Inotify is what makes it fast; what makes it certain is that the waiting ends after a while all the same, so
that lost events, network file systems and exhausted watches only make it slow. It must never block.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path

from asyncinotify import Inotify, Mask, Watch

from .rotated import Source

_FILE = Mask.MODIFY | Mask.ATTRIB | Mask.MOVE_SELF | Mask.DELETE_SELF
_DIRECTORY = (
    Mask.CREATE
    | Mask.MOVED_TO
    | Mask.MOVED_FROM
    | Mask.DELETE
    | Mask.ATTRIB
    | Mask.MOVE_SELF
    | Mask.DELETE_SELF
)
_MOST_LINKS = 40  # as many symbolic links as the kernel follows (path_resolution(7))


class Watcher:
    """The watches for one log file. Made and used inside a running event loop."""

    def __init__(self, path: Path, notice: Callable[[str], None]) -> None:
        self._path = path
        self._notice = notice
        self._happened = asyncio.Event()
        self._look = True
        self._said = False
        self._files: dict[int, Watch] = {}
        self._directories: dict[tuple[int, int], Watch] = {}
        self._loop = asyncio.get_running_loop()
        self._inotify: Inotify | None = None
        try:
            self._inotify = Inotify(sync_timeout=0)
        except OSError as error:
            notice(f"{path}: inotify cannot be used ({error.strerror}), so it is only polled")
            return
        self._loop.add_reader(self._inotify.fd, self._drain)

    def _drain(self) -> None:
        assert self._inotify is not None
        for event in self._inotify:
            # A removed watch says so; that is our own doing, or its cause was told before.
            if event.mask == Mask.IGNORED:
                continue
            if event.mask != Mask.MODIFY:
                self._look = True
            self._happened.set()

    async def wait(self, limit_s: float) -> bool:
        """Waits for an event, at most `limit_s`; True where the path itself must be looked at."""
        try:
            async with asyncio.timeout(limit_s):
                await self._happened.wait()
        except TimeoutError:
            self._look = True
        self._happened.clear()
        look, self._look = self._look, False
        return look

    def watch(self, source: Source) -> None:
        """Watches the opened file itself, whatever its name is now."""
        watch = self._add(Path(f"/proc/self/fd/{source.fd}"), _FILE)
        if watch is not None:
            self._files[source.fd] = watch

    def unwatch(self, source: Source) -> None:
        """Must come before the source is closed."""
        watch = self._files.pop(source.fd, None)
        # Two descriptors of one inode share a watch.
        if watch is not None and all(w.wd != watch.wd for w in self._files.values()):
            self._remove(watch)

    def refresh(self) -> None:
        """Watches the directories that lead to the path as it is now, and no others."""
        wanted: dict[tuple[int, int], Path] = {}
        for directory in _directories(self._path):
            try:
                status = directory.stat()
            except OSError:
                continue
            wanted[status.st_dev, status.st_ino] = directory
        for key in [k for k in self._directories if k not in wanted]:
            self._remove(self._directories.pop(key))
        for key, directory in wanted.items():
            if key not in self._directories:
                watch = self._add(directory, _DIRECTORY | Mask.ONLYDIR)
                if watch is not None:
                    self._directories[key] = watch

    def close(self) -> None:
        if self._inotify is not None:
            self._loop.remove_reader(self._inotify.fd)
            self._inotify.close()
            self._inotify = None

    def _add(self, path: Path, mask: Mask) -> Watch | None:
        if self._inotify is None:
            return None
        try:
            return self._inotify.add_watch(path, mask)
        except OSError as error:
            # What went away meanwhile is found by looking again.
            if error.errno not in (errno.ENOENT, errno.ENOTDIR) and not self._said:
                self._said = True
                self._notice(f"{self._path}: no inotify watch ({error.strerror}), so it is only polled")
            return None

    def _remove(self, watch: Watch) -> None:
        if self._inotify is not None:
            try:
                self._inotify.rm_watch(watch)
            except OSError:
                pass  # The kernel has removed it with the inode.


def _directories(path: Path) -> list[Path]:
    """The directories in which an entry decides what `path` is: its own, and those of the links it goes through.

    Where one is missing, the nearest that is there above it.
    """
    found: list[Path] = []
    at = Path.cwd() / path
    for _ in range(_MOST_LINKS):
        parent = at.parent
        while parent != parent.parent and not parent.is_dir():
            parent = parent.parent
        found.append(parent)
        try:
            target = at.readlink()
        except OSError:
            break
        at = Path(os.path.normpath(at.parent / target))
    return list(dict.fromkeys(found))
