"""`gatewatch status`: one screen about collectors, blocks, sinks and the kill switch."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import typer

from .options import ConfigOption, JsonOption, StateOption, load_config, socket_path, store_path
from .output import json_line, printable

if TYPE_CHECKING:
    from pathlib import Path

    from ...config.schema import Config


def register(app: typer.Typer) -> None:
    app.command()(status)


def status(config: ConfigOption = None, state: StateOption = None, as_json: JsonOption = False) -> None:
    """Show what Gatewatch does at this moment; exit code 1 where a part of it does not answer."""
    settings = load_config(config, state)
    found = {**analyser(settings), **enforcer(socket_path(settings))}
    if as_json:
        print(json_line(found))
    else:
        for line in as_text(found):
            print(printable(line))
    if found["analyser"] != "running":
        raise typer.Exit(1)


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
        for incident in store.incidents(status="open", limit=100_000):
            found["incidents"][incident["priority"]] = found["incidents"].get(incident["priority"], 0) + 1
    if found["health"]:
        found["health"].pop("ok", None)
    return found


def enforcer(path: Path) -> dict[str, Any]:
    """What the enforcer says of the kernel: blocks in force and the kill switch."""
    from ..enforcer.client import Enforcer
    from ..errors import GatewatchError

    try:
        return {"enforcer": "running", "response": Enforcer(path).status()}
    except GatewatchError as error:
        return {"enforcer": str(error), "response": None}


def as_text(found: dict[str, Any]) -> list[str]:
    health, response = found["health"], found["response"]
    lines = [f"analyser   {found['analyser']}" + (f", {health['mode']} mode" if health else "")]
    if health:
        for log in health["logs"]:
            said = log["problem"] or f"{log['lines']:,} lines, {log['unparsed']:,} not understood"
            lines.append(f"  log      {log['path']} ({log['format'] or 'format not seen yet'}): {said}")
        if health["packets"] is None:
            lines.append("  packets  off")
        else:
            counters = health["packets"]
            dropped = counters.get("dropped_kernel", 0) + counters.get("dropped_ring", 0)
            lines.append(
                f"  packets  {health['packets_seen']:,} seen, {dropped:,} dropped, {health['flows']:,} flow records"
            )
        for sink, lag in health["sinks"].items():
            lines.append(f"  sink     {sink}: {lag:,} to deliver")
    counts = ", ".join(f"{n} {p}" for p, n in found["incidents"].items()) or "none"
    lines.append(f"incidents  open: {counts}")
    lines.append(f"enforcer   {found['enforcer']}")
    if response:
        shown = {k: v for k, v in response.items() if k not in ("ok", "endpoints")}
        lines += [f"  {k.replace('_', ' ')}: {v}" for k, v in shown.items()]
    return lines
