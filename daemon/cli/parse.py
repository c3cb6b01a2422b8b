"""`gatewatch parse`: what the parser makes of each line of a log or each frame of a capture, and what it does not
understand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import ConfigOption, JsonOption, load_config
from .output import columns_of_text, json_line, say

if TYPE_CHECKING:
    from ..collectors.parsers.registry import Parsed
    from ..events import AuthBatch

LOG_WIDTHS = {
    "line": 7,
    "time": 24,
    "outcome": 14,
    "source": 15,
    "user": 12,
    "service": 8,
    "method": 10,
    "path": 0,
}
FRAME_WIDTHS = {
    "frame": 7, "time": 30, "length": 6, "protocol": 8, "source": 15, "source_port": 5, "destination": 15,
    "destination_port": 5, "server_name": 0, "query": 0, "ja4": 0, "malformed": 0,
}  # fmt: skip
SAMPLE = 4096
ROWS_AT_ONCE = 500
MOST_CONTROL = 0.1
"""The share of control characters above which a sample is no text; a log that a power cut left with zeros at its
end begins with text."""


def register(app: typer.Typer) -> None:
    app.command("parse")(parse)


def parse(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A log or a capture; - = a log on standard input.")
    ],
    format: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="F", help="The log's format: sshd or nginx; without it, it is detected."
        ),
    ] = None,
    year: Annotated[
        int | None, typer.Option("--year", min=1970, max=2200, help="The year of times that name none.")
    ] = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Show what is understood of each line or frame, and which lines are not understood."""
    if format is None and file != "-" and _is_capture(file):
        _frames(file, json)
    else:
        _lines(file, format, year, config, json)


def _is_capture(file: str) -> bool:
    from ..collectors.capture import is_capture
    from ..collectors.stored import unreadable

    if not Path(file).is_file():
        return False
    try:
        with open(file, "rb") as stream:
            return is_capture(stream.read(SAMPLE))
    except OSError as error:
        raise unreadable(file, error) from error


def _frames(file: str, json: bool) -> None:
    from ..collectors.capture import REMEDY, Capture, parse_rows
    from ..errors import InputError

    with Capture(Path(file)) as capture:
        _print(parse_rows(capture), FRAME_WIDTHS, json)
        if capture.truncated:
            raise InputError(f"{file}: {capture.truncated}", remedy=REMEDY)


def _lines(file: str, format: str | None, year: int | None, config: Path | None, json: bool) -> None:
    from ..assembly import load_rails, parser_options
    from ..collectors.parsers.registry import FORMATS, Parser, detect_format, make_parser
    from ..collectors.stored import read_chunks
    from ..errors import InputError

    loaded = load_config(config)
    options = parser_options(loaded, load_rails(loaded), bytes(16), year=year)
    parser: Parser | None = make_parser(format, options) if format is not None else None
    lines = unparsed = 0
    for chunk in read_chunks(file):
        if lines == 0:
            _refuse_binary(file, chunk.data[:SAMPLE])
        if parser is None:
            name = detect_format(chunk.data)
            if name is None:
                raise InputError(
                    f"{file}: no known log format and no capture",
                    remedy=f"name the format with --format: {', '.join(sorted(FORMATS))}",
                )
            parser = make_parser(name, options)
        parsed = parser.parse(chunk.data, chunk.first_line)
        lines += parsed.lines
        unparsed += len(parsed.unparsed)
        _print(rows(parsed), LOG_WIDTHS, json)
    if not json:
        say(f"{lines:,} lines, {unparsed:,} not understood")


def _refuse_binary(file: str, sample: bytes) -> None:
    from ..errors import InputError

    strange = sum(byte < 32 and byte not in b"\t\n\r\x1b" for byte in sample)
    if strange > MOST_CONTROL * len(sample):
        at = next(i for i, byte in enumerate(sample) if byte < 32 and byte not in b"\t\n\r\x1b")
        raise InputError(
            f"{file}: offset {at}: byte 0x{sample[at]:02x}: a binary file, no log",
            remedy="name a log; a capture must be a file, not standard input, and needs no --format",
        )


def rows(parsed: Parsed) -> Iterator[dict[str, Any]]:
    """Events and lines that were not understood, in the order of the lines."""
    missing = iter(parsed.unparsed.tolist())
    next_missing = next(missing, None)
    for row in _events(parsed.events):
        while next_missing is not None and next_missing < row["line"]:
            yield {"line": next_missing, "unparsed": True}
            next_missing = next(missing, None)
        yield row
    while next_missing is not None:
        yield {"line": next_missing, "unparsed": True}
        next_missing = next(missing, None)


def _events(events: AuthBatch) -> Iterator[dict[str, Any]]:
    """Columns to dictionaries; the columns are made Python's own at once, as single looks into arrays are slow."""
    from functools import cache

    from ..events import AUTH_TEXTS, Outcome, address_text, rfc3339

    labels = {o.value: o.label for o in Outcome}
    address, moment = cache(address_text), cache(rfc3339)
    always, sometimes = (
        [(name, AUTH_TEXTS.index(name)) for name in names]
        for names in (("user", "service", "method"), ("path", "key"))
    )
    columns = ("time_ns", "outcome", "client_family", "client", "status", "count", "line", "spans")
    listed = (getattr(events, name).tolist() for name in columns)
    for time_ns, outcome, family, client, status, count, line, spans in zip(*listed, strict=True):
        row: dict[str, Any] = {
            "time": moment(time_ns),
            "outcome": labels.get(outcome, "other"),
            "source": address(family, *client) or None,
        }
        for name, column in always:
            row[name] = _text(events.text, spans[column])
        row["line"] = line
        for name, column in sometimes:
            text = _text(events.text, spans[column])
            if text is not None:
                row[name] = text
        if status:
            row["status"] = status
        if count > 1:
            row["count"] = count
        yield row


def _text(text: bytes, span: list[int]) -> str | None:
    start, end = span
    return text[start:end].decode("utf-8", "backslashreplace") if 0 <= start < end else None


def _print(found: Iterable[dict[str, Any]], widths: dict[str, int], json: bool) -> None:
    lines = (json_line(row) if json else columns_of_text(row, widths) for row in found)
    while some := list(islice(lines, ROWS_AT_ONCE)):
        print("\n".join(some))
