"""What may be said to the enforcer: one flat JSON object a message, on a Unix socket that keeps messages whole.

Every field of a request is checked for type and length here, before anything else looks at it; an unknown
field, a wrong type or a control character refuses the message. This module must stay free of imports that
cost time (`json` alone takes longer than the kill switch may): the command encodes without it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

MOST_BYTES = 65_536
"""The longest message in either direction."""

PAGE = 150
"""How many blocks one answer lists at most; the next page is asked for by the number that the answer gives."""

SOCKET = "run/enforcer.sock"
"""Where the enforcer listens, inside the state folder."""

MOST_IMPORTED = 300
"""How many blocks one `import` may name."""

KINDS = ("account", "key", "subject", "certificate", "any")
"""What a principal can be: a Unix account of this machine, an API key's id, a subject that the gateway verified, a
client certificate, or whatever bears that name."""

MOST_NAME = 256
"""The most characters that the name of a principal has."""

TEXT, NUMBER, NAMES, BLOCKS, KIND, WHERE = "text", "number", "names", "blocks", "kind", "where"
CHOICES = {KIND: KINDS, WHERE: ("gateway",)}
"""The words that a field of that type takes."""

_FILED = {"approval": (NUMBER, False, 2), "hits": (TEXT, False, 1000)}
"""Of a request of the analyser for which people have to agree: how many, and whom it would hit."""

REQUESTS: dict[str, dict[str, tuple[str, bool, int]]] = {
    # field: (type, required, most: characters, the number itself, or names)
    "block": {
        "address": (TEXT, True, 64),
        "ttl_s": (NUMBER, False, 10**9),
        "reason": (TEXT, True, 500),
        "incident": (TEXT, False, 64),
        "playbook": (TEXT, False, 64),
        "where": (WHERE, False, 0),
        **_FILED,
    },
    "unblock": {"address": (TEXT, True, 64), "reason": (TEXT, True, 500)},
    "blocks": {"page": (NUMBER, False, 10**6)},
    "check": {"address": (TEXT, True, 64)},
    "block_user": {
        "user": (TEXT, True, MOST_NAME),
        "kind": (KIND, False, 0),
        "ttl_s": (NUMBER, False, 10**9),
        "reason": (TEXT, True, 500),
        "incident": (TEXT, False, 64),
        "playbook": (TEXT, False, 64),
        **_FILED,
    },
    "unblock_user": {
        "user": (TEXT, True, MOST_NAME),
        "kind": (KIND, False, 0),
        "reason": (TEXT, True, 500),
    },
    "users": {"page": (NUMBER, False, 10**6)},
    "check_user": {"user": (TEXT, True, MOST_NAME), "kind": (KIND, False, 0)},
    "import": {"blocks": (BLOCKS, True, MOST_IMPORTED), "reason": (TEXT, True, 500)},
    "kill": {
        "endpoints": (NAMES, False, 256),
        "reason": (TEXT, True, 500),
        "ttl_s": (NUMBER, False, 604_800),
        "probe": (NUMBER, False, 1),
        "incident": (TEXT, False, 64),
        "playbook": (TEXT, False, 64),
        **_FILED,
    },
    "release": {"endpoints": (NAMES, False, 256), "reason": (TEXT, True, 500)},
    "cut": {
        "address": (TEXT, True, 64),
        "reason": (TEXT, True, 500),
        "incident": (TEXT, False, 64),
        "playbook": (TEXT, False, 64),
        **_FILED,
    },
    "restrict": {
        "endpoints": (NAMES, True, 256),
        "reason": (TEXT, True, 500),
        "ttl_s": (NUMBER, False, 604_800),
        "incident": (TEXT, False, 64),
        "playbook": (TEXT, False, 64),
        **_FILED,
    },
    "lift": {"endpoints": (NAMES, True, 256), "reason": (TEXT, True, 500)},
    "status": {},
    "drill_start": {"endpoints": (NAMES, False, 256), "seconds": (NUMBER, True, 3600)},
    "drill_stop": {},
    "approvals": {"page": (NUMBER, False, 10**6)},
    "grant": {"id": (TEXT, True, 32)},
    "deny": {"id": (TEXT, True, 32)},
    "signed": {"command": (TEXT, True, 8192), "signer": (TEXT, True, 64), "signature": (TEXT, True, 128)},
    "follow": {"after": (NUMBER, True, 2**53)},
}


class MalformedError(ValueError):
    """The message is no request; the text says which field is wrong."""


def encode(message: Mapping[str, object]) -> bytes:
    """A flat message of text, whole numbers and lists of text as JSON in ASCII.

    Raises TypeError for any other value.
    """
    return ("{" + ",".join(f"{_text(k)}:{_value(v)}" for k, v in message.items()) + "}").encode("ascii")


def parse(data: bytes) -> dict[str, Any]:
    """The request in `data`, with `request` and exactly the fields of that request.

    Raises MalformedError.
    """
    import json

    if len(data) > MOST_BYTES:
        raise MalformedError(f"message longer than {MOST_BYTES} bytes")
    try:
        message = json.loads(data, object_pairs_hook=_no_doubles)
    except MalformedError:
        raise
    except (ValueError, RecursionError):
        raise MalformedError("message is no JSON object") from None
    if type(message) is not dict:
        raise MalformedError("message is no JSON object")
    kind = message.get("request")
    if type(kind) is not str or kind not in REQUESTS:
        raise MalformedError(f"field request: one of {', '.join(REQUESTS)}")
    fields = REQUESTS[kind]
    for name, value in message.items():
        if name != "request":
            if name not in fields:
                raise MalformedError(f"field {name[:40]!r} is unknown in {kind}")
            _check(name, value, fields[name])
    for name, (_, required, _) in fields.items():
        if required and name not in message:
            raise MalformedError(f"field {name} is missing in {kind}")
    return message


def principal(text: str) -> tuple[str, str]:
    """The kind and the name that a person means: `KIND:NAME`, or a plain name for whatever bears it.

    Raises ValueError for what is no name.
    """
    kind, colon, name = text.partition(":")
    if not (colon and kind in KINDS):
        kind, name = "any", text
    if not is_name(name):
        raise ValueError(f"a name of 1 to {MOST_NAME} printable characters is wanted")
    return kind, name


def is_name(name: object) -> bool:
    """Whether a principal can have that name."""
    return type(name) is str and 0 < len(name) <= MOST_NAME and name.isprintable()


def _check(name: str, value: object, rule: tuple[str, bool, int]) -> None:
    kind, _, most = rule
    if kind == NUMBER:
        if type(value) is not int or not 0 <= value <= most:
            raise MalformedError(f"field {name}: a whole number from 0 to {most}")
    elif kind == TEXT:
        _check_text(name, value, most)
    elif kind in CHOICES:
        if type(value) is not str or value not in CHOICES[kind]:
            raise MalformedError(f"field {name}: one of {', '.join(CHOICES[kind])}")
    elif type(value) is not list or len(value) > most:
        raise MalformedError(f"field {name}: a list of at most {most} {kind}")
    elif kind == BLOCKS:
        for item in value:
            if type(item) is not list or len(item) != 2:
                raise MalformedError(f"field {name}: each is [address, seconds]")
            _check_text(name, item[0], 64)
            _check(name, item[1], (NUMBER, True, 10**9))
    else:
        for item in value:
            _check_text(name, item, 64)


def _check_text(name: str, value: object, most: int) -> None:
    if type(value) is not str or not 0 < len(value) <= most:
        raise MalformedError(f"field {name}: text of 1 to {most} characters")
    if not value.isprintable():
        raise MalformedError(f"field {name}: no control characters")


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise MalformedError("a field is given twice")
    return made


def _value(value: object) -> str:
    if value is True or value is False:
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_value, value)) + "]"
    raise TypeError(f"{type(value).__name__} does not belong in a message")


def _text(text: str) -> str:
    """RFC 8259, section 7: what is not printable ASCII as UTF-16 escapes."""
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    units = text.encode("utf-16-be", "surrogatepass")
    return '"' + "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2)) + '"'
