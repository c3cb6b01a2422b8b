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
from gatewatch.playbooks.loader import load_playbooks
from gatewatch.playbooks.schema import Playbook
from gatewatch.playbooks.step import Step
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
    note = NOTE.format(source="descriptions in playbooks/, or the text in docs/templates/playbooks.md")
    page = (
        (DOCS / "templates" / "playbooks.md")
        .read_text()
        .replace("{note}", note)
        .replace("{shipped}", shipped_playbooks())
    )
    return f"{page}\n{sections}"


def shipped_playbooks() -> str:
    """A table of the playbooks that come with Gatewatch."""
    rows = ["| playbook | for | does |", "| --- | --- | --- |"]
    for playbook in load_playbooks():
        when = playbook.when
        limits = [f"priority {when.priority} or above"] if when.priority != "info" else []
        limits += [f"confidence {when.confidence:g} or above"] if when.confidence else []
        kinds = ", ".join(f"`{kind}`" for kind in when.kinds)
        does = "; ".join(map(_step, playbook.then))
        rows.append(
            f"| `{playbook.name}` | {'; '.join([kinds, *limits])} | {_cell(playbook.description)} Does: {does}. |"
        )
    return "\n".join(rows)


def _step(step: Step) -> str:
    """An action with what tells it from others of its name."""
    made = f"`{step.name}`"
    ttl, longest, approval = (getattr(step, name, None) for name in ("ttl", "longest", "approval"))
    if ttl:
        upto = f", growing to {values.duration_text(longest)}" if longest and longest > ttl else ""
        made += f" for {values.duration_text(ttl)}{upto}"
    if approval in ("one", "two"):
        made += f", if {'one person agrees' if approval == 'one' else 'two people agree'}"
    return made


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
