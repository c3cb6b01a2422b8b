"""What may be asked of `gatewatch-exec`: one JSON object, every field checked here for type, length and characters.

The request says which command of the rails is to run and what happened; it never says what is executed. Nothing
of it reaches an argument list. `encoded` is for whoever asks: what an attacker wrote into a user name must not
keep a page from going out, so it makes text fit where `parse` would refuse it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

MOST_BYTES = 1 << 18
"""The longest message in either direction; with every character escaped, the longest input still fits."""
MOST_INPUT = 65_536  # bytes of UTF-8
MOST_VALUE = 1_024  # bytes of UTF-8 of one environment variable's value
MOST_ENVIRONMENT = 16_384  # bytes of all names and values
MOST_VARIABLES = 64
_VARIABLE = re.compile(r"GATEWATCH_[A-Z0-9_]{1,54}", re.ASCII)
_ESCAPE = re.compile(r"^~", re.MULTILINE)
"""Has some mail(1) run what follows, even where its input is no terminal (CVE-2021-32749)."""
_FIELDS = frozenset(("run", "undo", "id", "environment", "input"))


class MalformedError(ValueError):
    """The message is no request; the text says which field is wrong."""


class Request(NamedTuple):
    """`run`: the command's name in the rails. `id`: the action's, by which nothing is done twice."""

    run: str
    undo: bool
    id: str
    environment: dict[str, str]
    input: bytes


def parse(data: bytes) -> Request:
    """The request in `data`. Raises MalformedError."""
    try:
        message = json.loads(data, object_pairs_hook=_no_doubles)
    except MalformedError:
        raise
    except (ValueError, RecursionError):
        raise MalformedError("message is no JSON object") from None
    if type(message) is not dict:
        raise MalformedError("message is no JSON object")
    for field in message.keys() - _FIELDS:
        raise MalformedError(f"field {field[:40]!r} is unknown")
    undo = message.get("undo", 0)
    if undo is not False and undo is not True and (type(undo) is not int or undo not in (0, 1)):
        raise MalformedError("field undo: 0 or 1")
    return Request(
        _name(message, "run"),
        bool(undo),
        _name(message, "id"),
        _environment(message.get("environment", {})),
        _input(message.get("input", "")),
    )


def encoded(message: Mapping[str, Any]) -> bytes:
    """`message` for the line: environment and input are cut to their limits, and what cannot be printed becomes
    `?` (newlines and tabs of the input stay)."""
    fitting = dict(message)
    if isinstance(fitting.get("id"), int):
        fitting["id"] = str(fitting["id"])
    if isinstance(given := fitting.get("environment"), Mapping):
        fitting["environment"] = {str(k): _cut(plain(str(v)), MOST_VALUE) for k, v in given.items()}
    if isinstance(text := fitting.get("input"), str):
        fitting["input"] = _cut(plain(text, keep="\n\t"), MOST_INPUT)
    return json.dumps(fitting, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def plain(text: str, keep: str = "") -> str:
    """`text` with `?` for what cannot be printed, other than the characters in `keep`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else "?" for c in text)


def _cut(text: str, most: int) -> str:
    """At most `most` bytes of UTF-8, and no half character."""
    return text.encode("utf-8", "replace")[:most].decode("utf-8", "ignore")


def _name(message: dict[str, Any], field: str) -> str:
    value = message.get(field)
    if type(value) is not str or not 0 < len(value) <= 64 or not (value.isascii() and value.isprintable()):
        raise MalformedError(f"field {field}: 1 to 64 printable characters of ASCII")
    return value


def _environment(given: object) -> dict[str, str]:
    if type(given) is not dict or len(given) > MOST_VARIABLES:
        raise MalformedError(f"field environment: an object of at most {MOST_VARIABLES} variables")
    size = 0
    for name, value in given.items():
        if not _VARIABLE.fullmatch(name):
            raise MalformedError(
                f"field environment: {name[:40]!r} is no name such as GATEWATCH_INCIDENT, of at most 64 characters"
            )
        if type(value) is not str or not value.isprintable() or len(value.encode()) > MOST_VALUE:
            raise MalformedError(f"field environment: {name}: printable text of at most {MOST_VALUE} bytes")
        size += len(name) + len(value.encode())
    if size > MOST_ENVIRONMENT:
        raise MalformedError(f"field environment: more than {MOST_ENVIRONMENT} bytes")
    return given


def _input(given: object) -> bytes:
    if type(given) is not str:
        raise MalformedError("field input: text")
    data = _ESCAPE.sub("?", plain(given, keep="\n\t")).encode()
    if len(data) > MOST_INPUT:
        raise MalformedError(f"field input: more than {MOST_INPUT} bytes")
    return data


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise MalformedError("a field is given twice")
    return made
