"""Replay: the daemon's detection over stored logs and captures, in one process; nothing is blocked, nothing kept."""

from __future__ import annotations

import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .assembly import build_correlator, build_detection, build_geography, load_rails, parser_options
from .collectors.parsers.registry import detect_format, make_parser
from .collectors.stored import read_chunks
from .detection import Detection
from .errors import InputError
from .incidents import Correlator, Incident
from .masking import Mask

if TYPE_CHECKING:
    from ..config.schema import Config

HASH_KEY = b"gatewatch-replay"
"""A fixed key, so that the same input gives the same output to the last byte."""

Progress = Callable[[int, int], None]
"""Told how many bytes of how many were read (0 = unknown)."""


@dataclass(slots=True)
class Summary:
    """What was read. `problems` is one line for each file that was cut short or not understood in part."""

    lines: int = 0
    unparsed: int = 0
    packets: int = 0
    problems: list[str] = field(default_factory=list)


class Replay:
    """Reads files one after the other into one detection state.

    Parameters
    ----------
    config : None for the defaults.
    local : own networks, for the direction of captured flows; those of the configuration where none are given.
    chunk_bytes : how much of a log is read at once; the incidents do not depend on it.
    """

    def __init__(
        self,
        config: Config | None,
        *,
        format: str | None = None,
        year: int | None = None,
        local: Sequence[str] = (),
        chunk_bytes: int = 1 << 24,
        chunk_packets: int = 1 << 16,
    ) -> None:
        own = config.network.local if config is not None else "auto"
        networks = list(local) or ([] if own == "auto" else [str(n) for n in own])
        rails = load_rails(config)
        self._detection: Detection = build_detection(config, networks, HASH_KEY, build_geography(config))
        self._correlator: Correlator = build_correlator(config, rails)
        self._options = parser_options(config, rails, HASH_KEY, year=year)
        self._format = format
        self._chunk_bytes = chunk_bytes
        self._chunk_packets = chunk_packets
        self._ended: dict[str, Incident] = {}
        # A digest under a key that everybody knows would let names be tried out: replay leaves nothing of them.
        self._correlator.mask = Mask(None, self._detection.knows_user)
        self._correlator.recall = lambda incident: self._ended.pop(incident, None)
        self.summary = Summary()

    def read(self, path: str, progress: Progress = lambda done, total: None) -> None:
        """One log or capture (`-` = standard input). Raises InputError naming file and offset."""
        if self._format is None and path != "-" and _sample_is_capture(path):
            self._read_capture(path, progress)
        else:
            self._read_log(path, progress)

    def incidents(self) -> list[dict[str, Any]]:
        """Everything found so far, in the order of its beginning."""
        found = [*self._ended.values(), *self._correlator.open_incidents]
        found.sort(key=lambda i: (i.start_ns, i.id))
        return [i.document() | {"revision": 1, "status": "open", "actions": []} for i in found]

    def _apply(self, findings: list[Any]) -> None:
        if findings:
            self._correlator.apply(findings)
            self._ended |= {i.id: i for i in self._correlator.expire()}

    def _read_log(self, path: str, progress: Progress) -> None:
        parser = None
        total = 0 if path == "-" else Path(path).stat().st_size if Path(path).exists() else 0
        for chunk in read_chunks(path, self._chunk_bytes):
            if parser is None:
                name = self._format or detect_format(chunk.data[: 1 << 16])
                if name is None:
                    raise InputError(
                        f"{path}: no known log format and no capture",
                        remedy="name the format with --format; `gatewatch parse --help` lists them",
                    )
                parser = make_parser(name, self._options)
            parsed = parser.parse(chunk.data, chunk.first_line)
            self.summary.lines += parsed.lines
            self.summary.unparsed += len(parsed.unparsed)
            self._apply(self._detection.auth(parsed.events))
            progress(chunk.end, total)

    def _read_capture(self, path: str, progress: Progress) -> None:
        from .collectors.capture import Capture

        with Capture(Path(path)) as capture:
            for batch in capture.batches(self._chunk_packets):
                self.summary.packets += len(batch.packets)
                self._apply(self._detection.packets(batch.packets))
                progress(capture.bytes_done, capture.bytes_total)
            self._apply(self._detection.finish())
            if capture.truncated:
                self.summary.problems.append(f"{path}: {capture.truncated}")


def _sample_is_capture(path: str) -> bool:
    """A pipe is never sampled: what is read from it once cannot be read again."""
    from .collectors.capture import is_capture

    try:
        if stat.S_ISFIFO(Path(path).stat().st_mode):
            return False
        with open(path, "rb") as stream:
            return is_capture(stream.read(4096))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", remedy="check the path and its permissions") from error
