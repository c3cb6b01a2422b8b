"""Feeds: what a log file and the journal have in common for the analyser.

A feed gives parsed events with the range of input that they came from, can read such a range again after a crash,
and says how it fares. What it cannot read it says once, and tries again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from .collectors.journal import JournalChunk, JournalFollower
from .collectors.logfile import Checkpoint, Chunk, LogFollower
from .collectors.parsers.registry import Parser, ParserOptions, detect_format, make_parser
from .errors import InputError
from .events import AuthBatch, Provenance, rfc3339

RETRY_S = 5.0
OptionsFor = Callable[..., ParserOptions]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Reading:
    """Events of one piece of input. `receive_ns` None: they are timed as in replay. `note` reads them again."""

    events: AuthBatch
    receive_ns: int | None
    now_ns: int
    note: dict[str, Any]


class Feed(Protocol):
    """One source of authentication events."""

    name: str

    def readings(self) -> AsyncIterator[Reading]:
        """What comes, for as long as the task lives."""
        ...

    def again(self, note: Mapping[str, Any], now_ns: int) -> Reading | None:
        """What a note tells of, read once more, and the place to go on from moved behind it; None where it is gone."""
        ...

    def checkpoint(self) -> dict[str, Any] | None:
        """Where to go on."""
        ...

    def resume(self, checkpoint: Mapping[str, Any]) -> None: ...

    def save(self) -> dict[str, Any]:
        """What the parsers must not forget."""
        ...

    def load(self, state: Mapping[str, Any]) -> None: ...

    def health(self) -> dict[str, Any]: ...


class _Counts:
    """What a feed counts, and the problem that it has."""

    def __init__(self, name: str, say: Say) -> None:
        self.name = name
        self.lines = 0
        self.unparsed = 0
        self.last_ns = 0
        self.problem = ""
        self._say = say

    def complain(self, text: str) -> None:
        if self.problem != text:
            self.problem = text
            self._say(f"{self.name}: {text}")

    def parse(self, parser: Parser, data: bytes, first_line: int, now_ns: int) -> AuthBatch:
        parsed = parser.parse(data, first_line, now_ns)
        self.lines += parsed.lines
        self.unparsed += len(parsed.unparsed)
        self.last_ns = now_ns
        return parsed.events

    def health(self) -> dict[str, Any]:
        return {
            "path": self.name,
            "lines": self.lines,
            "unparsed": self.unparsed,
            "last": rfc3339(self.last_ns) if self.last_ns else None,
            "problem": self.problem,
        }


class LogFeed:
    """A followed log file.

    Parameters
    ----------
    path, format : what to follow, and its format; None = seen from its first lines.
    options_for : parser options with more keywords (provenance, timezone, year).
    """

    def __init__(
        self, path: Path, format: str | None, options: ParserOptions, say: Say, chunk_bytes: int = 1 << 18
    ) -> None:
        self.name = str(path)
        self._path = path
        self._format = format
        self._options = options
        self._say = say
        self._chunk_bytes = chunk_bytes
        self._parser: Parser | None = None
        self._saved: Mapping[str, Any] = {}
        self._checkpoint: Checkpoint | None = None
        self._counts = _Counts(self.name, say)

    async def readings(self) -> AsyncIterator[Reading]:
        while True:
            follower = LogFollower(
                self._path, self._checkpoint, self._chunk_bytes, notice=self._counts.complain
            )
            try:
                async for chunk in follower.chunks():
                    self._counts.problem = ""
                    reading = self._reading(chunk)
                    if reading is not None:
                        yield reading
            except InputError as error:
                self._counts.complain(f"off: {error}")
                await asyncio.sleep(RETRY_S)

    def _reading(self, chunk: Chunk) -> Reading | None:
        self._checkpoint = chunk.checkpoint
        note = {
            "start": chunk.start,
            "end": chunk.end,
            "first_line": chunk.first_line,
            "existing": chunk.existing,
            "checkpoint": asdict(chunk.checkpoint),
        }
        return self._parse(chunk.data, chunk.receive_ns, note)

    def again(self, note: Mapping[str, Any], now_ns: int) -> Reading | None:
        self._checkpoint = Checkpoint(**note["checkpoint"])
        data = LogFollower(self._path).read_range(note["start"], note["end"], self._checkpoint)
        return None if data is None else self._parse(data, now_ns, dict(note))

    def _parse(self, data: bytes, now_ns: int, note: dict[str, Any]) -> Reading | None:
        if self._parser is None:
            name = self._format or detect_format(data[: 1 << 16])
            if name is None:
                self._counts.unparsed += data.count(b"\n")
                self._counts.complain("its format is not recognised; name it under collectors.logs")
                return None
            self._parser = make_parser(name, self._options)
            if self._saved.get("format") == name:
                try:
                    self._parser.load(self._saved["state"])
                except Exception as error:  # written by another version
                    self._parser = make_parser(name, self._options)
                    self._say(f"{self.name}: its parser starts afresh: {type(error).__name__}: {error}")
        events = self._counts.parse(self._parser, data, note["first_line"], now_ns)
        return Reading(events, None if note["existing"] else now_ns, now_ns, note)

    def checkpoint(self) -> dict[str, Any] | None:
        return None if self._checkpoint is None else asdict(self._checkpoint)

    def resume(self, checkpoint: Mapping[str, Any]) -> None:
        self._checkpoint = Checkpoint(**checkpoint)

    def save(self) -> dict[str, Any]:
        if self._parser is None:
            return dict(self._saved)
        return {"format": self._parser.name, "state": self._parser.save()}

    def load(self, state: Mapping[str, Any]) -> None:
        self._saved = dict(state)

    def health(self) -> dict[str, Any]:
        return {**self._counts.health(), "format": self._parser.name if self._parser else self._format}


class JournalFeed:
    """The systemd journal; what it vouches for and what anyone may have written go through parsers of their own."""

    name = "journal"

    def __init__(self, units: Sequence[str], options: OptionsFor, say: Say) -> None:
        self._units = units
        self._counts = _Counts("journal", say)
        self._cursor: str | None = None
        self._parsers = {
            trusted: make_parser("sshd", options(provenance=provenance))
            for trusted, provenance in ((True, Provenance.JOURNAL), (False, Provenance.FILE))
        }

    async def readings(self) -> AsyncIterator[Reading]:
        follower = JournalFollower(self._units, self._cursor, notice=self._counts.complain)
        async for chunk in follower.chunks():
            self._counts.problem = ""
            self._cursor = chunk.cursor
            yield self._parse(chunk.data, chunk.receive_ns, _journal_note(chunk))

    def again(self, note: Mapping[str, Any], now_ns: int) -> Reading | None:
        self._cursor = note["cursor"]
        data = JournalFollower(self._units).read_range(note["first_cursor"], note["cursor"])
        return None if data is None else self._parse(data, now_ns, dict(note))

    def _parse(self, data: bytes, now_ns: int, note: dict[str, Any]) -> Reading:
        events = self._counts.parse(self._parsers[note["trusted"]], data, note["first_line"], now_ns)
        return Reading(events, None if note["existing"] else now_ns, now_ns, note)

    def checkpoint(self) -> dict[str, Any] | None:
        return None if self._cursor is None else {"cursor": self._cursor}

    def resume(self, checkpoint: Mapping[str, Any]) -> None:
        self._cursor = checkpoint["cursor"]

    def save(self) -> dict[str, Any]:
        return {str(trusted): parser.save() for trusted, parser in self._parsers.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        for trusted, parser in self._parsers.items():
            parser.load(state[str(trusted)])

    def health(self) -> dict[str, Any]:
        return {**self._counts.health(), "format": "journal"}


def _journal_note(chunk: JournalChunk) -> dict[str, Any]:
    return {
        "first_cursor": chunk.first_cursor,
        "cursor": chunk.cursor,
        "first_line": chunk.first_line,
        "existing": chunk.existing,
        "trusted": chunk.trusted,
    }
