"""How commands show what they found: JSON, one object a line, or an aligned table for people.

Text that came from a log or from the network goes through `printable`: a user name must not be able to move the
cursor, rename the window or turn the reading direction of whoever looks at it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

_HARMFUL = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0 with tab and newline, DEL, C1
    "\u061c\u200b-\u200f\u202a-\u202e\u2060-\u206f"  # bidirectional and other invisible format characters
    "\u2028\u2029\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)

MOST_BUFFERED = 100_000
"""The most rows that one table holds; wider listings are for --json."""


def printable(text: str) -> str:
    """`text` with every control, format and surrogate character written as an escape such as `\\x1b`."""
    if text.isprintable():  # of what is harmful nothing is
        return text
    return _HARMFUL.sub(lambda found: _escape(ord(found[0])), text)


def _escape(code: int) -> str:
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def json_line(row: Mapping[str, Any]) -> str:
    """One object as JSON on one line; what is harmful on a terminal is escaped as JSON allows."""
    text = json.dumps(row, ensure_ascii=False, separators=(", ", ": "), default=str)
    if text.isprintable():
        return text
    return _HARMFUL.sub(lambda found: _json_escape(ord(found[0])), text)


def _json_escape(code: int) -> str:
    if code < 0x10000:
        return f"\\u{code:04x}"
    high, low = divmod(code - 0x10000, 0x400)
    return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"


def emit(rows: Iterable[Mapping[str, Any]], json: bool, columns: Sequence[str]) -> int:
    """Print rows as JSON lines (all fields, as they come) or as a table of `columns`; how many there were.

    A column that a row lacks is empty in the table. Lists are joined with commas.
    """
    if json:
        count = 0
        for row in rows:
            print(json_line(row))
            count += 1
        return count
    kept = list(_first(rows, MOST_BUFFERED))
    if kept:
        _table(kept, columns)
    return len(kept)


def _first(rows: Iterable[Mapping[str, Any]], most: int) -> Iterator[Mapping[str, Any]]:
    for count, row in enumerate(rows):
        if count == most:
            say(f"only the first {most} are shown; --json shows all")
            return
        yield row


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell(row.get(column))) for column in columns))
    console = Console(file=sys.stdout, highlight=False, emoji=False, markup=False)
    if console.is_terminal:
        console.print(table)
    else:
        wide = Console(file=sys.stdout, highlight=False, emoji=False, markup=False, width=10_000)
        for line in wide.render_lines(table, wide.options.update(width=10_000), pad=False):
            print("".join(segment.text for segment in line).rstrip())


def columns_of_text(row: Mapping[str, Any], widths: Mapping[str, int]) -> str:
    """One line of a listing that is printed while it is read: each cell at least so wide."""
    if row.get("unparsed"):
        return f"{cell(row['line']):>{widths['line']}}  not understood"
    first, *rest = widths
    cells = [f"{cell(row.get(first)):>{widths[first]}}", *(f"{cell(row.get(n)):<{widths[n]}}" for n in rest)]
    return "  ".join(cells).rstrip()


def cell(value: Any) -> str:
    """A value as the text of a table cell."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(cell(v) for v in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{printable(str(k))}={cell(v)}" for k, v in value.items())
    return printable(str(value))


def seconds(time: str) -> str:
    """An RFC 3339 time without fractions of a second."""
    whole, dot, _ = time.partition(".")
    return f"{whole}Z" if dot else time


def say(text: str) -> None:
    """A remark for people, on standard error."""
    print(printable(text), file=sys.stderr)
