"""`gatewatch approvals`: requests that wait for a second person, and that person's answer."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from .options import ConfigOption, JsonOption, StateOption, load_config
from .output import emit, json_line, printable

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="As `approvals list` shows it.")]
COLUMNS = ("id", "request", "of", "by", "since", "expires", "reason")


def register(app: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True, help="Requests that wait for a second person.")
    group.command("list")(list_)
    group.command("grant")(grant)
    group.command("deny")(deny)
    app.add_typer(group, name="approvals")


def list_(config: ConfigOption = None, state: StateOption = None, as_json: JsonOption = False) -> None:
    """List what waits for a second person."""
    waiting = speaker(config, state).call({"request": "approvals"})["approvals"]
    if not emit(map(_row, waiting), as_json, COLUMNS) and not as_json:
        print("nothing waits for a second person")


def grant(
    name: IdArgument, config: ConfigOption = None, state: StateOption = None, as_json: JsonOption = False
) -> None:
    """Agree to what another person asked for; it is done at once."""
    answer = speaker(config, state).call({"request": "grant", "id": name})
    _say(answer, as_json, f"granted {name}: {outcome(answer)}")


def deny(
    name: IdArgument, config: ConfigOption = None, state: StateOption = None, as_json: JsonOption = False
) -> None:
    """Refuse what another person asked for, or take back what you asked for yourself."""
    answer = speaker(config, state).call({"request": "deny", "id": name})
    _say(answer, as_json, f"denied {name}; nothing was done")


def speaker(config: Any, state: Any) -> Any:
    """The enforcer, or as root this command in its place."""
    from .kill_switch import Speaker

    loaded = load_config(config, state)
    return Speaker(str(loaded.state_folder()), str(loaded.rails) if config else "")


def outcome(answer: dict[str, Any]) -> str:
    if "released" in answer:
        return f"released {', '.join(answer['released']) or 'nothing, as nothing was engaged'}"
    if "engaged" in answer:
        proven = "proven" if answer["proven"] else f"NOT PROVEN: {'; '.join(answer['not_proven'])}"
        return f"engaged {', '.join(answer['engaged'])}, {proven}"
    if "unblocked" in answer:
        return f"{answer['address']} {'is unblocked' if answer['unblocked'] else 'was not blocked'}"
    return "done"


def _row(said: dict[str, Any]) -> dict[str, Any]:
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(said.pop("since_ns") // 10**9))
    what = said.get("address") or ", ".join(said.get("endpoints", ())) or "all endpoints"
    return {**said, "of": what, "since": since, "expires": f"in {said['expires_s']} s"}


def _say(answer: dict[str, Any], as_json: bool, text: str) -> None:
    print(json_line({k: v for k, v in answer.items() if k != "ok"}) if as_json else printable(text))
