"""YAML files that people write, read with the line of every key, so that an error can point at it.

Reading is bounded: the file's size, the depth and the number of nodes; aliases are refused, so that no small
file can grow into a large one. A key that appears twice is an error, where YAML would silently take the last.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from yaml.reader import Reader

from ..daemon.errors import ConfigError

MOST_BYTES = 1 << 20
MOST_NODES = 100_000
DEEPEST = 32

Key = tuple[str | int, ...]
Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Document:
    """What a file says, and where: `lines` has the line (from 1) of each key by its path."""

    name: str
    data: dict[str, Any]
    lines: dict[Key, int] = field(default_factory=dict)

    def line(self, key: Key) -> int:
        """The line of `key`, or of the nearest key that encloses it."""
        for end in range(len(key), 0, -1):
            if key[:end] in self.lines:
                return self.lines[key[:end]]
        return 1

    def error(self, key: Key, problem: str) -> str:
        """One line that names file, line, key and problem."""
        named = f"{'.'.join(map(str, key))}: " if key else ""
        return f"{self.name}:{self.line(key)}: {one_line(named + problem)}"


def one_line(text: str) -> str:
    """`text` with what is not printable escaped: a key may hold a newline, an error may not."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def read_document(path: Path) -> Document:
    """Read a YAML file whose top level is a mapping. Raises ConfigError."""
    try:
        with open(path, "rb") as file:
            raw = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file", remedy="`gatewatch config init` writes one") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    if len(raw) > MOST_BYTES:
        raise ConfigError(f"{path}: larger than {MOST_BYTES >> 20} MiB", remedy="is this the right file?")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 at byte {error.start}") from None
    return parse_document(text, str(path))


def parse_document(text: str, name: str) -> Document:
    """As `read_document`, from text. An empty file is an empty mapping."""
    _refuse_control_characters(text, name)
    loader = yaml.SafeLoader(text)
    try:
        _refuse_aliases(text, name)
        node = loader.get_single_node()
        lines: dict[Key, int] = {}
        data = {} if node is None else _value(loader, node, (), lines, name)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise ConfigError(
            f"{name}:{line}: not valid YAML: {one_line(str(error.problem or error.context))}"
        ) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ConfigError(f"{name}: not valid YAML: {one_line(str(error))}") from None
    except RecursionError:
        raise ConfigError(f"{name}: nested too deeply") from None
    finally:
        loader.dispose()
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(f"{name}:1: the file must hold keys with values, such as `mode: observe`")
    return Document(name, data, lines)


def _refuse_control_characters(text: str, name: str) -> None:
    found = Reader.NON_PRINTABLE.search(text)
    if found is not None:
        line = text.count("\n", 0, found.start()) + 1
        raise ConfigError(f"{name}:{line}: the character U+{ord(found[0]):04X} is not allowed in YAML")


def _refuse_aliases(text: str, name: str) -> None:
    """Count events before any node is built. Raises ConfigError."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError(f"{name}:{line}: YAML aliases are not allowed; write the value out")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > DEEPEST:
            raise ConfigError(f"{name}:{line}: nested more than {DEEPEST} deep")
        if count > MOST_NODES:
            raise ConfigError(f"{name}:{line}: more than {MOST_NODES} values")


def _value(loader: yaml.SafeLoader, node: yaml.Node, at: Key, lines: dict[Key, int], name: str) -> Any:
    lines.setdefault(at, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(f"{name}:{line}: a key must be a single word")
            key = str(key_node.value)
            here = (*at, key)
            if key in mapping:
                twice = f"{'.'.join(map(str, here))}: appears twice (first in line {lines[here]})"
                raise ConfigError(f"{name}:{line}: {one_line(twice)}")
            lines[here] = line
            mapping[key] = _value(loader, value_node, here, lines, name)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, child, (*at, i), lines, name) for i, child in enumerate(node.value)]
    return loader.construct_object(node)


def validated(model: type[Model], document: Document, *, base: Path | None = None) -> Model:
    """What `document` says, as a `model`. Relative paths are taken from `base`.

    Raises ConfigError with every problem, one a line, in the order of the file.
    """
    try:
        return model.model_validate(document.data, context={"base": base})
    except ValidationError as error:
        found = [(_key(e, document.data), e) for e in error.errors(include_url=False)]
        said = {(document.line(key), document.error(key, _words(key, dict(e), model))) for key, e in found}
        raise ConfigError("\n".join(text for _, text in sorted(said))) from None


def _discriminator(context: dict[str, Any]) -> str:
    """The key that tells the alternatives apart; where a function does, it is called after that key."""
    return str(context.get("discriminator")).strip("'_()")


def closest(word: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" where a known word is near, else what there is."""
    names = sorted(set(known))
    near = get_close_matches(word, names, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(names)}" if names else ""


