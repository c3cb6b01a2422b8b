"""`gatewatch playbook`: check playbook files, and try one on an incident."""

from __future__ import annotations

import json as json_format
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError, InputError, UsageError
from .options import ConfigOption, JsonOption, StateOption, load_config

if TYPE_CHECKING:
    from ...config.schema import Config
    from ...playbooks.breaker import Breaker
    from ...playbooks.schema import Playbook

MOST_BYTES = 16 << 20
MOST_ALIKE = 4
"""How many targets for which the same is decided are named."""


def register(app: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True)
    group.command("check")(check)
    group.command("test")(test)
    app.add_typer(group, name="playbook", help="Check playbooks, and try one on an incident.")


def check(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE]...", help="Playbooks; default: those in use.")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Check playbooks: each problem with its file, line and key; exit code 2 where there is any."""
    from ...playbooks.loader import load_playbook, load_playbooks, playbook_files

    if not files:
        options = load_config(config).playbooks
        load_playbooks(options.directories, shipped=options.shipped)
        files = playbook_files(options.directories, shipped=options.shipped)
    wrong: list[str] = []
    for file in files:
        try:
            playbook = load_playbook(file)
        except ConfigError as error:
            wrong.append(str(error))
        else:
            actions = ", ".join(step.action for step in playbook.then)
            print(f"{file}: ok, {playbook.name}: {actions}{'' if playbook.enabled else ' (not enabled)'}")
    if wrong:
        raise ConfigError("\n".join(wrong))


