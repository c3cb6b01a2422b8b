"""`gatewatch audit`: whether the enforcer's audit log is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import GatewatchError
from .options import ConfigOption, JsonOption, StateOption, load_config
from .output import json_line, printable


def register(app: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True)
    group.command("verify")(verify)
    app.add_typer(group, name="audit", help="Check the audit log.")


def verify(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="A journal; default: the enforcer's, in the state folder."),
    ] = None,
    config: ConfigOption = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Check the hash chain of the audit log from its first entry; exit code 1 where it is broken.

    Compare `head` and `sequence` with what the sinks hold: that shows whether the end was cut off.
    """
    from ..enforcer.journal import verify as verify_journal

    path = file or load_config(config, state).state_folder() / "enforcer" / "journal"
    verdict = verify_journal(path)
    if json:
        print(json_line({"file": str(path), **verdict._asdict()}))
    elif verdict.intact:
        torn = f"; a last entry of {verdict.torn_bytes} bytes was not finished" if verdict.torn_bytes else ""
        print(
            printable(
                f"{path}: intact, {verdict.entries} entries, last {verdict.sequence}, head {verdict.head}{torn}"
            )
        )
    if not verdict.intact:
        if json:
            raise typer.Exit(1)
        raise GatewatchError(
            f"{path}: {verdict.note}",
            remedy="what follows cannot be trusted; compare with the copies in your sinks",
        )
