"""`gatewatch status`: one screen about collectors, blocks, sinks and the kill switch."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .authz import health_of
from .options import ConfigOption, JsonOption, StateOption, load_config, socket_path, store_path
from .output import json_line, printable, seconds
from .restrict import reach

STATES = {
    "would": "would have been done",
    "would_ask": "would have been asked of a person",
    "waiting": "waited for a person or for the wire",
}
MOST_HITS = 20
MOST_ACTIONS = 1_000_000

if TYPE_CHECKING:
    from pathlib import Path

    from ...config.schema import Config


def register(app: typer.Typer) -> None:
    app.command()(status)


def status(
    config: ConfigOption = None,
    state: StateOption = None,
    since: Annotated[
        str,
        typer.Option(
            "--since", metavar="TIME", help="What was done, or would have been, in so long: 24h, 7d."
        ),
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Show what Gatewatch does at this moment; exit code 1 where a part of it does not answer.

    With `--since` it shows what a period came to: incidents, blocks that were or would have been made, and which
    clients and users that had lately succeeded they hit or would have hit.
    """
    settings = load_config(config, state)
    if since:
        _period(settings, since, as_json)
        return
    found = {**analyser(settings), **enforcer(socket_path(settings)), "authz": health_of(settings)}
    if as_json:
        print(json_line(found))
    else:
        for line in as_text(found):
            print(printable(line))
    enforces = found["health"] and found["health"]["mode"] == "enforce"
    if found["analyser"] != "running" or (enforces and found["enforcer"] != "running"):
        raise typer.Exit(1)


def _period(settings: Config, since: str, as_json: bool) -> None:
    from ..events import rfc3339
    from ..store import Store
    from .actions import since_ns, summary

    start_ns = since_ns(since)
    store = Store.open_readonly(store_path(settings))
    health = store.get("health") or {}
    found = {
        "since": rfc3339(start_ns),
        "mode": health.get("mode", settings.mode),
        "incidents": store.count_by_priority(start_ns),
        **summary(store.actions_since(start_ns, MOST_ACTIONS)),
    }
    if as_json:
        print(json_line(found))
        return
    for line in period_text(found, since):
        print(printable(line))


def period_text(found: dict[str, Any], since: str) -> list[str]:
    """A period for people."""
    counts = ", ".join(f"{n} {p}" for p, n in found["incidents"].items()) or "none"
    lines = [f"the last {since}, {found['mode']} mode", f"incidents  {counts}"]
    for name, states in found["actions"].items():
        said = ", ".join(f"{n} {STATES.get(s, s)}" for s, n in sorted(states.items()))
        lines.append(f"  {name:18} {said}, on {found['targets'][name]} different targets")
    if not found["actions"]:
        lines.append("  nothing was done, and nothing would have been")
    hits = found["hits"]
    lines.append(f"hit        {len(hits)} clients or users that had lately succeeded{':' if hits else ''}")
    for hit in hits[:MOST_HITS]:
        last = hit["actions"][-1]
        until = f" until {seconds(last['until'])}" if last.get("until") else ""
        lines.append(
            f"  {hit['name']}: {last['action']} {last['target']} at {seconds(last['time'])}{until}, "
            f"{STATES.get(last['state'], last['state'])} ({last['playbook']}, incident {last['incident']})"
        )
    if len(hits) > MOST_HITS:
        lines.append(f"  and {len(hits) - MOST_HITS} more; --json has all")
    return lines


def analyser(settings: Config) -> dict[str, Any]:
    """What the analyser says of itself; where it is dead, what it said last."""
    from ..control import ask
    from ..errors import GatewatchError
    from ..store import Store

    found: dict[str, Any] = {"analyser": "does not answer", "health": None, "incidents": {}}
    with contextlib.suppress(GatewatchError):
        found["health"] = ask(settings.state_folder() / "run" / "analyser.sock", {"do": "health"})
        found["analyser"] = "running"
    with contextlib.suppress(GatewatchError):
        store = Store.open_readonly(store_path(settings))
        found["health"] = found["health"] or store.get("health")
        found["incidents"] = store.open_by_priority()
    if found["health"]:
        found["health"].pop("ok", None)
    return found


