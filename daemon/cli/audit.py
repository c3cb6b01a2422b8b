"""`gatewatch audit`: whether the enforcer's audit log is whole."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import GatewatchError
from .options import ConfigOption, JsonOption, StateOption, load_config
from .output import json_line, printable

_PATIENCE_S = 1.0


def register(app: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True)
    group.command("verify")(verify)
    app.add_typer(group, name="audit", help="Check the audit log.")


def verify(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]", help="One file alone; default: the enforcer's journal with all its files."
        ),
    ] = None,
    config: ConfigOption = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Check the hash chain of the audit log through all its files, and that its end is there; exit code 1 where not.

    Compare `head` and `sequence` with what the sinks hold: that shows whether all of it was replaced.
    """
    if file is not None:
        path, result = file, _one(file)
    else:
        path = load_config(config, state).state_folder() / "enforcer" / "journal"
        result = _all(path.parent)
    problems = result["problems"]
    if json:
        note = problems[0] if problems else ""
        print(json_line({"file": str(path), "intact": not problems, **result, "note": note}))
    elif not problems:
        print(printable(f"{path}: {_said(result)}"))
    else:
        for problem in problems:
            print(printable(problem), file=sys.stderr)
    if problems:
        if json:
            raise typer.Exit(1)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise GatewatchError(
            f"{path}: {count}",
            remedy="what follows a damage cannot be trusted; compare with the copies in your sinks",
        )


def _one(file: Path) -> dict[str, Any]:
    from ..enforcer.chain import verify as verify_file

    verdict = verify_file(file)
    return {
        "entries": verdict.entries,
        "sequence": verdict.sequence,
        "head": verdict.head,
        "torn_bytes": verdict.torn_bytes,
        "files": [],
        "problems": [verdict.note] if verdict.note else [],
    }


def _all(folder: Path) -> dict[str, Any]:
    from ..enforcer.audit import check

    with _progress() as progress:
        report = check(str(folder), progress)
    return {**report._asdict(), "files": [f._asdict() for f in report.files]}


def _said(result: dict[str, Any]) -> str:
    files = f" in {len(result['files'])} files" if len(result["files"]) > 1 else ""
    torn = f"; a last entry of {result['torn_bytes']} bytes was not finished" if result["torn_bytes"] else ""
    return (
        f"intact, {result['entries']} entries{files}, last {result['sequence']}, head {result['head']}{torn}"
    )


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int], None]]:
    """A line on a terminal where it takes longer than a second, and nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda file, entries: None
        return
    started, shown = time.monotonic(), False

    def show(file: str, entries: int) -> None:
        nonlocal shown
        if time.monotonic() - started > _PATIENCE_S:
            shown = True
            print(
                f"\r\x1b[Kchecking {printable(file)}: {entries} entries", end="", file=sys.stderr, flush=True
            )

    try:
        yield show
    finally:
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
