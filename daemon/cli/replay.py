"""`gatewatch replay`: the daemon's detection over stored logs and captures."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import ConfigOption, JsonOption, load_config_if_any
from .output import emit, printable

if TYPE_CHECKING:
    from ..replay import Progress

COLUMNS = ("priority", "kind", "start", "end", "title")


def register(app: typer.Typer) -> None:
    app.command()(replay)


def replay(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Logs and captures; - = standard input.")
    ],
    format: Annotated[
        str | None, typer.Option("--format", metavar="F", help="The log format; without it, it is detected.")
    ] = None,
    year: Annotated[
        int | None, typer.Option("--year", min=1970, max=2200, help="The year of times that name none.")
    ] = None,
    local: Annotated[
        list[str] | None,
        typer.Option("--local", metavar="CIDR", help="Own networks, for the direction of captured traffic."),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find incidents in stored logs and captures; nothing is blocked and nothing is kept."""
    from ..replay import Replay

    run = Replay(load_config_if_any(config), format=format, year=year, local=local or ())
    for file in files:
        with _progress(file) as progress:
            run.read(file, progress)
    found = run.incidents()
    emit(found, as_json, COLUMNS)
    summary = run.summary
    for problem in summary.problems:
        print(f"gatewatch: {printable(problem)}", file=sys.stderr)
    if not as_json:
        read = []
        if summary.lines:
            read.append(f"{summary.lines:,} lines ({summary.unparsed:,} not understood)")
        if summary.packets:
            read.append(f"{summary.packets:,} packets")
        print(f"{len(found)} incidents in {' and '.join(read) or 'nothing'}", file=sys.stderr)
    if summary.problems:
        raise typer.Exit(1)


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
