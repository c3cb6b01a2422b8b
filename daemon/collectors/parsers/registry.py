"""Every log format by its name, and which one a sample is in.

To add a format is to add its file, and its line in `FORMATS`: a function, so that only what is read is loaded.
"""

from __future__ import annotations

from collections.abc import Callable

from ...errors import UsageError
from .common import Parsed, Parser, ParserOptions

__all__ = ["FORMATS", "Parsed", "Parser", "ParserOptions", "detect_format", "make_parser"]


def _sshd(options: ParserOptions) -> Parser:
    from .sshd import SshdParser

    return SshdParser(options)


def _nginx(options: ParserOptions) -> Parser:
    from .nginx import NginxParser  # loads a decoder of JSON, for which no other format has a use

    return NginxParser(options)


FORMATS: dict[str, Callable[[ParserOptions], Parser]] = {
    "sshd": _sshd,
    "nginx": _nginx,
}

SAMPLE_BYTES = 65_536


def make_parser(name: str, options: ParserOptions) -> Parser:
    """The parser of that name. Raises UsageError for a name that is none."""
    made = FORMATS.get(name)
    if made is None:
        raise UsageError(f"there is no log format {name!r}", remedy=f"known are {', '.join(sorted(FORMATS))}")
    return made(options)


def detect_format(sample: bytes) -> str | None:
    """The format that understands the most of a sample's lines, and at least half of them; None where none does.

    Of a long sample the first 64 KiB count.
    """
    sample = sample[:SAMPLE_BYTES]
    cut = sample.rfind(b"\n") + 1
    if cut:
        sample = sample[:cut]
    best, most = None, 0
    options = ParserOptions(timezone="UTC")
    for name, made in FORMATS.items():
        parsed = made(options).parse(sample)
        if len(parsed.events) > most and 2 * len(parsed.events) >= parsed.lines:
            best, most = name, len(parsed.events)
    return best
