"""Writes docs/configuration.md and docs/playbooks.md from the schemas, docs/command-line.md from the commands.

Run `python docs/generate_reference.py` after a change to either; a test holds the pages to what it makes. With
`--check` it writes nothing and exits with 1 where a page is out of date.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from gatewatch.config import values
from gatewatch.config.loader import DEFAULT_FILE
from gatewatch.config.schema import Config
from gatewatch.daemon.cli.app import COMMANDS, build
from gatewatch.daemon.cli.kill_switch import USAGE
from gatewatch.daemon.cli.replay import arguments as replay_arguments
from gatewatch.playbooks.schema import Playbook
from pydantic import BaseModel
from typer.main import get_command

DOCS = Path(__file__).parent
NOTE = "<!-- Made by docs/generate_reference.py: change the {source}, then run it. -->"

CONFIGURATION = f"""# Configuration

{NOTE.format(source="descriptions in config/schema.py")}

Gatewatch reads `{DEFAULT_FILE}`, or the file that `--config` names. `gatewatch config init` writes it with every
option, its default and a comment, `gatewatch config check` checks it together with the rails file and the playbooks,
and `gatewatch config show` shows what is in effect and which line says so. An option that is left out has its default;
a file that does not exist leaves them all.

An unknown key, a wrong type or a bad network is an error that names file, line and key, and nothing is started. YAML
aliases are refused. Relative paths are taken from the folder of the file. Networks are written as `203.0.113.0/24` or
as a single address.

Beside it lies the rails file (`rails.toml`), which only root writes: endpoints, management networks, and the limits
that no playbook can lift. It explains itself.
"""

PLAYBOOKS = f"""# Playbooks

{NOTE.format(source="descriptions in playbooks/schema.py")}

A playbook says which incidents get which actions, and with whose approval. Each is one YAML file. Four come with
Gatewatch: `login-burst` and `account-compromise` block sources, `off-allowlist` only tells, and `port-scan` blocks
where the address cannot be forged. Your own go into the folders under `playbooks.directories`; one that has the name
of a shipped playbook replaces it, and `enabled: false` in it switches the shipped one off.

```yaml
name: login-burst
when:
  kinds: [brute_force, password_spray]
  priority: medium
  confidence: 0.8
then:
  - action: block_source
    ttl: 1h
    grow: 2
    longest: 24h
cooldown: 5m
```

`gatewatch playbook check FILE` names each problem with file, line and key. `gatewatch playbook test FILE
INCIDENT.json` shows what a playbook would decide on an incident that `gatewatch replay --json` or `gatewatch
incidents show --json` printed, and why; nothing is done.

## What is decided, and what is done

Every decision has a state and says why:

| state | meaning |
| --- | --- |
| `act` | it is asked of the enforcer now |
| `would` | it would be asked for, but the mode is observe |
| `wait` | a person must approve, or the wire must prove what a text file says (see below) |
| `skip` | it is not done: not blockable, blocked already, cooling down, over the limit, or too late |

Any local user can write a line into a text log through syslog, and whoever reaches a log server by UDP can send one,
about any address. What rests on such a file alone waits, where packets are watched, until the packet collector has
seen that source make the connections that the lines need, since two minutes before the first of them:

- for failed logins of sshd, handshakes with its ports (`network.ssh_ports`): one for each six failures
  (`network.ssh_tries`, MaxAuthTries), less the logins that succeeded meanwhile, so that neither a session that stands
  nor one that logs in now and then speaks for lines in its name. For a login after failures one success is counted
  with them;
- for requests, one handshake with another port for each thousand; where one source tried both services, what each of
  them is said to have had.

Of more than three connections a quarter may have been missed, and never more than 24 are asked for, so that lost
packets delay a block and do not prevent it. Every finding that accuses must be met, unless root itself wrote what it
rests on. The journal, and a log that the configuration calls `trusted`, need no such proof. `gatewatch explain` says
what a block waits for. A source that opens connections to sshd time and again and never logs in (a monitor) can still
be taken for the guesser that somebody makes it out to be: name it under `never_block`, or follow the journal.

