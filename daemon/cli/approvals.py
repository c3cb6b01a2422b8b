"""`gatewatch approvals`: requests that wait until people agree, and the answer of one of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from .options import ConfigOption, JsonOption, StateOption, load_config
from .output import emit, json_line, printable

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="As `approvals list` shows it.")]
COLUMNS = ("id", "if_granted", "hits", "why", "by", "since", "needs", "expires")


def register(app: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True, help="Requests that wait until people agree.")
    group.command("list")(list_)
    group.command("grant")(grant)
    group.command("deny")(deny)
    app.add_typer(group, name="approvals")


def list_(config: ConfigOption = None, state: StateOption = None, as_json: JsonOption = False) -> None:
    """List what waits until people agree: what will happen if granted, whom it hits, and how many more are needed."""
    rows: Iterator[dict[str, Any]] = map(_row, _waiting(speaker(config, state)))
    if not emit(rows if as_json else map(_shown, rows), as_json, COLUMNS) and not as_json:
        print("nothing waits for a person")


def grant(
    name: IdArgument, config: ConfigOption = None, state: StateOption = None, as_json: JsonOption = False
) -> None:
    """Agree to what was asked for; it is done at once, or when enough others have agreed, too."""
    answer = speaker(config, state).call({"request": "grant", "id": name})
    said = pending(answer) if "pending" in answer else outcome(answer)
    _say(answer, as_json, f"agreed to {name}: {said}" if "pending" in answer else f"granted {name}: {said}")


def deny(
    name: IdArgument, config: ConfigOption = None, state: StateOption = None, as_json: JsonOption = False
) -> None:
    """Refuse what was asked for, or take back what you asked for yourself."""
    answer = speaker(config, state).call({"request": "deny", "id": name})
    _say(answer, as_json, f"denied {name}; nothing was done")


def speaker(config: Any, state: Any) -> Any:
    """The enforcer, or as root this command in its place."""
    from .kill_switch import Speaker

    loaded = load_config(config, state)
    return Speaker(str(loaded.state_folder()), str(loaded.rails) if config else "")


def pending(answer: dict[str, Any]) -> str:
    """That others have to agree first."""
    from .kill_switch_text import others

    name = answer["pending"]
    minutes = answer["expires_s"] // 60
    return f"waits as {name} for {minutes} minutes; needs {others(answer['needs'])}: gatewatch approvals grant {name}"


def outcome(answer: dict[str, Any]) -> str:
    """What was done, of any request that can be granted or signed."""
    from .blocks import unblocked

    if "pending" in answer:
        return pending(answer)
    if "denied" in answer:
        return f"denied {answer['denied']}; nothing was done"
    if "released" in answer:
        return f"released {', '.join(answer['released']) or 'nothing, as nothing was engaged'}"
    if "engaged" in answer:
        proven = "proven" if answer["proven"] else f"NOT PROVEN: {'; '.join(answer['not_proven'])}"
        return f"engaged {', '.join(answer['engaged'])}, {proven}"
    if "unblocked" in answer:
        return unblocked(answer)
    if "ttl_s" in answer:
        whom = f"{answer['kind']}:{answer['user']}" if "user" in answer else answer.get("address", "")
        return f"{whom} is{' already' if answer.get('already') else ''} blocked for {answer['ttl_s']} s"
    if "restricted" in answer:
        return f"restricted {', '.join(answer['restricted'])} to {', '.join(answer.get('allowed', ()))}"
    if "lifted" in answer:
        return f"lifted the restriction of {', '.join(answer['lifted']) or 'nothing'}"
    if "cut" in answer:
        return f"{answer.get('address', '')}: {answer['cut']} sockets ended"
    return "done"


def if_granted(said: dict[str, Any]) -> str:
    """What will happen, in words."""
    endpoints = ", ".join(said.get("endpoints", ())) or "all endpoints"
    address = said.get("address", "")
    user = f"{said.get('kind', 'any')}:{said.get('user', '')}"
    lasting = f" for {said['ttl_s']} s" if said.get("ttl_s") else ""
    at = " at the gateway alone" if said.get("where") == "gateway" else ""
    words = {
        "block": f"block {address}{at}{lasting or ' for as long as the rails allow'}",
        "unblock": f"unblock {address}",
        "block_user": f"block the user {user}{lasting or ' for as long as the rails allow'}",
        "unblock_user": f"unblock the user {user}",
        "cut": f"end the connections of {address}",
        "kill": f"pull the kill switch of {endpoints}{lasting}",
        "release": f"release the kill switch of {endpoints}",
        "restrict": f"let the allowed networks alone reach {endpoints}{lasting}",
        "lift": f"end the restriction of {endpoints}",
    }
    return words.get(said["request"], str(said["request"]))


def _waiting(asked: Any) -> Iterator[dict[str, Any]]:
    page = 0
    while page >= 0:
        answer = asked.call({"request": "approvals", "page": page})
        yield from answer["approvals"]
        page = answer["next"]


def _row(said: dict[str, Any]) -> dict[str, Any]:
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(said.pop("since_ns") // 10**9))
    return {**said, "since": since, "expires": f"in {said['expires_s']} s", "if_granted": if_granted(said)}


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """With what people want to read in place of the fields."""
    more, agreed = row["needs"] - len(row["granted"]), ", ".join(row["granted"])
    reason, incident = row.get("reason", ""), row.get("incident")
    said = incident and f"incident {incident}" in reason
    of = ", ".join(filter(None, (None if said else incident, row.get("playbook"))))
    needs = f"{more} more{f' ({agreed} agreed)' if agreed else ''}"
    return {**row, "needs": needs, "why": f"{reason}{f' ({of})' if of else ''}"}


def _say(answer: dict[str, Any], as_json: bool, text: str) -> None:
    print(json_line({k: v for k, v in answer.items() if k != "ok"}) if as_json else printable(text))