def enforcer(path: Path) -> dict[str, Any]:
    """What the enforcer says of the kernel: blocks in force and the kill switch."""
    from ..enforcer.client import Enforcer
    from ..errors import GatewatchError

    if not path.exists():
        return {"enforcer": "not running; it needs root and a rails file", "response": None}
    try:
        return {"enforcer": "running", "response": Enforcer(path).status()}
    except GatewatchError as error:
        return {"enforcer": str(error), "response": None}


def as_text(found: dict[str, Any]) -> list[str]:
    """The same for people."""
    health = found["health"]
    lines = [f"analyser   {found['analyser']}"]
    if health:
        lines[0] += f", {health['mode']} mode, since {seconds(health['started'])}"
        if found["analyser"] != "running":
            lines[0] += f"; what follows it said at {seconds(health['time'])}"
        lines += _inputs(health)
        for sink, lag in health["sinks"].items():
            problem = health.get("problems", {}).get(sink)
            said = f"{lag:,} alerts to deliver" if lag else "all delivered"
            lines.append(f"  sink     {sink}: {said}{f'; {problem}' if problem else ''}")
    counts = ", ".join(f"{n} {p}" for p, n in found["incidents"].items()) or "none"
    lines.append(f"incidents  open: {counts}")
    return lines + _authorisation(found.get("authz")) + _response(found["enforcer"], found["response"])


def _authorisation(authz: dict[str, Any] | None) -> list[str]:
    if authz is None:
        return []
    if "deny_list" not in authz:
        return [f"authz      does not answer: {authz['problem']}"]
    refused = {why: n for why, n in authz["answered"].items() if not why.startswith("allowed")}
    said = ", ".join(f"{n:,} {why}" for why, n in sorted(refused.items())) or "none"
    lines = [f"authz      {authz['answered'].get('allowed', 0):,} requests passed; refused: {said}"]
    if not authz["deny_list"]["known"]:
        lines.append(f"  deny list  unknown: {authz['deny_list']['problem']}")
    return lines


def _inputs(health: dict[str, Any]) -> list[str]:
    lines = []
    for log in health["logs"]:
        said = log["problem"] or f"{log['lines']:,} lines, {log['unparsed']:,} not understood"
        last = f", the last at {seconds(log['last'])}" if log["last"] else ""
        lines.append(f"  log      {log['path']} ({log['format'] or 'format not seen yet'}): {said}{last}")
    counters = health["packets"]
    if counters is None:
        lines.append("  packets  off")
    else:
        dropped = counters.get("dropped_kernel", 0) + counters.get("dropped_ring", 0)
        lines.append(
            f"  packets  {health['packets_seen']:,} seen, {dropped:,} dropped, {health['flows']:,} flow records"
        )
    if health.get("trouble"):
        lines.append(f"  store    {health['trouble']}")
    if health.get("faults"):
        lines.append(
            f"  faults   {health['faults']:,} pieces of input were not judged; see the daemon's output"
        )
    return lines


def _of_users(response: dict[str, Any]) -> str:
    count = response.get("users", 0)
    return f" and {count:,} of users" if count else ""


def _response(enforcer: str, response: dict[str, Any] | None) -> list[str]:
    if response is None:
        return [f"enforcer   {enforcer}"]
    cut = ", ".join(str(kill["endpoint"]) for kill in response["kills"])
    lines = [
        f"enforcer   {enforcer}, {response['blocks']:,} blocks in force{_of_users(response)}",
        f"  kill switch  {f'ENGAGED for {cut}' if cut else 'released'}",
    ]
    restrictions = response.get("restrictions", ())
    lines += [f"  restricted  {r['endpoint']} to {reach(r)}" for r in restrictions]
    if response.get("waiting"):
        lines.append(f"  approvals  {response['waiting']} wait for a person; see `gatewatch approvals list`")
    if response.get("deny_list"):
        lines.append(f"  deny list  cannot be written: {response['deny_list']}")
    if response.get("break_glass"):
        lines.append("  kill switch  the break-glass rules are loaded; see `gatewatch kill-switch status`")
    if response.get("differs"):
        lines.append("  kill switch  the kernel differs from the journal; see `gatewatch kill-switch status`")
    if not response["journal"]["intact"]:
        lines.append(f"  journal  damaged: {response['journal']['note']}; run `gatewatch audit verify`")
    return lines