What no playbook can change:

- A source is blocked only where the detectors call it `blockable`: it is its own peer (no proxy stands before it) and
  nobody can have forged it.
- Nothing is done about an incident whose last event is older than `detection.max_action_age_s`.
- A kill switch in a playbook is a request that people must grant.
- The enforcer has the last word. Its rails (`rails.toml`) name who is never blocked, how many blocks there may be, how
  wide and how long; management networks are never blocked.
- Every block ends by itself. `gatewatch unblock ip ADDRESS` ends it at once.

Durations are written as `30s`, `10m`, `1h` or `7d`.

## The file
"""

COMMAND_LINE = f"""# Command line

{NOTE.format(source="commands in daemon/cli/")}

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration. An error is one line on standard error that says what is
wrong, where, and what to do. Every listing takes `--json`: one object a line, times in RFC 3339. Text that came from a
log or from the network is shown with its control characters escaped. `gatewatch COMMAND -h` explains a command, and
`gatewatch --install-completion` installs completion for your shell.
"""


def configuration_page() -> str:
    """The whole page about `gatewatch.yaml`."""
    sections = "\n".join(_section(Config, ""))
    return f"{CONFIGURATION}\n{sections}"


def _section(model: type[BaseModel], at: str) -> Iterator[str]:
    """A table of a model's options, then the sections of the models inside it."""
    if at:
        yield f"## {at}\n"
        yield f"{inspect.cleandoc(model.__doc__ or '')}\n"
    yield "| option | values | default | meaning |"
    yield "| --- | --- | --- | --- |"
    inner: list[tuple[str, type[BaseModel]]] = []
    for name, field in model.model_fields.items():
        here = f"{at}.{name}" if at else name
        models = list(_models(field.annotation))
        inner += [(f"{here}{_suffix(field.annotation)}{_variant(m)}", m) for m in models]
        if models:
            link = f"see [below](#{_anchor(inner[-len(models)][0])})"
        wanted = link if models else _values(field.annotation, field.metadata)
        whole = isinstance(field.default, BaseModel)
        default = "required" if field.is_required() else "" if whole else f"`{_default(field)}`"
        yield f"| `{name}` | {wanted} | {default} | {_cell(field.description or '')} |"
    yield ""
    for here, found in inner:
        yield from _section(found, here)


def _suffix(annotation: Any) -> str:
    text = str(annotation)
    return ".NAME" if text.startswith("dict[") else "[]" if "list[" in text else ""


def _variant(model: type[BaseModel]) -> str:
    """What tells a step of a playbook from the others, and a hook from those of other templates."""
    mark = model.model_fields.get("action") or model.model_fields.get("template")
    return f" {get_args(mark.annotation)[0]}" if mark is not None else ""


def _anchor(heading: str) -> str:
    """As Git hosting sites make it from the heading."""
    return "".join("-" if c == " " else c for c in heading.lower() if c.isalnum() or c in "_- ")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    else:
        for part in get_args(annotation):
            yield from _models(part)


def _default(field: Any) -> str:
    """As it would stand in a file."""
    value = field.default
    if any(id(mark) in _KNOWN and _KNOWN[id(mark)] == "duration" for mark in field.metadata):
        return values.duration_text(value)
    if isinstance(value, dict):
        value = {k: v.model_dump(mode="json") if isinstance(v, BaseModel) else v for k, v in value.items()}
    return (
        yaml.safe_dump(value, default_flow_style=True, width=1000, sort_keys=False)
        .removesuffix("\n...\n")
        .strip()
    )


_KNOWN = {
    id(get_args(alias)[1]): words
    for alias, words in (
        (values.RelativePath, "path"),
        (values.Network, "network"),
        (values.PortRange, "port or range"),
        (values.Name, "name"),
        (values.Timezone, "time zone"),
        (values.Duration, "duration"),
    )
}


