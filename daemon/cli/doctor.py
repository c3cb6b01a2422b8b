"""`gatewatch doctor`: what is missing on this machine, and how to mend it."""

from __future__ import annotations

from dataclasses import asdict

import typer

from ..errors import ConfigError
from .options import ConfigOption, JsonOption, StateOption, load_config, load_defaults, socket_path


def register(app: typer.Typer) -> None:
    app.command("doctor")(doctor)


def doctor(config: ConfigOption = None, state: StateOption = None, json: JsonOption = False) -> None:
    """Check what Gatewatch needs here: privileges, libraries, logs, clock, files. Exit code 1 where one fails."""
    from ...config.loader import DEFAULT_FILE
    from ..doctor import Check, examine
    from .output import emit

    checks: list[Check] = []
    try:
        loaded = load_config(config, state)
        checks.append(Check("configuration", "ok", str(config) if config else "in order"))
    except ConfigError as error:
        checks.append(Check("configuration", "fail", error.message.replace("\n", "; "), error.remedy))
        loaded = load_defaults(state)
    checks += examine(loaded, socket=socket_path(loaded), file=config or DEFAULT_FILE)
    emit((asdict(c) for c in checks), json, ("state", "check", "detail", "remedy"))
    if any(c.state == "fail" for c in checks):
        raise typer.Exit(1)
