"""`gatewatch incidents`: list, show, acknowledge and close what was found."""

from __future__ import annotations

import shlex
import time
from typing import Annotated, Any

import typer

from .options import ConfigOption, JsonOption, StateOption, load_config, store_path
from .output import emit, json_line, printable, say, seconds

SinceOption = Annotated[str, typer.Option("--since", metavar="AGE", help="How far back: 90s, 30m, 24h, 7d.")]
NoteOption = Annotated[str, typer.Option("--note", help="Why; kept with the incident.")]
IncidentArgument = Annotated[str, typer.Argument(metavar="ID", help="The id, or its beginning.")]
GUESSED = (
    "see that these users have strong passwords or keys; a login that succeeds is an incident of its own"
)
NEXT = {
    "brute_force": GUESSED,
    "password_spray": GUESSED,
    "account_compromise": "lock the user, end its sessions, and look at what it did since that login",
    "off_allowlist_ingress": "close the port to it, or add it to allowlist.ingress if it belongs there",
    "off_allowlist_egress": "find the process that connects; or add it to allowlist.egress if it belongs there",
    "port_scan": "see whether the targets that answered should be reachable from there",
    "host_sweep": "see whether the hosts that answered should be reachable from there",
}
"""What a person does about an incident of each kind; the first step, in words."""
COLUMNS = ("id", "priority", "kind", "status", "start", "end", "title")


def register(app: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True, help="What was found: list, show, ack, close.")
    group.command("list")(list_)
    group.command()(show)
    group.command()(ack)
    group.command()(close)
    app.add_typer(group, name="incidents")


def list_(
    since: SinceOption = "7d",
    status: Annotated[str | None, typer.Option(help="open, acknowledged or closed.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="The most to list.")] = 200,
    config: ConfigOption = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """List incidents, the gravest first, then the newest."""
    from ...config.values import parse_duration
    from ..errors import UsageError
    from ..store import Store

    if status not in (None, "open", "acknowledged", "closed"):
        raise UsageError(f"--status {status}: there is none", remedy="choose open, acknowledged or closed")
    try:
        since_ns = time.time_ns() - parse_duration(since) * 1_000_000_000
    except ValueError as error:
        raise UsageError(f"--since {since}: {error}") from error
    store = Store.open_readonly(store_path(load_config(config, state)))
    found = store.incidents(since_ns=since_ns, status=status, limit=limit + 1, gravest_first=True)
    if not emit(found[:limit], as_json, COLUMNS) and not as_json:
        print(f"no incidents in the last {since}")
    if len(found) > limit:
        say(f"only the first {limit} are shown; --limit shows more")


def show(
    incident: IncidentArgument,
    config: ConfigOption = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Explain one incident: what, who, the figures, the evidence, and what was done."""
    found = _one(incident, config, state)
    if as_json:
        print(json_line(found))
    else:
        for line in explained(found):
            print(printable(line))


def ack(
    incident: IncidentArgument, note: NoteOption = "", config: ConfigOption = None, state: StateOption = None
) -> None:
    """Say that somebody looks at it."""
    _tell("acknowledge", incident, note, config, state)


def close(
    incident: IncidentArgument, note: NoteOption = "", config: ConfigOption = None, state: StateOption = None
) -> None:
    """Say that it is over; playbooks do nothing more about it."""
    _tell("close", incident, note, config, state)


def _one(incident: str, config: Any, state: Any) -> dict[str, Any]:
    from ..errors import GatewatchError
    from ..store import Store

    found = Store.open_readonly(store_path(load_config(config, state))).incidents(incident=incident, limit=2)
    if not found:
        raise GatewatchError(f"no incident {incident}", remedy="`gatewatch incidents list` shows them")
    if len(found) > 1:
        raise GatewatchError(f"several incidents begin with {incident}", remedy="give more of the id")
    return found[0]


def _tell(what: str, incident: str, note: str, config: Any, state: Any) -> None:
    from ..control import ask

    found = _one(incident, config, state)
    path = load_config(config, state).state_folder() / "run" / "analyser.sock"
    answer = ask(path, {"do": what, "incident": found["id"], "note": note})
    print(f"incident {answer['incident']}: {answer['status']}")


def explained(incident: dict[str, Any]) -> list[str]:
    """One incident as text for a person, a line each; the caller makes control characters harmless."""
    lines = [
        f"{incident['priority'].upper()}  {incident['title']}",
        f"  incident {incident['id']}, {incident['kind']}, {incident['status']}, revision {incident['revision']}",
        f"  from {incident['start']} to {incident['end']}",
        f"  severity {incident['severity']}, confidence {incident['confidence']}",
    ]
    lines += [
        f"  {name}: {', '.join(incident[name])}" for name in ("sources", "users", "targets") if incident[name]
    ]
    if incident.get("note"):
        lines.append(f"  note: {incident['note']}")
    for finding in incident["findings"]:
        figures = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in finding["figures"].items())
        lines.append(f"  {seconds(finding['time'])}  {finding['kind']}: {figures}")
        if finding["threshold"]:
            lines.append(f"    raised at: {finding['threshold']}")
        if finding["baseline"]:
            lines.append(f"    usual: {finding['baseline']}")
        if finding["techniques"]:
            lines.append(f"    ATT&CK: {', '.join(finding['techniques'])}")
        if finding["lines"]:
            lines.append(f"    lines or frames: {ranges(finding['lines'])}")
        lines += [f"    | {sample}" for sample in finding["samples"]]
    lines += [
        f"  {seconds(a['time'])}  {a['action']} {a['target']}{lasting(a)}: {a['state']}, {a['why']} "
        f"(playbook {a['playbook']})"
        for a in incident["actions"]
    ]
    if not incident["actions"]:
        lines.append("  nothing was done about it")
    if incident["status"] != "closed":
        if incident["kind"] in NEXT:
            lines.append(f"  what to do: {NEXT[incident['kind']]}")
        about = incident["blockable"][:1] or incident["sources"][:1] or incident["users"][:1]
        lines += [f"  next: gatewatch explain {shlex.quote(name)}" for name in about]
        lines.append(f"  when it is over: gatewatch incidents close {incident['id']} --note TEXT")
    return lines


def lasting(action: dict[str, Any]) -> str:
    """For how long an action holds, in words; nothing where it has no end of its own."""
    from ...config.values import duration_text

    return f" for {duration_text(action['ttl_s'])}" if action.get("ttl_s") else ""


def ranges(numbers: list[int]) -> str:
    """`1-4, 7`: numbers in their order, runs in short."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)
