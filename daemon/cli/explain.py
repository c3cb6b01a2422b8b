"""`gatewatch explain`: what Gatewatch knows of one address or user, and why it is or is not blocked."""

from __future__ import annotations

import ipaddress
import shlex
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import EnforcerError, RefusedError, StoreError
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
            help="An address, a network, or a user: KIND:NAME as `blocks list` shows it, or a plain name.",
        ),
    ],
    config: ConfigOption = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Say whether an address or a user is blocked, by what and until when, which rail or threshold keeps it free, and
    what it did.

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
    found: dict[str, Any] = {
        "subject": str(network) if network is not None and network.num_addresses > 1 else subject.strip(),
        "type": "user" if network is None else "address",
        "blocked": None,
        "would_refuse": None,
        "incidents": [],
        "actions": [],
        "standing": [],
        "unknown": [],
    }
    if network is not None:
        found["subject"] = address_text(network)
    _ask_enforcer(found, config)
    _read_store(found, network, config)
    if network is not None and not found["blocked"]:
        _ask_analyser(found, network, config)
    return found


def whom(subject: str) -> tuple[str, str]:
    """The kind and the name of a user. Raises UsageError for what nobody is called."""
    from ..enforcer.protocol import principal
    from ..errors import UsageError

    try:
        return principal(subject)
    except ValueError as error:
        raise UsageError(f"user {subject[:40]!r}: {error}") from None


def network_in(subject: str) -> IPNetwork | None:
    """The network that `subject` is, IPv4 where it is mapped into IPv6; None where it is a name."""
    try:
        network = ipaddress.ip_network(subject.strip(), strict=False)
    except ValueError:
        return None
    mapped = network.network_address.ipv4_mapped if isinstance(network, ipaddress.IPv6Network) else None
    return ipaddress.IPv4Network(mapped) if mapped is not None and network.prefixlen == 128 else network


def address_text(network: IPNetwork) -> str:
    return str(network.network_address) if network.num_addresses == 1 else str(network)


def _ask_enforcer(found: dict[str, Any], config: Config) -> None:
    from ..enforcer.client import Enforcer

    enforcer = Enforcer(socket_path(config))
    try:
        if found["type"] == "user":
            kind, name = whom(found["subject"])
            answer = enforcer.check_user(name, kind=kind)
        else:
            answer = enforcer.check(found["subject"])
        found["kill_switch"] = [kill["endpoint"] for kill in enforcer.status()["kills"]]
    except RefusedError as error:
        found["would_refuse"] = {"reason": error.message, "rail": error.rail}
        return
    except EnforcerError as error:
        found["unknown"].append(f"whether it is blocked: {error}")
        return
    finally:
        enforcer.close()
    now_ns = time.time_ns()
    found["blocked"] = [_entry(entry, now_ns) for entry in answer["blocked"]]
    if answer.get("would_refuse"):
        found["would_refuse"] = {"reason": answer["would_refuse"], "rail": answer.get("rail", "")}


def _entry(said: dict[str, Any], now_ns: int) -> dict[str, Any]:
    from ..events import rfc3339

    entry = dict(said)
    entry["since"] = rfc3339(entry.pop("since_ns") // 10**9 * 10**9)
    entry["until"] = rfc3339((now_ns // 10**9 + entry["ttl_s"]) * 10**9)
    return entry


def _read_store(found: dict[str, Any], network: IPNetwork | None, config: Config) -> None:
    from ..events import rfc3339
    from ..store import Store

    try:
        store = Store.open_readonly(store_path(config))
    except StoreError as error:
        found["unknown"].append(f"what it did: {error}")
        return
    try:
        for incident in store.incidents(limit=MOST_INCIDENTS):
            if concerns(incident, found["subject"], network):
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
        for target in targets(network) or principals(found["subject"]):
            for action in store.actions(target=target):
                action["time"] = rfc3339(action.pop("time_ns"))
                found["actions"].append(action)
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


def principals(subject: str) -> list[str]:
    """What an action may name that reaches a user: of a plain name those of each kind."""
    from ..enforcer.protocol import KINDS

    kind, name = whom(subject)
    return [f"{each}:{name}" for each in (KINDS if kind == "any" else (kind, "any"))]


def concerns(incident: dict[str, Any], subject: str, network: IPNetwork | None) -> bool:
    """Whether an incident is about a user of that name, or about an address in (or around) that network."""
    if network is None:
        named = set(principals(subject)) & set(incident.get("blockable_users") or ())
        return bool(named) or whom(subject)[1] in (incident.get("users") or ())
    for text in (*(incident.get("sources") or ()), *(incident.get("targets") or ())):
        other = network_in(str(text))
        if other is not None and other.version == network.version and other.overlaps(network):
            return True
    return False


def _accused(found: dict[str, Any]) -> bool:
    """Whether an incident holds something against the user."""
    named = set(principals(found["subject"]))
    return any(named & set(incident.get("blockable_users") or ()) for incident in found["incidents"])


def as_text(found: dict[str, Any]) -> list[str]:
    """The same for people."""
    subject = found["subject"]
    lines = []
    command = "user" if found["type"] == "user" else "ip"
    for entry in found["blocked"] or ():
        by = f"playbook {entry['playbook']}" if entry.get("playbook") else entry.get("by", "")
        incident = f", incident {entry['incident']}" if entry.get("incident") else ""
        target = entry["address"] if command == "ip" else f"{entry['kind']}:{entry['user']}"
        lines.append(f"{subject}: blocked until {entry['until']} by {target} ({by}{incident})")
        lines.append(f"  because: {entry['reason']}")
        lines.append(f"  to end it: gatewatch unblock {command} {shlex.quote(target)} --reason TEXT")
    if found["blocked"] == []:
        lines.append(f"{subject}: not blocked")
        if command == "user" and found["incidents"] and not _accused(found):
            lines.append("  what keeps it free: no incident accuses it; failures alone block no user")
    if found["standing"]:
        lines.append("  what keeps it free:")
        lines += [f"    {text}" for text in in_words(found["standing"])]
    if found["would_refuse"]:
        lines.append(f"  a block would be refused: {found['would_refuse']['reason']}")
    if found.get("kill_switch"):
        lines.append(
            f"  the kill switch is engaged for {', '.join(found['kill_switch'])}: nobody reaches them"
        )
    shown = found["incidents"][:MOST_SHOWN]
    many = len(found["incidents"])
    lines.append(f"{many:,} incident{'s' * (many > 1)}" if many else "no incident names it")
    lines += [f"  {i['id']}  {i['priority']}  {i['end']}  {i['status']}  {i['title']}" for i in shown]
    if len(found["incidents"]) > len(shown):
        lines.append(f"  and {len(found['incidents']) - len(shown)} more; --json shows all")
    lines += [
        f"  {seconds(a['time'])}  {a['action']} {a['target']}: {a['state']}, {a['why']} (incident {a['incident']})"
        for a in found["actions"][-MOST_SHOWN:]
    ]
    lines += [f"not known: {text}" for text in found["unknown"]]
    return lines
