"""The typer application, made of the command groups that the command line asks for.

To add a command group: write a module with `register(app: typer.Typer) -> None` and add its commands to
COMMANDS. A module is imported only when one of its commands is called or help is wanted, so that a small command
does not pay for a large one; what a module itself needs beyond typer, it imports where it is used.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Annotated

import typer

COMMANDS: dict[str, tuple[str, ...]] = {
    "run": ("run",),
    "parse": ("parse",),
    "status": ("status",),
    "incidents": ("incidents",),
    "blocks": ("blocks", "block", "unblock"),
    "restrict": ("restrict", "lift"),
    "approvals": ("approvals",),
    "actions": ("actions",),
    "signed": ("signed",),
    "explain": ("explain",),
    "playbook": ("playbook",),
    "config": ("config",),
    "audit": ("audit",),
    "authz": ("authz",),
    "doctor": ("doctor",),
    "hooks": ("hooks",),
}
"""Module of this package: the commands that its `register` adds."""

PASSED_ON = {"ignore_unknown_options": True, "allow_extra_args": True}
"""For the commands that are dispatched before typer is loaded; here they are for the list in the help."""


def run(arguments: list[str]) -> int:
    """Parse the arguments and call the command. Typer itself reports wrong usage, with exit code 2."""
    application = build(modules_for(arguments))
    try:
        application(arguments, prog_name="gatewatch", standalone_mode=True)
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    return 0


def modules_for(arguments: list[str]) -> list[str]:
    """The modules that these arguments need: one where the first names a command, else all."""
    if "_GATEWATCH_COMPLETE" not in os.environ:
        for module, commands in COMMANDS.items():
            if arguments and arguments[0] in commands:
                return [module]
        if arguments == ["--version"]:
            return []
    return list(COMMANDS)


def build(modules: list[str]) -> typer.Typer:
    """The application with the commands of these modules."""
    application = typer.Typer(
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    application.callback()(_root)
    for module in modules:
        import_module(f".{module}", __package__).register(application)
    for group in application.registered_groups:
        if group.typer_instance is not None:
            group.typer_instance.rich_markup_mode = None
    if len(modules) == len(COMMANDS):
        for name, command in (("kill-switch", _kill_switch), ("replay", _replay)):
            application.command(name, context_settings=PASSED_ON, add_help_option=False)(command)
    return application


def _version(wanted: bool) -> None:
    if wanted:
        from ... import __version__

        print(f"gatewatch {__version__}")
        raise typer.Exit()


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """Find break-ins at the gateways in front of AI models, and answer them.

    Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.
    """


def _kill_switch(context: typer.Context) -> None:
    """Drop every inbound connection to the model endpoints: engage, release, status."""
    from .kill_switch import main

    raise typer.Exit(main(context.args))


def _replay(context: typer.Context) -> None:
    """Find incidents in stored logs and captures; nothing is blocked and nothing is kept."""
    from .replay import main

    raise typer.Exit(main(context.args))
