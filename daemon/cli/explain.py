"""`gatewatch explain`: what Gatewatch knows of one address or user, why it is or is not blocked, and what waits."""

from __future__ import annotations

import ipaddress
import shlex
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import EnforcerError, RefusedError, StoreError
from .actions import action_text
from .options import ConfigOption, JsonOption, StateOption, load_config, socket_path, store_path
from .output import json_line, printable, seconds

if TYPE_CHECKING:
    from ...config.schema import Config
    from ...config.values import IPNetwork

MOST_INCIDENTS = 100_000
MOST_SHOWN = 10
JUDGED = {4: 32, 6: 64}
"""Prefix lengths of what detectors judge as one."""


def register(app: typer.Typer) -> None:
    app.command("explain")(explain)


def explain(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="ADDRESS|USER",
            help="An address, a network, or a user: a name, or KIND:NAME as `blocks list` shows it.",
        ),
    ],
    config: ConfigOption = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Say whether an address or a user is blocked, by what and until when, what waits for a person's approval, which
    rail or threshold keeps it free, and what it did.

    Exit code 1 where the enforcer, the analyser or the store could not be asked; what is known is shown all the
    same.
    """
    found = gathered(subject, load_config(config, state))
    if json:
        print(json_line(found))
    else:
        for line in as_text(found):
            print(printable(line))
    if found["unknown"]:
        raise typer.Exit(1)


def gathered(subject: str, config: Config) -> dict[str, Any]:
    """Everything that is known, as one JSON object. `unknown` says what could not be asked, and why."""
    network = network_in(subject)
    principals = [] if network is not None else principals_of(subject.strip())
    found: dict[str, Any] = {
        "subject": str(network) if network is not None and network.num_addresses > 1 else subject.strip(),
        "type": "user" if network is None else "address",
        "blocked": None,
        "would_refuse": None,
        "waiting": [],
        "incidents": [],
        "actions": [],
        "standing": [],
        "unknown": [],
    }
    if network is not None:
        found["subject"] = address_text(network)
    _ask_enforcer(found, network, principals, config)
    _read_store(found, network, principals, config)
    if network is not None and not found["blocked"]:
        _ask_analyser(found, network, config)
    return found


def network_in(subject: str) -> IPNetwork | None:
    """The network that `subject` is, IPv4 where it is mapped into IPv6; None where it is a name."""
    try:
        network = ipaddress.ip_network(subject.strip(), strict=False)
    except ValueError:
        return None
    mapped = network.network_address.ipv4_mapped if isinstance(network, ipaddress.IPv6Network) else None
    return ipaddress.IPv4Network(mapped) if mapped is not None and network.prefixlen == 128 else network


def principals_of(name: str) -> list[tuple[str, str]]:
    """The principals (kind, name) that a name may be: `KIND:NAME` that one or `any`, a plain name each.

    Raises UsageError for what is no name.
    """
    from ..enforcer.protocol import KINDS, principal
    from ..errors import UsageError

    try:
        kind, plain = principal(name)
    except ValueError as error:
        raise UsageError(f"{name[:40]!r}: {error}", remedy="give an address, a network or a user") from None
    return [(each, plain) for each in (KINDS if kind == "any" else (kind, "any"))]


def address_text(network: IPNetwork) -> str:
    return str(network.network_address) if network.num_addresses == 1 else str(network)


def _ask_enforcer(
    found: dict[str, Any], network: IPNetwork | None, principals: list[tuple[str, str]], config: Config
) -> None:
    """What is in force and what waits. Of an address: the kill switch and restrictions that keep it out, too."""
    from ..enforcer.client import Enforcer

    enforcer = Enforcer(socket_path(config))
    answers = []
    try:
        if network is None:
            kind, name = principals[0] if len(principals) == 2 else principals[-1]
            answers = [enforcer.check_user(name, kind=kind)]  # of `any` those of every kind
        else:
            answers = [enforcer.check(found["subject"])]
            status = enforcer.status()
            found["kill_switch"] = [kill["endpoint"] for kill in status["kills"]]
            restrictions = status.get("restrictions", ())
            found["restricted"] = [r["endpoint"] for r in restrictions if not _reaches(network, r)]
        waiting = [w for w in enforcer.approvals() if _waits_for(w, network, principals)]
    except RefusedError as error:
        found["would_refuse"] = {"reason": error.message, "rail": error.rail}
        return
    except EnforcerError as error:
        found["unknown"].append(f"whether it is blocked: {error}")
        return
    finally:
        enforcer.close()
    now_ns = time.time_ns()
    said = {_whom(entry): entry for answer in answers for entry in answer["blocked"]}
    found["blocked"] = [_entry(entry, now_ns) for entry in said.values()]
    found["waiting"] = [_waiting(request) for request in waiting]
    for answer in answers:
        if answer.get("would_refuse") and not found["would_refuse"]:
            found["would_refuse"] = {"reason": answer["would_refuse"], "rail": answer.get("rail", "")}


def _reaches(network: IPNetwork, restriction: dict[str, Any]) -> bool:
    """Whether a restriction lets an address pass; where not all networks are told, it is not said that it does not."""
    more = restriction["allowed_count"] > len(restriction["allowed"])
    allowed = [network_in(str(text)) for text in restriction["allowed"]]
    return more or any(
        a is not None and a.version == network.version and a.overlaps(network) for a in allowed
    )


def _waits_for(request: dict[str, Any], network: IPNetwork | None, principals: list[tuple[str, str]]) -> bool:
    if network is None:
        return "user" in request and (request.get("kind", "any"), request["user"]) in principals
    other = network_in(str(request.get("address", "")))
    return other is not None and other.version == network.version and other.overlaps(network)


def _waiting(request: dict[str, Any]) -> dict[str, Any]:
    from ..events import rfc3339
    from .approvals import if_granted

    made = {**request, "if_granted": if_granted(request)}
    return made | {"since": rfc3339(made.pop("since_ns") // 10**9 * 10**9)}


def _whom(entry: dict[str, Any]) -> str:
    """What a block is of, as `blocks list` shows it."""
    return f"{entry['kind']}:{entry['user']}" if "user" in entry else str(entry["address"])


def _entry(said: dict[str, Any], now_ns: int) -> dict[str, Any]:
    from ..events import rfc3339

    entry = dict(said)
    entry["since"] = rfc3339(entry.pop("since_ns") // 10**9 * 10**9)
    entry["until"] = rfc3339((now_ns // 10**9 + entry["ttl_s"]) * 10**9)
    return entry


def _read_store(
    found: dict[str, Any], network: IPNetwork | None, principals: list[tuple[str, str]], config: Config
) -> None:
    from ..documents import action_document
    from ..store import Store

    try:
        store = Store.open_readonly(store_path(config))
    except StoreError as error:
        found["unknown"].append(f"what it did: {error}")
        return
    try:
        for incident in store.incidents(limit=MOST_INCIDENTS):
            if concerns(incident, found["subject"], network, principals):
                names = (
                    "id",
                    "priority",
                    "kind",
                    "status",
                    "start",
                    "end",
                    "title",
                    "blockable",
                    "blockable_users",
                )
                found["incidents"].append({name: incident.get(name) for name in names})
        for target in [*targets(network), *(f"{kind}:{name}" for kind, name in principals)]:
            for action in store.actions(target=target):
                found["actions"].append(action_document(action))
        found["actions"].sort(key=lambda action: str(action["time"]))
    finally:
        store.close()


def _ask_analyser(found: dict[str, Any], network: IPNetwork, config: Config) -> None:
    """What keeps it free: figures against thresholds, and what stands between an incident and a block."""
    from ..control import ask
    from ..errors import GatewatchError

    if network.prefixlen < JUDGED[network.version]:
        text = "detectors judge each IPv4 address and each IPv6 /64 by itself: ask for one of them"
        found["standing"] = [
            {"detector": "", "text": text, "scale": "", "figure": None, "threshold": None, "unit": ""}
        ]
        return
    shown = [incident["id"] for incident in found["incidents"][:MOST_SHOWN]]
    request = {"do": "standing", "network": found["subject"], "incidents": shown}
    try:
        found["standing"] = ask(config.state_folder() / "run" / "analyser.sock", request)["standing"]
    except GatewatchError as error:
        found["unknown"].append(f"which threshold keeps it free: {error}")


def nearest(standing: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each detector's figures in one unit at several scales the one that is nearest to its threshold."""
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for number, item in enumerate(standing):
        counted = item["figure"] is not None and item["threshold"]
        key = item["detector"], item["unit"] if counted else str(number)
        if (
            key not in best
            or item["figure"] / item["threshold"] > best[key]["figure"] / best[key]["threshold"]
        ):
            best[key] = item
    return list(best.values())


