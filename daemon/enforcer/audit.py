"""Whether the audit log is whole: the journal, the files that it continues, and the witness of its end.

For people, never for the enforcer itself, which judges its one file when it opens it (`journal`). It only reads.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

from ..errors import EnforcerError
from . import witness
from .chain import START, Point, Reader
from .journal import KEPT_FILES

_PROGRESS = 4096  # entries between two reports

Progress = Callable[[str, int], None]
"""Is told a file and how many of its entries are read."""


class File(NamedTuple):
    """One file of the chain; `first` and `last` are sequences."""

    file: str
    first: int
    last: int
    entries: int


class Report(NamedTuple):
    """What checking the whole chain showed. `problems` is empty where it is whole."""

    entries: int
    sequence: int  # of the journal's last good entry
    head: str  # its seal
    torn_bytes: int  # of a last line without its end
    files: list[File]  # oldest first
    problems: list[str]


def check(folder: str, progress: Progress = lambda file, entries: None) -> Report:
    """Check every file of the journal in `folder`. Raises EnforcerError where there is none, or it may not be read."""
    try:
        while True:
            before = _identity(folder)
            report = _check(folder, progress)
            if not report.problems or before == _identity(folder):  # else there are other files now
                return report
    except OSError as error:
        raise EnforcerError(f"journal {folder}: {error.strerror}", remedy="run as root") from None


class _Part(NamedTuple):
    name: str
    reader: Reader
    problems: list[str]


def _check(folder: str, progress: Progress) -> Report:
    head, why = witness.read_head(folder)  # before the journal, whose writer gets ahead of us
    journal = _read(folder, "journal", head, progress)
    chain = [*(_read(folder, name, None, progress) for name in _older(folder)), journal]
    if head is None and not any(part.reader.good_bytes for part in chain):
        raise EnforcerError(f"journal {folder}: there is none")
    if head is None:
        journal.problems.append(f"head: {why}, so nobody can tell whether the end is cut off")
    elif wrong := witness.end_wrong(journal.reader, head):
        journal.problems.append(f"journal: {wrong}")
    problems: list[str] = []
    for at, part in enumerate(chain):
        if part.reader.verdict.entries:  # the first one says what the file continues
            older = chain[at - 1] if at else None
            kept = sum(p.name.startswith("journal-") for p in chain[at:])
            problems += _between(older, part, removed=kept >= KEPT_FILES)
        problems += part.problems
    verdict = journal.reader.verdict
    files = [
        File(p.name, p.reader.before.sequence + 1, p.reader.verdict.sequence, p.reader.verdict.entries)
        for p in chain
    ]
    return Report(
        sum(f.entries for f in files), verdict.sequence, verdict.head, verdict.torn_bytes, files, problems
    )


def _read(folder: str, name: str, head: Point | None, progress: Progress) -> _Part:
    reader = Reader(f"{folder}/{name}", head)
    problems: list[str] = []
    try:
        for number, (entry, good) in enumerate(reader):
            if number == 0 and good and entry.get("broken"):
                problems.append(f"{name}: entry {entry['seq']} notes a damage: {entry['broken']}")
            if number % _PROGRESS == 0:
                progress(name, number)
    except FileNotFoundError:
        problems.append(f"{name}: the file is gone")
    except PermissionError:
        raise
    except OSError as error:
        problems.append(f"{name}: cannot be read to its end: {error.strerror}")
    verdict = reader.verdict
    if verdict.note:
        problems.append(f"{name}: {verdict.note}")
    if verdict.torn_bytes and name != "journal":  # the journal's last entry may be about to be written
        problems.append(f"{name}: the last entry, after {verdict.sequence}, is not whole")
    return _Part(name, reader, problems)


def _between(older: _Part | None, newer: _Part, *, removed: bool) -> list[str]:
    """What is wrong with how `newer` continues `older`; older files may be gone where they are `removed` for room."""
    at = newer.reader.before
    if older is None:
        return [] if at == START or removed else [f"{_entries(1, at.sequence)} missing before {newer.name}"]
    verdict = older.reader.verdict
    if at == (verdict.sequence, verdict.head):
        return []
    last = verdict.sequence if verdict.intact else max(verdict.sequence, older.reader.claimed)
    if at.sequence > last:
        missing = _entries(last + 1, at.sequence)
        return [] if removed else [f"{missing} missing between {older.name} and {newer.name}"]
    if not verdict.intact:
        return []  # its own damage is said
    return [
        f"{newer.name}: entry {at.sequence + 1} does not continue {older.name}, which ends at entry {last}"
    ]


def _entries(first: int, last: int) -> str:
    return f"entry {first} is" if first == last else f"entries {first} to {last} are"


def _older(folder: str) -> list[str]:
    """The names of the files that were journals before, oldest first."""
    found = []
    for name in os.listdir(folder):
        kind, _, rest = name.partition("-")
        number, _, wall_ns = rest.partition("-")
        ours = (kind == "journal" and rest == number) or (kind == "journal.broken" and wall_ns.isdecimal())
        if ours and number.isdecimal() and not _same(f"{folder}/{name}", f"{folder}/journal"):
            found.append((int(number), int(wall_ns or 0), name))
    return [name for _, _, name in sorted(found)]


def _same(path: str, other: str) -> bool:
    """Whether both are one file: a crash while a new one was begun leaves the old one with two names."""
    try:
        return os.path.samefile(path, other)
    except FileNotFoundError:
        return False


def _identity(folder: str) -> tuple[int, list[str]]:
    """Another one after a new file was begun, or an old one removed."""
    try:
        return os.stat(f"{folder}/journal").st_ino, sorted(os.listdir(folder))
    except FileNotFoundError:
        return 0, []
