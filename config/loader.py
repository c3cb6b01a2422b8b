"""Reads `gatewatch.yaml`: what is wrong is said with file, line and key, and nothing starts on half a file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ..daemon.errors import ConfigError
from . import FOLDER
from .document import Document, Key, read_document, validated
from .schema import Config

DEFAULT_FILE = Path(FOLDER) / "gatewatch.yaml"


@dataclass(frozen=True)
class Loaded:
    """A configuration with the file that it came from; `document` is None where defaults stand alone."""

    config: Config
    document: Document | None

    def origin(self, key: Key) -> str:
        """ "default", or file and line of the key that sets the value."""
        if self.document is None or key not in self.document.lines:
            return "default"
        return f"{self.document.name}:{self.document.lines[key]}"

    def where(self, *key: str | int) -> str:
        """File and line of a key, or of the one that encloses it, for an error that the schema cannot see."""
        return f"{self.document.name}:{self.document.line(key)}" if self.document is not None else "defaults"


def load(path: Path | str | None = None) -> Config:
    """The configuration in `path`, or in the default file, or the defaults where that does not exist.

    Raises ConfigError with every problem, one a line.
    """
    return load_with_origin(path).config


def defaults() -> Config:
    """The configuration where no file says anything; the rails file is the one in /etc/gatewatch."""
    return Config.model_validate({}, context={"base": DEFAULT_FILE.parent})


def load_with_origin(path: Path | str | None = None) -> Loaded:
    """As `load`, with the line of each value."""
    if path is None:
        if not DEFAULT_FILE.exists():
            return Loaded(defaults(), None)
        path = DEFAULT_FILE
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder", remedy=f"name the file: {path / 'gatewatch.yaml'}")
    document = read_document(path)
    config = validated(Config, document, base=path.absolute().parent)
    return Loaded(config, document)


def effective(config: BaseModel) -> Iterator[tuple[Key, Any]]:
    """Every option with its value as it would stand in a file, in the order of the schema."""
    yield from _leaves((), config.model_dump(mode="json"))


def _leaves(at: Key, value: Any) -> Iterator[tuple[Key, Any]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _leaves((*at, name), inner)
    elif isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
        for i, inner in enumerate(value):
            yield from _leaves((*at, i), inner)
    else:
        yield at, value