def _key(error: Any, data: Any) -> Key:
    """Where an error is, without the tags that the schema library puts in for unions and for keys of mappings."""
    location: tuple[int | str, ...] = error["loc"]
    key: list[str | int] = []
    for index, part in enumerate(location):
        if part == "[key]":
            continue
        # An error about a whole variant of a union ends with its tag, which is no key.
        last = index == len(location) - 1 and error["type"] != "value_error"
        if isinstance(data, dict) and (part in data or last):
            data = data.get(str(part))
        elif isinstance(data, list) and isinstance(part, int):
            data = data[part] if part < len(data) else None
        else:
            continue
        key.append(part)
    return tuple(key)


_TYPES = {
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "string_type": "must be text",
    "list_type": "must be a list",
    "dict_type": "must be keys with values",
    "model_type": "must be keys with values",
    "missing": "is missing",
}


_LIMITS = {
    "greater_than_equal": ("must be {} or more", "ge"),
    "less_than_equal": ("must be {} or less", "le"),
    "too_short": ("needs at least {} in its list", "min_length"),
    "too_long": ("takes at most {} in its list", "max_length"),
    "string_too_short": ("needs at least {} character", "min_length"),
    "string_too_long": ("takes at most {} characters", "max_length"),
    "string_pattern_mismatch": ("must be a name of letters, digits and . _ - @ :", "pattern"),
}


def _words(key: Key, error: dict[str, Any], model: type[BaseModel]) -> str:
    kind, context, value = str(error["type"]), error.get("ctx") or {}, error.get("input")
    if kind == "extra_forbidden":
        return f"unknown key{closest(str(key[-1]), _siblings(model, key))}"
    if kind in _TYPES:
        shown = f", not {_shown(value)}" if kind != "missing" and not isinstance(value, dict | list) else ""
        return _TYPES[kind] + shown
    if kind == "value_error":
        return str(context.get("error", error["msg"]))
    if kind in ("literal_error", "enum"):
        allowed = [w.strip(" '") for w in str(context.get("expected", "")).replace(" or ", ", ").split(",")]
        if error["loc"][-1] == "[key]":
            return f"unknown name{closest(str(key[-1]), allowed)}"
        if allowed == ["auto"]:
            return f"must be auto or a value of its kind, not {_shown(value)}"
        near = closest(str(value), allowed)
        return (
            f"must be one of {', '.join(allowed)}, not {_shown(value)}"
            if len(allowed) < 8
            else (f"{_shown(value)} is unknown{near}")
        )
    if kind == "union_tag_invalid":
        tag = str(context.get("tag"))
        allowed = [w.strip(" '") for w in str(context.get("expected_tags", "")).split(",")]
        return f"unknown {_discriminator(context)} {tag!r}{closest(tag, allowed)}"
    if kind == "union_tag_not_found":
        return f"{_discriminator(context)} is missing"
    if kind in _LIMITS:
        wanted, limit = _LIMITS[kind]
        bound = context.get(limit)
        return f"{wanted.format(f'{bound:g}' if isinstance(bound, float) else bound)}, not {_shown(value)}"
    message = str(error["msg"]).replace("Input should", "must").replace("should", "must")
    return f"{message[:1].lower()}{message[1:]}, not {_shown(value)}"


def _shown(value: object) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _siblings(model: type[BaseModel], key: Key) -> list[str]:
    """The keys that the schema knows where `key` stands."""
    current: list[type[BaseModel]] = [model]
    for part in key[:-1]:
        if isinstance(part, int):
            continue
        fields = [m.model_fields[part] for m in current if part in m.model_fields]
        if fields:
            current = [m for f in fields for m in _models(f.annotation)]
    return [name for m in current for name in m.model_fields]


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    inner = getattr(annotation, "__args__", ())
    return [m for a in inner for m in _models(a)]
