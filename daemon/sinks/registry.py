"""The sinks by the name of their type. It must import none of them before one is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from ..errors import ConfigError
from .contract import Sink

SINKS = {"jsonl": ("jsonl", "JsonlSink")}
"""Type -> module beside this one, class. The class is called with the sink's options as keywords."""


def make_sink(name: str, options: Mapping[str, Any] | Path) -> Sink:
    """A sink from its options (`type` and those of its class); a bare path is a JSON-lines file.

    Raises ConfigError naming the sink.
    """
    given = {"type": "jsonl", "path": options} if isinstance(options, Path) else dict(options)
    kind = given.pop("type", "jsonl")
    if kind not in SINKS:
        raise ConfigError(
            f"sinks.{name}.type: no sink is called {kind!r}", remedy=f"use one of {', '.join(SINKS)}"
        )
    module, class_name = SINKS[kind]
    made = getattr(importlib.import_module(f".{module}", __package__), class_name)
    try:
        return cast(Sink, made(**given))
    except TypeError as error:
        raise ConfigError(f"sinks.{name}: {error}", remedy="see docs/sinks.md for its options") from error
