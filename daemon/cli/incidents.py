"""`gatewatch incidents`: list, show, acknowledge and close what was found, and the exceptions that closing made."""

from __future__ import annotations

import getpass
import os
import shlex
import time
from typing import Annotated, Any

import typer

from .actions import LASTING, action_text, over
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
    "distributed_brute_force": "see that this user has a strong password or a key; blocking one source of many helps "
    "little: ask for a second factor, or allow its logins from known networks alone",
    "credential_stuffing": "see which of its sources got in (compromises join this incident), and have users change "
    "passwords that they use elsewhere too",
    "new_access": "ask the user, by another way, whether that login was theirs; if not, lock the user and end its "
    "sessions",
    "impossible_travel": "ask the user which of the logins was theirs; a VPN or a phone may explain both; if not, lock "
    "the user and end its sessions",
    "mfa_fatigue": "somebody has this user's password: have it changed, and ask the user whether a prompt was "
    "accepted",
    "account_compromise": "lock the user, end its sessions, and look at what it did since that login",
    "control_endpoint_access": "let the gateway refuse that path to clients, see what the server was made to do, and "
    "take the key away from whoever has it now; who may belongs in detectors.control_endpoint",
    "off_allowlist_ingress": "close the port to it, or add it to allowlist.ingress if it belongs there",
    "off_allowlist_egress": "find the process that connects; or add it to allowlist.egress if it belongs there",
    "port_scan": "see whether the targets that answered should be reachable from there",
    "host_sweep": "see whether the hosts that answered should be reachable from there",
    "circuit_breaker": "look at whom the blocks that wait would hit (`gatewatch approvals list`), and grant or deny "
    "each; if good clients are attacked through, block users rather than their networks",
}
"""What a person does about an incident of each kind; the first step, in words."""
BENIGN = "30d"
"""How long an exception lasts where nothing else is said."""
GROWING = (
    "attempts",
    "connections",
    "successes",
    "prompts",
    "distinct_users",
    "distinct_sources",
    "distinct_targets",
)
"""The figures that tell how far a campaign has grown."""
EXCEPTION_COLUMNS = ("id", "kind", "entity", "users", "sources", "state", "until", "by", "suppressed", "note")
COLUMNS = ("id", "priority", "kind", "status", "start", "end", "title")


def register(app: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True, help="What was found: list, show, ack, close.")
    group.command("list")(list_)
    group.command()(show)
    group.command()(ack)
    group.command()(close)
    group.command()(exceptions)
    app.add_typer(group, name="incidents")


