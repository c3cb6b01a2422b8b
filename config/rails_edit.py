"""Adds networks to `never_block` in the text of a rails file and leaves every other character as it is.

What comes out is parsed and compared with what went in before anything is written: no key but this one may differ,
and it may only grow. A file that this module does not understand is not touched.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

from ..daemon.enforcer.rails import parse
from ..daemon.errors import ConfigError, PrivilegeError

KEY = "never_block"

# What TOML is made of where brackets, commas and line ends are looked for (https://toml.io/en/v1.0.0).
_TOKEN = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}'
    r"|'''.*?'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'"
    r"|\#[^\n]*"
    r"|[\[\]{},=\n]"
    r"|[^\S\n]+"
    r"|[^\s\"'\#\[\]{},=]+",
    re.DOTALL,
)


def with_never_block(text: str, added: Sequence[tuple[str, str]], path: str) -> str:
    """`text` with the networks in `added` (network, remark) at the end of `never_block`.

    Raises ConfigError where the file is none that can be changed by hand like this.
    """
    if not added:
        return text
    end_of_line = "\r\n" if "\r\n" in text else "\n"
    lines = "".join(f'    "{network}",  # {_remark(remark)}{end_of_line}' for network, remark in added)
    before = tomllib.loads(text)
    made = _inserted(text, lines, end_of_line, KEY in before)
    if made is None or not _only_grew(before, made, [network for network, _ in added]):
        raise ConfigError(
            f"rails {path}: key {KEY}: written in a way that is not changed by this command",
            remedy="add the networks by hand",
        )
    parse(made, path)
    return made


def _remark(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:200]


def _inserted(text: str, lines: str, end: str, there: bool) -> str | None:
    array, top = _top_level(text)
    if array is not None:
        last, close, comma = array
        if "\n" in text[last:close]:
            start = text.rindex("\n", last, close) + 1
            return text[:last] + comma + text[last:start] + lines + text[start:]
        return text[:last] + comma + end + lines + text[close:]
    if there:
        return None
    at = text.find("\n", top) + 1 if top else 0
    before = text[:at] if at or not top else text + end
    return f"{before}{KEY} = [{end}{lines}]{end}{text[at:] if at or not top else ''}"


def _top_level(text: str) -> tuple[tuple[int, int, str] | None, int]:
    """Of the array `never_block`: the end of its last value, comma or opening bracket; where its closing bracket is;
    the comma that is missing after the last value. And the end of the last statement before the first table."""
    opened = end = last = 0
    words: list[str] = []
    array: tuple[int, int, str] | None = None
    inside, comma = False, ""
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token[0] == "#" or (token.isspace() and token != "\n"):
            continue
        if token == "\n":
            if not opened:
                words = []
            continue
        if token == "[" and not opened and not words:
            break  # the first table: what follows is in it
        end = match.end()
        if token in "[{":
            opened += 1
            if opened == 1 and token == "[" and [w.strip("\"'") for w in words] == [KEY, "="]:
                inside, last, comma = True, end, ""
        elif token in "]}":
            opened -= 1
            if inside and not opened:
                array, inside = (last, match.start(), comma), False
        elif not opened:
            words.append(token)
        if inside and token != "[":
            last, comma = end, "" if token == "," else ","
    return array, end


def _only_grew(before: dict[str, object], made: str, networks: list[str]) -> bool:
    try:
        after = tomllib.loads(made)
    except tomllib.TOMLDecodeError:
        return False
    former = before.get(KEY, [])
    return isinstance(former, list) and after == {**before, KEY: [*former, *networks]}


def difference(before: str, after: str, path: str) -> str:
    """The change as a unified diff."""
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), path, f"{path} (proposed)", lineterm="", n=2
    )
    return "\n".join(lines)


def write(path: Path, before: str, after: str) -> None:
    """Put `after` in the place of `before`, with owner, mode and attributes as they were; whoever reads meanwhile sees
    the old file or the new one. A symbolic link is followed. Raises ConfigError, PrivilegeError."""
    real = path.resolve()
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=real.parent, prefix=f".{real.name}.")
        with open(handle, "wb") as file:
            file.write(after.encode())
            owner = real.stat()
            os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
            shutil.copystat(real, temporary)
            os.utime(temporary)
            file.flush()
            os.fsync(file.fileno())
        if real.read_bytes() != before.encode():
            raise ConfigError(f"rails {path}: was changed meanwhile", remedy="try again")
        Path(temporary).replace(real)
        temporary = None
        folder = os.open(real.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise PrivilegeError(
            f"rails {path}: {error.strerror}; nothing was changed", remedy="run as root"
        ) from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
