"""What a playbook names that stands elsewhere: endpoints and commands of the rails file, hooks of the configuration."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from ..config.document import Document, Key, closest
from .actions.block_source import BlockSource
from .actions.block_user import BlockUser
from .actions.exec import Exec
from .actions.kill_switch import KillSwitch
from .actions.notify import Notify
from .actions.restrict_endpoint import RestrictEndpoint
from .schema import Playbook

if TYPE_CHECKING:
    from ..daemon.enforcer.rails import Rails


def wrong_in_configuration(
    playbook: Playbook, document: Document, hooks: Collection[str], knows_systems: bool
) -> list[str]:
    """What the configuration has not, each with file, line and key. `knows_systems`: it names `detection.geo.asn`."""
    wrong = []
    for i, step in enumerate(playbook.then):
        named = step.hooks if isinstance(step, BlockUser | Notify) else []
        for j, hook in enumerate(named):
            if hook not in hooks:
                said = f"the configuration has no hook {hook!r}{_known(hook, hooks)}"
                wrong.append(document.error(("then", i, "hooks", j), said))
        if isinstance(step, BlockSource) and step.asn and not knows_systems:
            wrong.append(
                document.error(
                    ("then", i, "asn"), "needs a database: the configuration names no detection.geo.asn"
                )
            )
    return wrong


def wrong_in_rails(playbook: Playbook, document: Document, rails: Rails) -> list[str]:
    """What the rails file has not, or does not allow, each with file, line and key of the playbook."""
    commands = {command.name for command in rails.commands}
    wrong = []
    for key, command in _commands(playbook):
        if command not in commands:
            said = f"{rails.path} names no command {command!r}{_known(command, commands)}"
            wrong.append(document.error(key, said))
    for key, endpoint, use in _endpoints(playbook):
        found = rails.endpoint(endpoint)
        if found is None and (endpoint != "all" or use == "restrict"):
            names = {e.name for e in rails.endpoints}
            said = f"{rails.path} names no endpoint {endpoint!r}{_known(endpoint, names)}"
            wrong.append(document.error(key, said))
        elif found is not None and use == "restrict" and not found.allowed:
            said = (
                f"endpoint {endpoint!r} cannot be restricted: {rails.path} names no `allowed` networks of it"
            )
            wrong.append(document.error(key, said))
        elif found is not None and use == "kill" and not found.kill_switch:
            said = f"endpoint {endpoint!r} has no kill switch: {rails.path} says `kill_switch = false` of it"
            wrong.append(document.error(key, said))
    return wrong


def _commands(playbook: Playbook) -> Iterator[tuple[Key, str]]:
    for i, step in enumerate(playbook.then):
        if isinstance(step, Exec):
            yield ("then", i, "command"), step.command
        elif isinstance(step, Notify):
            for j, command in enumerate(step.commands):
                yield ("then", i, "commands", j), command


def _endpoints(playbook: Playbook) -> Iterator[tuple[Key, str, str]]:
    for i, endpoint in enumerate(playbook.when.endpoints):
        yield ("when", "endpoints", i), endpoint, "condition"
    for i, step in enumerate(playbook.then):
        if isinstance(step, KillSwitch):
            yield ("then", i, "endpoint"), step.endpoint, "kill"
        elif isinstance(step, RestrictEndpoint):
            yield ("then", i, "endpoint"), step.endpoint, "restrict"


def _known(name: str, known: Collection[str]) -> str:
    return closest(name, known) or "; it names none"