def in_words(standing: list[dict[str, Any]]) -> list[str]:
    """A line for each that says something of this address; those with nothing against it share one."""
    near = nearest(standing)
    quiet = [item for item in near if item["threshold"] and not item["figure"]]
    lines = [
        f"{item['detector']}: {item['text']}" if item["detector"] else item["text"]
        for item in near
        if item not in quiet
    ]
    if quiet:
        names = dict.fromkeys(item["detector"] for item in quiet)
        lines.append(f"{', '.join(names)}: nothing counts against it")
    return lines


def targets(network: IPNetwork | None) -> list[str]:
    """What an action may name that reaches an address: itself, and the networks around it that can be blocked."""
    from ..enforcer.rails import PREFIXES

    if network is None:
        return []
    lengths = [n for n in PREFIXES[network.version] if n <= network.prefixlen]
    return [address_text(network.supernet(new_prefix=length)) for length in lengths]


def concerns(
    incident: dict[str, Any],
    subject: str,
    network: IPNetwork | None,
    principals: Iterable[tuple[str, str]] = (),
) -> bool:
    """Whether an incident is about a user of that name, or about an address in (or around) that network."""
    if network is None:
        names = {subject, *(name for _, name in principals)}
        accused = {f"{kind}:{name}" for kind, name in principals}
        named = not names.isdisjoint(incident.get("users") or ())
        return named or not accused.isdisjoint(incident.get("blockable_users") or ())
    for text in (*(incident.get("sources") or ()), *(incident.get("targets") or ())):
        other = network_in(str(text))
        if other is not None and other.version == network.version and other.overlaps(network):
            return True
    return False


