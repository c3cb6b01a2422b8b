"""`gatewatch replay`: the daemon's detection over stored logs and captures.

Dispatched before typer, which takes longer to load than this needs for a hundred thousand lines.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ...config import FOLDER
from .output import emit, printable

if TYPE_CHECKING:
    from ...config.schema import Config
    from ..replay import Progress

COLUMNS = ("priority", "kind", "start", "end", "title")


def arguments() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog="gatewatch replay",
        formatter_class=partial(argparse.HelpFormatter, width=100),
        description="Find incidents in stored logs and captures; nothing is blocked and nothing is kept.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="Logs and captures; - = standard input.")
    parser.add_argument("--format", metavar="F", help="The log format; without it, it is detected.")
    parser.add_argument("--year", type=_year, metavar="Y", help="The year of times that name none.")
    parser.add_argument(
        "--local",
        action="append",
        default=[],
        metavar="CIDR",
        help="A network of our own, for the direction of captured traffic; may be given again.",
    )
    parser.add_argument(
        "--config",
        type=Path,
        default=os.environ.get("GATEWATCH_CONFIG"),
        metavar="FILE",
        help=f"The configuration (GATEWATCH_CONFIG); default {FOLDER}/gatewatch.yaml where it exists.",
    )
    parser.add_argument("--json", action="store_true", help="One incident a line as a JSON object.")
    return parser


def main(argv: Sequence[str]) -> int:
    """Exit code 0; 1 where a file could not be read to its end."""
    options = arguments().parse_args(argv)

    from ..replay import Replay

    run = Replay(
        config_or_none(options.config), format=options.format, year=options.year, local=options.local
    )
    for file in options.files:
        with _progress(file) as progress:
            run.read(file, progress)
    found = run.incidents()
    emit(found, options.json, COLUMNS)
    summary = run.summary
    for problem in summary.problems:
        print(f"gatewatch: {printable(problem)}", file=sys.stderr)
    if not options.json:
        read = []
        if summary.lines:
            read.append(f"{summary.lines:,} lines ({summary.unparsed:,} not understood)")
        if summary.packets:
            read.append(f"{summary.packets:,} packets")
        many = "1 incident" if len(found) == 1 else f"{len(found):,} incidents"
        more = "; --json gives users, figures and lines of each" if found else ""
        print(f"{many} in {' and '.join(read) or 'nothing'}{more}", file=sys.stderr)
    return 1 if summary.problems else 0


def _year(text: str) -> int:
    if not (text.isdecimal() and 1970 <= int(text) <= 2200):
        raise argparse.ArgumentTypeError(f"{text}: no year from 1970 to 2200")
    return int(text)


def config_or_none(path: Path | None) -> Config | None:
    """None, the defaults, where no file is named and the default one does not exist: the schema loads slowly."""
    if path is None and not Path(FOLDER, "gatewatch.yaml").exists():
        return None
    from ...config.loader import load

    return load(path)


@contextlib.contextmanager
def _progress(file: str) -> Iterator[Progress]:
    """A bar on a terminal, and nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(printable(Path(file).name), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)
