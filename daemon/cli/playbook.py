"""`gatewatch playbook`: check playbook files, and try one on an incident."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..errors import ConfigError, InputError
from .options import ConfigOption, JsonOption, StateOption, load_config

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
        typer.Argument(
            metavar="INCIDENT",
            help="The id of a stored incident, or a file: incidents as `replay --json` prints them (- = input), a "
            "log or a capture, which is replayed.",
        ),
    ],
    mode: Annotated[
        str, typer.Option(metavar="MODE", help="observe or enforce: as which it is tried.")
    ] = "enforce",
    earlier: Annotated[
        int, typer.Option(metavar="N", min=0, help="As if each target had been blocked so often before.")
    ] = 0,
    good: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CLIENT", help="As if this client had succeeded the day before; may be given again."
        ),
    ] = None,
    uncorroborated: Annotated[
        bool, typer.Option("--uncorroborated", help="As if no source had been seen on the wire.")
    ] = False,
    config: ConfigOption = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Show what a playbook would decide on an incident, and why; nothing is done.

    The time is taken to be that of the incident's last event. Where there are several incidents, each is tried.
    """
    from dataclasses import asdict

    from ...playbooks.breaker import Breaker
    from ...playbooks.decisions import DecisionContext, time_ns
    from ...playbooks.engine import Engine, mismatch
    from ...playbooks.loader import load_playbook
    from .output import emit

    if mode not in ("observe", "enforce"):
        raise typer.BadParameter("observe or enforce", param_hint="--mode")
    tried: Literal["observe", "enforce"] = "observe" if mode == "observe" else "enforce"
    loaded = load_playbook(playbook)
    engine = Engine([loaded])
    rows: list[dict[str, Any]] = []
    for found in incidents_of(incident, config, state):
        now_ns = time_ns(str(found.get("end"))) or 0
        options = load_config(config, state).response.breaker
        context = DecisionContext(
            now_ns,
            tried,
            earlier_blocks=lambda target: earlier,
            corroborated=lambda source, accused: not uncorroborated,
            breaker=Breaker(dict.fromkeys(good or (), 0), share=options.share, spared=options.spared),
        )
        decisions = engine.decide(found, context)
        rows += [{"incident": found.get("id"), **asdict(d)} for d in decisions]
        if not decisions:
            why = (
                mismatch(loaded, found) or "the incident is closed, or the playbook asks for repeated offence"
            )
            rows.append({"incident": found.get("id"), "playbook": loaded.name, "state": "none", "why": why})
    emit(rows, json, ("incident", "action", "target", "ttl_s", "approval", "state", "why", "hits"))


def incidents_of(name: str, config: Path | None, state: Path | None) -> list[dict[str, Any]]:
    """The incidents that `name` stands for: those of a file, of a log that is replayed, or one of the store.

    Raises InputError, StoreError.
    """
    if name == "-":
        return read_incidents(name)
    path = Path(name)
    if not path.exists() and name.isalnum():
        from ..store import Store
        from .options import store_path

        found = Store.open_readonly(store_path(load_config(config, state))).incidents(incident=name, limit=2)
        if len(found) != 1:
            many = "several incidents begin" if found else "no incident begins"
            raise InputError(f"{many} with {name}", remedy="`gatewatch incidents list` shows their ids")
        return found
    if _holds_incidents(path):
        return read_incidents(name)
    from ..replay import Replay
    from .replay import config_or_none

    run = Replay(config_or_none(config))
    run.read(name)
    incidents = run.incidents()
    if not incidents:
        raise InputError(f"{name}: no incident is found in it", remedy=f"see `gatewatch parse {name}`")
    return incidents


def _holds_incidents(path: Path) -> bool:
    """Whether a file begins as a list of incidents does. Raises InputError where it cannot be read."""
    try:
        with path.open("rb") as file:
            first = file.read(MOST_BYTES).lstrip().partition(b"\n")[0]
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}", remedy="give a file, or the id of a stored incident"
        ) from None
    if path.suffix == ".json" or first.strip() == b"{":
        return True
    try:
        found = json_format.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and ("kind" in found or "findings" in found)


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
