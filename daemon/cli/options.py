"""Options that several commands share, and the configuration that they lead to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ...config.schema import Config

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        envvar="GATEWATCH_CONFIG",
        help="The configuration; default /etc/gatewatch/gatewatch.yaml where it exists.",
    ),
]
StateOption = Annotated[
    Path | None,
    typer.Option(
        "--state",
        metavar="FOLDER",
        envvar="GATEWATCH_STATE",
        help="The state folder; default: what the configuration says.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]


def load_config(path: Path | None, state: Path | None = None) -> Config:
    """The configuration in `path` (or the default one), with its state folder replaced where `state` is given.

    Raises ConfigError.
    """
    from ...config.loader import load

    return _in(load(path), state)


def load_defaults(state: Path | None = None) -> Config:
    """The configuration where the file says nothing."""
    from ...config.loader import defaults

    return _in(defaults(), state)


def _in(config: Config, state: Path | None) -> Config:
    return config if state is None else config.model_copy(update={"state": str(state.absolute())})


def store_path(config: Config) -> Path:
    """The analyser's database in the state folder."""
    return config.state_folder() / "analyser" / "gatewatch.db"


def socket_path(config: Config) -> Path:
    """The enforcer's socket in the state folder."""
    return config.state_folder() / "run" / "enforcer.sock"
