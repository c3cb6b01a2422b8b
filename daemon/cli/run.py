"""`gatewatch run`: the daemon, with its processes, in the foreground."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import ConfigOption, StateOption, load_config


def register(app: typer.Typer) -> None:
    app.command()(run)


def run(
    config: ConfigOption = None,
    state: StateOption = None,
    observe: Annotated[
        bool, typer.Option("--observe", help="Record what would be done, whatever the configuration says.")
    ] = False,
    enforce: Annotated[
        bool, typer.Option("--enforce", help="Do what the playbooks decide; needs management networks.")
    ] = False,
) -> None:
    """Run the daemon: follow logs, capture packets, detect, respond."""
    from ..errors import UsageError

    if observe and enforce:
        raise UsageError("--observe and --enforce exclude each other")
    settings = load_config(config, state)
    mode = "enforce" if enforce else "observe" if observe else settings.mode

    from ..service import run_service

    raise typer.Exit(run_service(settings, mode, settings.state_folder()))