def _values(annotation: Any, metadata: list[Any]) -> str:
    """What may stand there, in words."""
    for mark in metadata:
        if id(mark) in _KNOWN:
            return _KNOWN[id(mark)]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        known = next((_KNOWN[id(m)] for m in arguments[1:] if id(m) in _KNOWN), None)
        return known or _values(arguments[0], [])
    if origin is Literal:
        return ", ".join(f"`{a}`" for a in arguments)
    if origin is list:
        return f"list: {_values(arguments[0], [])}"
    if origin is dict:
        return f"by name: {_values(arguments[1], [])}"
    if arguments:
        return " or ".join("`null`" if a is type(None) else _values(a, metadata) for a in arguments)
    if annotation is bool:
        return "`true`, `false`"
    if annotation is int:
        return f"whole number{_range(metadata)}"
    if annotation is float:
        return "number"
    return "text" if annotation is str else str(getattr(annotation, "__name__", annotation))


def _range(metadata: list[Any]) -> str:
    least = next((m.ge for m in metadata if getattr(m, "ge", None) is not None), None)
    most = next((m.le for m in metadata if getattr(m, "le", None) is not None), None)
    return f", {least} to {most}" if least is not None and most is not None else ""


def playbooks_page() -> str:
    """The whole page about playbooks."""
    sections = "\n".join(_section(Playbook, ""))
    return f"{PLAYBOOKS}\n{sections}"


def command_line_page() -> str:
    """The whole page about the commands."""
    return COMMAND_LINE + "\n" + "\n".join(_commands(get_command(build(list(COMMANDS))), "gatewatch"))


def _commands(command: Any, name: str) -> Iterator[str]:
    inner = getattr(command, "commands", None)
    if inner is not None:
        for sub, found in sorted(inner.items()):
            if not found.hidden:
                yield from _commands(found, f"{name} {sub}")
        return
    yield f"## {name}\n"
    yield f"{inspect.cleandoc(command.help or '')}\n"
    if name == "gatewatch kill-switch":
        yield f"```\n{USAGE}\n```\n"
        return
    if name == "gatewatch replay":
        yield f"```\n{replay_arguments().format_help().strip()}\n```\n"
        return
    rows = [row for row in map(_parameter, command.params) if row]
    if rows:
        yield "| argument | meaning |"
        yield "| --- | --- |"
        yield from rows
        yield ""


def _parameter(parameter: Any) -> str:
    if getattr(parameter, "hidden", False):
        return ""
    option = parameter.param_type_name == "option"
    shown = parameter.metavar or (parameter.name or "").upper()
    if option:
        takes = "" if getattr(parameter, "is_flag", False) else f" {shown}"
        names = ", ".join(f"`{n}{takes}`" for n in [*parameter.opts, *parameter.secondary_opts])
    else:
        names = f"`{shown}`"
    default = parameter.default
    plain = isinstance(default, str | int | float | Path) and not isinstance(default, bool)
    told = f" Default: `{default}`." if plain and default != "" else ""
    variable = f" Environment: `{parameter.envvar}`." if parameter.envvar else ""
    return f"| {names} | {_cell(getattr(parameter, 'help', None) or '')}{told}{variable} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main(arguments: list[str]) -> int:
    pages = {
        "configuration.md": configuration_page(),
        "playbooks.md": playbooks_page(),
        "command-line.md": command_line_page(),
    }
    stale = [n for n, text in pages.items() if not (DOCS / n).exists() or (DOCS / n).read_text() != text]
    if arguments == ["--check"]:
        for name in stale:
            print(f"docs/{name} is out of date; run python docs/generate_reference.py", file=sys.stderr)
        return 1 if stale else 0
    for name in stale:
        (DOCS / name).write_text(pages[name])
        print(f"wrote docs/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
