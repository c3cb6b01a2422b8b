"""The sinks by the name of their type. It must import none of them before one is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..errors import ConfigError
from .contract import Sink

if TYPE_CHECKING:
    from .hook import Hook

SINKS = {"jsonl": ("jsonl", "JsonlSink"), "webhook": ("webhook", "Webhook")}
"""Type -> module beside this one, class. The class is called with the sink's options as keywords."""

TEMPLATES = {
    "generic": ("webhook", "Webhook"),
    "keycloak": ("keycloak", "Keycloak"),
    "scim": ("scim", "Scim"),
}
"""The same for the templates of webhooks."""


def make_sink(name: str, options: Mapping[str, Any] | Path) -> Sink:
    """A sink from its options (`type` and those of its class); a bare path is a JSON-lines file.

    Raises ConfigError naming the sink.
    """
    given = {"type": "jsonl", "path": options} if isinstance(options, Path) else dict(options)
    kind = given.pop("type", "jsonl")
    at = f"{'hooks' if kind == 'webhook' else 'sinks'}.{name}"
    if kind not in SINKS:
        raise ConfigError(f"{at}.type: no sink is called {kind!r}", remedy=f"use one of {', '.join(SINKS)}")
    found = SINKS[kind]
    if kind == "webhook":
        template = given.pop("template", "generic")
        if template not in TEMPLATES:
            raise ConfigError(
                f"{at}.template: no template is called {template!r}",
                remedy=f"use one of {', '.join(TEMPLATES)}",
            )
        found = TEMPLATES[template]
    module, class_name = found
    made = getattr(importlib.import_module(f".{module}", __package__), class_name)
    try:
        return cast(Sink, made(**given))
    except ConfigError as error:
        raise ConfigError(f"{at}: {error.message}", remedy=error.remedy) from None
    except (TypeError, KeyError) as error:
        raise ConfigError(
            f"{at}: {error}", remedy="see docs/sinks.md and docs/hooks.md for its options"
        ) from error


def make_hook(name: str, options: Mapping[str, Any]) -> Hook:
    """As `make_sink`, for the options of a hook, which can also be asked for a test."""
    return cast("Hook", make_sink(name, {**options, "type": "webhook"}))