def test(
    playbook: Annotated[
        Path, typer.Argument(metavar="PLAYBOOK", help="The playbook file, or the name of one in use.")
    ],
    incident: Annotated[
        str,
        typer.Argument(
            metavar="INCIDENT",
            help="The id of a stored incident, or a file: incidents as `replay --json` prints them (- = input), a "
            "log or a capture, which is replayed.",
        ),
    ],
    mode: Annotated[
        str, typer.Option(metavar="MODE", help="observe or enforce: as which it is tried.")
    ] = "enforce",
    earlier: Annotated[
        int, typer.Option(metavar="N", min=0, help="As if each target had been blocked so often before.")
    ] = 0,
    age: Annotated[
        str, typer.Option(metavar="TIME", help="As if the incident's last event were so long ago: 30s, 1h.")
    ] = "0s",
    good: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHO",
            help="As if this client (an address) or user had succeeded the day before, for the circuit breaker; may "
            "be given again.",
        ),
    ] = None,
    uncorroborated: Annotated[
        bool,
        typer.Option(
            "--uncorroborated", help="As if packets were watched and no source had been seen there."
        ),
    ] = False,
    format: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="The format of a log; default: seen from its lines.")
    ] = None,
    config: ConfigOption = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Show what a playbook would decide on an incident, and why; nothing is done.

    Where there are several incidents, each is tried by itself, a moment after its last event. docs/playbooks.md
    explains the states and the fields of `--json`.
    """
    from dataclasses import asdict, replace

    from ...config.values import parse_duration
    from ...playbooks.decisions import DecisionContext, time_ns
    from ...playbooks.engine import Engine
    from ..events import NS_PER_S
    from .output import json_line, printable, say

    if mode not in ("observe", "enforce"):
        raise typer.BadParameter("observe or enforce", param_hint="--mode")
    try:
        age_ns = parse_duration(age) * NS_PER_S
    except ValueError as error:
        raise UsageError(f"--age {age}: {error}") from None
    settings = load_config(config, state)
    loaded = playbook_of(playbook, settings)
    if not loaded.enabled:
        say(f"{loaded.name} is not enabled; it is tried as if it were")
        loaded = loaded.model_copy(update={"enabled": True})
    engine = Engine([loaded])
    context = DecisionContext(
        0,
        "observe" if mode == "observe" else "enforce",
        max_action_age_s=settings.detection.max_action_age_s,
        earlier_blocks=lambda target: earlier,
        corroborated=lambda source, accused: not uncorroborated,
        asn_networks=systems_of(loaded, settings),
    )
    for found in incidents_of(incident, config, state, format):
        now_ns = (time_ns(str(found.get("end"))) or 0) + age_ns
        # What one incident adds to the circuit breaker is no business of the next one.
        tried = replace(context, now_ns=now_ns, breaker=breaker_of(good or (), settings))
        decisions = [{"incident": found.get("id"), **asdict(d)} for d in engine.decide(found, tried)]
        if not decisions:
            why = why_nothing(loaded, found)
            decisions = [{"incident": found.get("id"), "playbook": loaded.name, "state": "none", "why": why}]
        lines = map(json_line, decisions) if json else map(printable, decided_text(found, decisions))
        print("\n".join(lines))


def playbook_of(path: Path, settings: Config) -> Playbook:
    """The playbook in a file, or the one in use of that name. Raises ConfigError."""
    from ...playbooks.loader import load_playbook, load_playbooks

    options = settings.playbooks
    if path.exists() or path.name != str(path) or path.suffix in (".yaml", ".yml"):
        return load_playbook(path)
    known = {p.name: p for p in load_playbooks(options.directories, shipped=options.shipped)}
    if path.name not in known:
        raise ConfigError(
            f"{path}: no such file, and no playbook in use has that name", remedy=f"known: {', '.join(known)}"
        )
    return known[path.name]


def breaker_of(good: Iterable[str], settings: Config) -> Breaker:
    """The circuit breaker as it would be, had these clients and users succeeded."""
    from ipaddress import ip_address

    from ...playbooks.breaker import Breaker

    clients, users = {}, {}
    for name in good:
        try:
            clients[str(ip_address(name))] = 0
        except ValueError:
            users[name] = 0
    options = settings.response.breaker
    return Breaker(clients, users, share=options.share, spared=options.spared)


def systems_of(playbook: Playbook, settings: Config) -> Callable[[str], list[str] | None]:
    """What says which networks are of the same autonomous system, where the playbook asks. Raises ConfigError."""
    if not playbook.uses_systems():
        return lambda source: None
    from ...playbooks.actions.block_source import MOST_NETWORKS_OF_AS
    from ..assembly import build_geography

    places = build_geography(settings, index_systems=True)
    return lambda source: None if places is None else places.networks_around(source, MOST_NETWORKS_OF_AS)


def why_nothing(playbook: Playbook, incident: Mapping[str, Any]) -> str:
    """Why nothing is decided on an incident, not even to skip something."""
    from ...playbooks.engine import mismatch

    if incident.get("status") == "closed":
        return "the incident is closed"
    repeats = playbook.when.repeats
    return mismatch(playbook, incident) or (
        f"nobody of it was blocked {repeats} times before: see --earlier" if repeats else "it names nobody"
    )


STATES = {
    "act": "done at once",
    "would": "would be done",
    "wait": "waits",
    "skip": "not done",
    "none": "nothing",
}


def decided_text(incident: Mapping[str, Any], decisions: list[dict[str, Any]]) -> list[str]:
    """An incident and what is decided, for people: what is done to whom, and why; alike ones together."""
    from ...config.values import duration_text

    title = incident.get("title") or incident.get("kind") or "an incident"
    priority, kind, confidence = map(incident.get, ("priority", "kind", "confidence"))
    lines = [f"{incident.get('id')}  {priority} {kind}, confidence {confidence}: {title}"]
    alike: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for made in decisions:
        key = tuple(map(made.get, ("state", "action", "ttl_s", "approval", "why", "hits")))
        alike.setdefault((*key, str(made.get("detail"))), []).append(made)
    for group in alike.values():
        first = group[0]
        if "action" not in first:
            lines.append(f"  {STATES['none']:13}{first['why']}")
            continue
        targets = ", ".join(str(made["target"]) for made in group[:MOST_ALIKE])
        more = f" and {len(group) - MOST_ALIKE} more" if len(group) > MOST_ALIKE else ""
        lasting = f" for {duration_text(first['ttl_s'])}" if first["ttl_s"] else ""
        lines.append(f"  {STATES[first['state']]:13}{first['action']} {targets}{more}{lasting}")
        why = "" if first["why"] == lasting.strip() else first["why"]
        said = {"why": why, "hits": ", ".join(first["hits"]), **first["detail"]}
        if first["approval"] != "none" and first["state"] != "skip":
            said["asks"] = "two different people" if first["approval"] == "two" else "a person"
        lines += [f"  {'':13}  {name}: {_said(value)}" for name, value in said.items() if value]
    return lines


def _said(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, Mapping) else str(value)


def incidents_of(
    name: str, config: Path | None, state: Path | None, format: str | None = None
) -> list[dict[str, Any]]:
    """The incidents that `name` stands for: those of a file, of a log that is replayed, or one of the store.

    Raises InputError, StoreError.
    """
    if name == "-":
        return read_incidents(name)
    path = Path(name)
    if not path.exists() and name.isalnum():
        from ..store import Store
        from .options import store_path

        found = Store.open_readonly(store_path(load_config(config, state))).incidents(incident=name, limit=2)
        if len(found) != 1:
            many = "several incidents begin" if found else "no incident begins"
            raise InputError(f"{many} with {name}", remedy="`gatewatch incidents list` shows their ids")
        return found
    if format is None and _holds_incidents(path):
        return read_incidents(name)
    from ..replay import Replay
    from .output import say
    from .replay import config_or_none

    run = Replay(config_or_none(config), format=format)
    run.read(name)
    incidents = run.incidents()
    read = run.summary
    for problem in read.problems:
        say(problem)
    if not incidents and read.lines == read.unparsed and not read.packets:
        what = "no line is understood" if read.lines else "it is empty"
        raise InputError(f"{name}: {what}", remedy=f"see `gatewatch parse {name}`")
    if not incidents:
        count = f"{read.packets:,} packets" if read.packets else f"{read.lines:,} lines"
        say(f"{name}: no incident is found in its {count}: there is nothing to decide")
    return incidents


def _holds_incidents(path: Path) -> bool:
    """Whether a file begins as a list of incidents does. Raises InputError where it cannot be read."""
    try:
        with path.open("rb") as file:
            first = file.read(MOST_BYTES).lstrip().partition(b"\n")[0]
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}", remedy="give a file, or the id of a stored incident"
        ) from None
    if path.suffix == ".json" or first.strip() == b"{":
        return True
    try:
        found = json_format.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and ("kind" in found or "findings" in found)


def read_incidents(name: str) -> list[dict[str, Any]]:
    """The incidents of a file: one JSON object, or one on each line. Raises InputError."""
    import sys

    try:
        if name == "-":
            text = sys.stdin.buffer.read(MOST_BYTES + 1)
        else:
            with open(name, "rb") as file:
                text = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"{name}: {error.strerror}") from None
    if len(text) > MOST_BYTES:
        raise InputError(f"{name}: larger than {MOST_BYTES >> 20} MiB", remedy="give one incident")
    try:
        whole = json_format.loads(text)
        return [_object(whole, name, 1)]
    except (ValueError, RecursionError):
        pass
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                found.append(_object(json_format.loads(line), name, number))
            except (ValueError, RecursionError) as error:
                raise InputError(
                    f"{name}:{number}: no JSON object ({error})",
                    remedy="`gatewatch replay --json` prints incidents",
                ) from None
    if not found:
        raise InputError(f"{name}: holds no incident", remedy="`gatewatch replay --json` prints incidents")
    return found


def _object(value: Any, name: str, line: int) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{name}:{line}: an incident is a JSON object, not {type(value).__name__}")
    return value
