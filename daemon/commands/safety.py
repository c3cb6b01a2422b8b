"""Whether a program can be replaced by anyone but root: it, every folder and every link on the way to it are looked at.

Asked when the helper starts, by the doctor, and again right before each run.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ..errors import CommandError

_MOST_LINKS = 40  # as the kernel, path_resolution(7)


def check(path: str) -> None:
    """Raises CommandError, which names the file or folder and the remedy, where `path` is no program that root alone
    may change. A folder that others may write is one only with the sticky bit: what is root's in it stays."""
    program, mode = _resolved(path)
    if not stat.S_ISREG(mode):
        raise CommandError(f"{path}: no program but a folder or a device", remedy="name a file")
    if not mode & 0o111:
        raise CommandError(f"{path}: not executable", remedy=f"chmod a+x {program}")


def _resolved(path: str) -> tuple[Path, int]:
    """Where `path` leads, and the mode of what is there, with every step looked at."""
    if not path.startswith("/"):
        raise CommandError(f"{path}: no absolute path", remedy="correct it in rails.toml")
    at, links = Path("/"), 0
    mode = _look(at, path)
    left = list(Path(path).parts[1:])
    while left:
        part = left.pop(0)
        step = at.parent if part == ".." else at / part
        mode = _look(step, path)
        if not stat.S_ISLNK(mode):
            at = step
            continue
        links += 1
        if links > _MOST_LINKS:
            raise CommandError(f"{path}: too many symbolic links", remedy="correct it in rails.toml")
        target = step.readlink()
        at = Path("/") if target.is_absolute() else at
        left = [p for p in target.parts if p != "/"] + left
    return at, mode


def _look(step: Path, path: str) -> int:
    """The mode of one file, folder or link on the way."""
    try:
        status = os.lstat(step)
    except OSError as error:
        raise CommandError(
            f"{path}: {step}: {error.strerror}", remedy="correct it in rails.toml, or install it"
        ) from None
    if status.st_uid != 0:
        raise CommandError(
            f"{path}: {step} belongs to user {status.st_uid}, who could have anything run",
            remedy=f"chown root {step}",
        )
    mode = status.st_mode
    kept = stat.S_ISLNK(mode) or (stat.S_ISDIR(mode) and mode & stat.S_ISVTX)
    if mode & 0o022 and not kept:
        raise CommandError(
            f"{path}: {step} can be written by others than root, who could have anything run",
            remedy=f"chmod go-w {step}",
        )
    return mode