def list_(
    since: SinceOption = "7d",
    status: Annotated[str | None, typer.Option(help="open, acknowledged or closed.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="The most to list.")] = 200,
    config: ConfigOption = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """List incidents: compromises first, then what touches privileged users or critical endpoints, then campaigns,
    then background; in each the gravest first, then the newest."""
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
    unmask: Annotated[
        bool, typer.Option("--unmask", help="Show names that look like typed passwords, too.")
    ] = False,
    config: ConfigOption = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Explain one incident: what, who, the figures, the evidence, and what was done."""
    found = _one(incident, config, state, unmask=unmask)
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
    incident: IncidentArgument,
    note: NoteOption = "",
    benign: Annotated[
        bool,
        typer.Option(
            "--benign",
            help="It was no attack: the same from the same users and sources is no incident for a while.",
        ),
    ] = False,
    lasting_for: Annotated[
        str | None,
        typer.Option("--for", metavar="AGE", help=f"With --benign: for how long; {BENIGN} where not given."),
    ] = None,
    config: ConfigOption = None,
    state: StateOption = None,
) -> None:
    """Say that it is over; playbooks do nothing more about it."""
    from ...config.values import parse_duration
    from ..errors import UsageError

    more = {}
    if benign:
        try:
            more["benign_s"] = parse_duration(lasting_for or BENIGN)
        except ValueError as error:
            raise UsageError(f"--for {lasting_for}: {error}") from error
        if not note.strip():
            raise UsageError(
                "--benign needs a reason", remedy="say it with --note TEXT: it is kept with the exception"
            )
    elif lasting_for is not None:
        raise UsageError("--for is how long an exception lasts", remedy="give --benign as well")
    _tell("close", incident, note, config, state, **more)


def exceptions(
    remove: Annotated[
        str | None,
        typer.Option("--remove", metavar="ID", help="End this exception now; its id or the beginning."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Those that expired or were removed, too.")] = False,
    config: ConfigOption = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the exceptions that closing as benign made, with how many findings each has kept from becoming incidents."""
    from ..benign import Benign
    from ..control import ask
    from ..errors import GatewatchError
    from ..masking import Mask
    from ..store import Store

    loaded = load_config(config, state)
    store = Store.open_readonly(store_path(loaded))
    now_ns = time.time_ns()
    mask = Mask(store.hash_key())
    known = [Benign.from_state(s).document(mask, now_ns) for s in store.exceptions()]
    if remove is None:
        found = [e for e in known if every or e["state"] == "in force"]
        if not as_json:
            found = [e | {name: e[name] or ["any"] for name in ("users", "sources")} for e in found]
        if not emit(found, as_json, EXCEPTION_COLUMNS) and not as_json:
            print("no exceptions" if every else "no exceptions in force")
        return
    named = [e["id"] for e in known if e["id"].startswith(remove) and e["state"] == "in force"]
    if len(named) != 1:
        what = f"several exceptions begin with {remove}" if named else f"no exception {remove} is in force"
        raise GatewatchError(what, remedy="`gatewatch incidents exceptions` shows them")
    answer = ask(
        loaded.state_folder() / "run" / "analyser.sock",
        {"do": "remove_exception", "exception": named[0], "by": _who()},
    )
    print(f"exception {answer['exception']['id']}: removed")


def _who() -> str:
    """Who gives the command: behind sudo, the user who did."""
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _one(incident: str, config: Any, state: Any, *, unmask: bool = False) -> dict[str, Any]:
    from ..errors import GatewatchError
    from ..store import Store

    store = Store.open_readonly(store_path(load_config(config, state)))
    found = store.incidents(incident=incident, limit=2)
    if not found:
        raise GatewatchError(f"no incident {incident}", remedy="`gatewatch incidents list` shows them")
    if len(found) > 1:
        raise GatewatchError(f"several incidents begin with {incident}", remedy="give more of the id")
    return found[0] | _unmasked(store, found[0]["id"]) if unmask else found[0]


def _unmasked(store: Any, incident: str) -> dict[str, Any]:
    """What names users in an incident's document, as it truly is."""
    from ..incidents import Incident
    from ..masking import OPEN

    kept = store.incident_state(incident)
    if kept is None:
        return {}
    known = Incident.from_state(*kept)
    known.mask = OPEN
    document = known.document()
    return {name: document[name] for name in ("title", "users", "findings")}


def _tell(what: str, incident: str, note: str, config: Any, state: Any, **more: Any) -> None:
    from ..control import ask

    found = _one(incident, config, state)
    path = load_config(config, state).state_folder() / "run" / "analyser.sock"
    answer = ask(path, {"do": what, "incident": found["id"], "note": note, "by": _who(), **more})
    print(f"incident {answer['incident']}: {answer['status']}")
    for made in answer.get("exceptions", ()):
        scope = [
            f"{name} {', '.join(made[name])}" if made[name] is not None else f"any {name}"
            for name in ("users", "sources")
            if not (name == "sources" and made["entity_type"] == "source")
        ]
        print(
            printable(
                f"exception {made['id']}: {made['kind']} of {made['entity_type']} {made['entity']} "
                f"({'; '.join(scope)}) is no incident until {seconds(made['until'])}"
            )
        )


def explained(incident: dict[str, Any]) -> list[str]:
    """One incident as text for a person, a line each; the caller makes control characters harmless."""
    from ..incidents import RANKS
    from ..titles import technique

    lines = [
        f"{incident['priority'].upper()}  {incident['title']}",
        f"  incident {incident['id']}, {incident['kind']}, {incident['status']}, revision {incident['revision']}",
        f"  from {incident['start']} to {incident['end']}",
        f"  severity {incident['severity']}, confidence {incident['confidence']}",
    ]
    if "rank" in incident:
        lines.append(
            f"  rank {incident['rank']} of {len(RANKS)} ({RANKS[incident['rank'] - 1]}), "
            f"{incident['priority']} since {seconds(incident['priority_since'])}"
        )
    lines += [
        f"  {name}: {', '.join(incident[name])}" for name in ("sources", "users", "targets") if incident[name]
    ]
    if incident.get("note"):
        lines.append(f"  note: {incident['note']}")
    for finding in incident["findings"]:
        figures = ", ".join(
            f"{k.replace('_', ' ')} ({v})" if isinstance(v, str) else f"{k.replace('_', ' ')} {v}"
            for k, v in finding["figures"].items()
        )
        lines.append(f"  {finding['kind']}: {figures}")
        if finding["threshold"]:
            lines.append(f"    raised at: {finding['threshold']}")
        if finding["baseline"]:
            lines.append(f"    usual: {finding['baseline']}")
        if finding["techniques"]:
            lines.append(f"    ATT&CK: {', '.join(map(technique, finding['techniques']))}")
        if finding["lines"]:
            lines.append(f"    lines or frames: {ranges(finding['lines'])}")
        if "participants" in finding:
            lines.append(f"    sources in all: {finding['participants']['count']}")
        lines += [f"    | {sample}" for sample in finding["samples"]]
    lines.append("  timeline:")
    lines += [f"    {seconds(time)}  {what}" for time, what in timeline(incident)]
    if not incident["actions"]:
        lines.append("  nothing was done about it")
    if incident["status"] != "closed":
        if incident["kind"] in NEXT:
            lines.append(f"  what to do: {NEXT[incident['kind']]}")
        about = incident["blockable"][:1] or incident["sources"][:1] or incident["users"][:1]
        lines += [f"  next: gatewatch explain {shlex.quote(name)}" for name in about]
        lines += [
            f"  next: gatewatch approvals grant {action['approval']} (or deny {action['approval']}): "
            f"{action['action']} {action['target']} waits for a person"
            for action in incident["actions"]
            if action["state"] == "waiting" and action.get("approval")
        ]
        lines += [
            f"  to take it back: gatewatch actions undo {action.get('id')} ({action['action']} {action['target']})"
            for action in incident["actions"]
            if action["state"] == "done" and action["action"] in LASTING and not over(action)
        ]
        lines.append(f"  when it is over: gatewatch incidents close {incident['id']} --note TEXT")
        lines.append(
            f"  when it was no attack: gatewatch incidents close {incident['id']} --benign --note TEXT"
        )
    return lines


def timeline(incident: dict[str, Any]) -> list[tuple[str, str]]:
    """(time, what) in order: the first attempt, thresholds crossed, successes, growth, and what was or would have
    been done."""
    entries: list[tuple[str, int, str]] = [(incident["start"], 0, "the first event that belongs to it")]
    for finding in incident["findings"]:
        kind = finding["kind"]
        if (
            kind in ("account_compromise", "new_access", "impossible_travel")
            or "successes" in finding["figures"]
        ):
            who = ", ".join(finding["users"]) or "somebody"
            entries.append(
                (finding["time"], 2, f"{kind}: login of {who} from {', '.join(finding['sources'])}")
            )
        else:
            crossed = f": {finding['threshold']}" if finding["threshold"] else ""
            entries.append((finding["time"], 1, f"{kind}: threshold crossed{crossed}"))
        if finding.get("graded", finding["time"]) != finding["time"]:
            entries.append((finding["graded"], 3, f"{kind}: severity {finding['severity']} from here on"))
        if finding["end"] != finding["time"]:
            grown = ", ".join(
                f"{finding['figures'][name]} {name.replace('_', ' ')}"
                for name in GROWING
                if finding["figures"].get(name, 0) > name.startswith("distinct_")
            )
            entries.append((finding["end"], 4, f"{kind}: last event so far{f', {grown}' if grown else ''}"))
    entries += [(action["time"], 5, action_text(action)) for action in incident["actions"]]
    return [(time, what) for time, _, what in sorted(entries, key=lambda e: (_moment(e[0]), e[1]))]


def _moment(time: str) -> tuple[str, str]:
    """RFC 3339 in UTC, comparable though fractions of a second have as many digits as they need."""
    whole, _, fraction = time.removesuffix("Z").partition(".")
    return whole, fraction


def ranges(numbers: list[int]) -> str:
    """`1-4, 7`: numbers in their order, runs in short."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)
