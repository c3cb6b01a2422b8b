"""`gatewatch actions`: what was done or would have been done, to whom, until when, and taking one of them back."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from .options import ConfigOption, JsonOption, StateOption, load_config, store_path
from .output import emit, json_line, printable, say

MOST_SHOWN = 2000
"""A longer table takes minutes to lay out."""
COLUMNS = ("time", "id", "action", "target", "state", "until", "hits", "playbook", "why")
SinceOption = Annotated[str, typer.Option("--since", metavar="TIME", help="How far back: 1h, 7d.")]


def register(app: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True, help="What was done, or would have been done, and undoing it.")
    group.command("list")(list_)
    group.command("undo")(undo)
    app.add_typer(group, name="actions")


def list_(
    since: SinceOption = "24h",
    state: StateOption = None,
    config: ConfigOption = None,
    skipped: Annotated[bool, typer.Option("--skipped", help="Also what was not done, and why.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List actions, the oldest first; `hits` are clients or users that had lately succeeded."""
    from ..documents import action_document
    from ..store import Store

    store = Store.open_readonly(store_path(load_config(config, state)))
    found = store.actions_since(since_ns(since))
    rows = [action_document(a) for a in found if skipped or a["state"] != "skipped"]
    if len(rows) > MOST_SHOWN and not as_json:
        say(f"only the last {MOST_SHOWN:,} of {len(rows):,} are shown; --json shows all")
        rows = rows[-MOST_SHOWN:]
    if not emit(rows, as_json, COLUMNS) and not as_json:
        print(f"no action in the last {since}")


def undo(
    action: Annotated[str, typer.Argument(metavar="ID", help="As `actions list` shows it.")],
    state: StateOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take back what a playbook did: end a block, enable a user again, drop evidence."""
    from ..control import ask

    settings = load_config(config, state)
    answer = ask(settings.state_folder() / "run" / "analyser.sock", {"do": "undo", "action": action})
    print(json_line({"action": action, "said": answer["said"]}) if as_json else printable(answer["said"]))


def since_ns(text: str) -> int:
    """The time so long ago, in nanoseconds since 1970. Raises UsageError."""
    from ...config.values import parse_duration
    from ..errors import UsageError

    try:
        return max(0, time.time_ns() - parse_duration(text) * 10**9)
    except ValueError as error:
        raise UsageError(f"--since {text}: {error}") from error


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """What a period of actions comes to: counts by action and state, and each client or user that was hit."""
    counts: dict[str, dict[str, int]] = {}
    targets: dict[str, set[str]] = {}
    hits: dict[str, list[dict[str, Any]]] = {}
    for action in found:
        if action["state"] == "skipped":
            continue
        by_state = counts.setdefault(action["action"], {})
        asks = action["state"] == "would" and action["detail"].get("needs")
        state = "would_ask" if asks else action["state"]
        by_state[state] = by_state.get(state, 0) + 1
        targets.setdefault(action["action"], set()).add(action["target"])
        for name in action["detail"].get("hits", ()):
            hits.setdefault(name, []).append(action)
    return {
        "actions": counts,
        "targets": {name: len(different) for name, different in targets.items()},
        "hits": [_hit(name, actions) for name, actions in sorted(hits.items())],
    }


def _hit(name: str, actions: list[dict[str, Any]]) -> dict[str, Any]:
    from ..documents import action_document

    said = [action_document(a) for a in actions]
    kept = ("id", "time", "action", "target", "state", "until", "playbook", "incident")
    return {"name": name, "actions": [{k: a[k] for k in kept if k in a} for a in said]}
