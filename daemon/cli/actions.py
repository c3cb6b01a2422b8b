"""`gatewatch actions`: what was done or would have been done, to whom, until when, and taking one of them back."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from .options import ConfigOption, JsonOption, StateOption, load_config, store_path
from .output import emit, json_line, printable, say, seconds

MOST_SHOWN = 2000
"""A longer table takes minutes to lay out."""
COLUMNS = ("time", "id", "action", "target", "state", "until", "hits", "playbook", "why")
SinceOption = Annotated[str, typer.Option("--since", metavar="TIME", help="How far back: 1h, 7d.")]


STATES = {
    "pending": "is being done",
    "would": "would have been done",
    "waiting": "waits",
    "skipped": "not done",
    "lifted": "done, and ended before its time",
    "undone": "done, and taken back",
}
"""States of actions, in words where one word does not say it."""
LASTING = ("block_source", "block_user", "restrict_endpoint")
"""Actions that hold until their time is over or `actions undo` takes them back."""
MOST_HITS = 5


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
    if not emit(rows if as_json else map(_shown, rows), as_json, COLUMNS) and not as_json:
        print(f"no action in the last {since}")


def _shown(action: dict[str, Any]) -> dict[str, Any]:
    """With times in whole seconds."""
    return action | {name: seconds(action[name]) for name in ("time", "until") if action.get(name)}


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


def action_text(action: dict[str, Any]) -> str:
    """An action document (`documents.action_document`) in one line for people, without its time."""
    from ...config.values import duration_text

    at = " at the gateway alone" if action.get("where") == "gateway" else ""
    lasting = f" for {duration_text(action['ttl_s'])}" if action.get("ttl_s") else ""
    until = f" (until {seconds(action['until'])})" if action.get("until") else ""
    state = STATES.get(action["state"], action["state"])
    hits = list(action.get("hits", ()))
    more = f" and {len(hits) - MOST_HITS} more" if len(hits) > MOST_HITS else ""
    would = "hits" if action["state"] in ("done", "lifted", "undone") else "would hit"
    whom = f"; {would} {', '.join(hits[:MOST_HITS])}{more}, who lately succeeded" if hits else ""
    incident = f", incident {action['incident']}" if action.get("incident") else ""
    return (
        f"{action['action']} {action['target']}{at}{lasting}{until}: {state}, {action['why']}{whom} "
        f"(playbook {action['playbook']}{incident})"
    )


def over(action: dict[str, Any]) -> bool:
    """Whether the time of an action document is over."""
    now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    return bool(action.get("until")) and str(action["until"])[: len(now)] <= now


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
