"""`gatewatch playbook`: check playbook files, and try one on an incident."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..errors import ConfigError, InputError
from .options import ConfigOption, JsonOption, load_config

MOST_BYTES = 16 << 20


def register(app: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True)
    group.command("check")(check)
    group.command("test")(test)
    app.add_typer(group, name="playbook", help="Check playbooks, and try one on an incident.")


def check(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE]...", help="Playbooks; default: those in use.")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Check playbooks: each problem with its file, line and key; exit code 2 where there is any."""
    from ...playbooks.loader import load_playbook, load_playbooks, playbook_files

    if not files:
        options = load_config(config).playbooks
        load_playbooks(options.directories, shipped=options.shipped)
        files = playbook_files(options.directories, shipped=options.shipped)
    wrong: list[str] = []
    for file in files:
        try:
            playbook = load_playbook(file)
        except ConfigError as error:
            wrong.append(str(error))
        else:
            actions = ", ".join(step.action for step in playbook.then)
            print(f"{file}: ok, {playbook.name}: {actions}{'' if playbook.enabled else ' (not enabled)'}")
    if wrong:
        raise ConfigError("\n".join(wrong))


def test(
    playbook: Annotated[Path, typer.Argument(metavar="PLAYBOOK", help="The playbook file.")],
    incident: Annotated[
        str,
        typer.Argument(metavar="INCIDENT.json", help="An incident as `replay --json` prints it; - = input."),
    ],
    mode: Annotated[
        str, typer.Option(metavar="MODE", help="observe or enforce: as which it is tried.")
    ] = "enforce",
    earlier: Annotated[
        int, typer.Option(metavar="N", min=0, help="As if each source had been blocked so often before.")
    ] = 0,
    json: JsonOption = False,
) -> None:
    """Show what a playbook would decide on an incident, and why; nothing is done.

    The time is taken to be that of the incident's last event. Where the file has several lines, each is one incident.
    """
    from dataclasses import asdict

    from ...playbooks.engine import DecisionContext, Engine, mismatch, time_ns
    from ...playbooks.loader import load_playbook
    from .output import emit

    if mode not in ("observe", "enforce"):
        raise typer.BadParameter("observe or enforce", param_hint="--mode")
    tried: Literal["observe", "enforce"] = "observe" if mode == "observe" else "enforce"
    loaded = load_playbook(playbook)
    engine = Engine([loaded])
    rows: list[dict[str, Any]] = []
    for found in read_incidents(incident):
        now_ns = time_ns(str(found.get("end"))) or 0
        context = DecisionContext(now_ns, tried, earlier_blocks=lambda target: earlier)
        decisions = engine.decide(found, context)
        rows += [{"incident": found.get("id"), **asdict(d)} for d in decisions]
        if not decisions:
            why = (
                mismatch(loaded, found) or "the incident is closed, or the playbook asks for repeated offence"
            )
            rows.append({"incident": found.get("id"), "playbook": loaded.name, "state": "none", "why": why})
    emit(rows, json, ("incident", "action", "target", "ttl_s", "approval", "state", "why"))


def read_incidents(name: str) -> list[dict[str, Any]]:
    """The incidents of a file: one JSON object, or one on each line. Raises InputError."""
    import sys

    try:
        if name == "-":
            text = sys.stdin.buffer.read(MOST_BYTES + 1)
        else:
            with open(name, "rb") as file:
                text = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"{name}: {error.strerror}") from None
    if len(text) > MOST_BYTES:
        raise InputError(f"{name}: larger than {MOST_BYTES >> 20} MiB", remedy="give one incident")
    try:
        whole = json_format.loads(text)
        return [_object(whole, name, 1)]
    except (ValueError, RecursionError):
        pass
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                found.append(_object(json_format.loads(line), name, number))
            except (ValueError, RecursionError) as error:
                raise InputError(
                    f"{name}:{number}: no JSON object ({error})",
                    remedy="`gatewatch replay --json` prints incidents",
                ) from None
    if not found:
        raise InputError(f"{name}: holds no incident", remedy="`gatewatch replay --json` prints incidents")
    return found


def _object(value: Any, name: str, line: int) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{name}:{line}: an incident is a JSON object, not {type(value).__name__}")
    return value