def _accused(found: dict[str, Any]) -> bool:
    """Whether an incident holds something against the user."""
    named = {f"{kind}:{name}" for kind, name in principals_of(found["subject"])}
    return any(named & set(incident.get("blockable_users") or ()) for incident in found["incidents"])


def as_text(found: dict[str, Any]) -> list[str]:
    """The same for people."""
    subject = found["subject"]
    lines = []
    for entry in found["blocked"] or ():
        lines += _blocked_text(subject, entry)
    if found["blocked"] == []:
        lines.append(f"{subject}: not blocked")
        if found["type"] == "user" and found["incidents"] and not _accused(found):
            lines.append("  what keeps it free: no incident accuses it; failures alone block no user")
    for request in found["waiting"]:
        lines += _waiting_text(request)
    if found["standing"]:
        lines.append("  what keeps it free:")
        lines += [f"    {text}" for text in in_words(found["standing"])]
    if found["would_refuse"]:
        lines.append(f"  a block would be refused: {found['would_refuse']['reason']}")
    if found.get("kill_switch"):
        lines.append(
            f"  the kill switch is engaged for {', '.join(found['kill_switch'])}: nobody reaches them"
        )
    if found.get("restricted"):
        lines.append(f"  restricted to networks that it is none of: {', '.join(found['restricted'])}")
    shown = found["incidents"][:MOST_SHOWN]
    many = len(found["incidents"])
    lines.append(f"{many:,} incident{'s' * (many > 1)}" if many else "no incident names it")
    lines += [f"  {i['id']}  {i['priority']}  {i['end']}  {i['status']}  {i['title']}" for i in shown]
    if len(found["incidents"]) > len(shown):
        lines.append(f"  and {len(found['incidents']) - len(shown)} more; --json shows all")
    lines += [f"  {seconds(a['time'])}  {action_text(a)}" for a in found["actions"][-MOST_SHOWN:]]
    lines += [f"not known: {text}" for text in found["unknown"]]
    return lines


def _blocked_text(subject: str, entry: dict[str, Any]) -> list[str]:
    from .blocks import COMPRISES

    whom, kind = _whom(entry), "user" if "user" in entry else "ip"
    by = f"playbook {entry['playbook']}" if entry.get("playbook") else entry.get("by", "")
    incident = f", incident {entry['incident']}" if entry.get("incident") else ""
    at_gateway = entry.get("where") == "gateway"
    what = "refused at the gateway alone, not dropped by the kernel," if at_gateway else "blocked"
    lines = [f"{subject}: {what} until {entry['until']} by {whom} ({by}{incident})"]
    lines.append(f"  because: {entry['reason']}")
    lines.append(f"  to end it: gatewatch unblock {kind} {shlex.quote(whom)} --reason TEXT")
    if kind == "user":
        lines.append(f"  refused are {COMPRISES[entry['kind']][1]}")
    return lines


def _waiting_text(request: dict[str, Any]) -> list[str]:
    name, more = request["id"], request["needs"] - len(request["granted"])
    people = "1 person" if more == 1 else f"{more} different people"
    return [
        f"  waits for approval as {name}: {request['if_granted']}; it expires in {request['expires_s']} s",
        *([f"    {request['hits']}"] if request.get("hits") else ()),
        f"    because: {request.get('reason', '')}",
        f"    needs {people}: gatewatch approvals grant {name} (or deny {name})",
    ]
