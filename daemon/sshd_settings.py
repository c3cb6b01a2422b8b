"""What sshd's configuration says of how it is reached: its ports, and how many passwords one connection may try.

Only read, and only for what the site's own configuration leaves at `auto`: a file that is not there or not readable
leaves OpenSSH's defaults. See sshd_config(5).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..config.schema import Config

SSHD_CONFIG = Path("/etc/ssh/sshd_config")
MOST_DEPTH = 16
"""How deep Include may nest: READCONF_MAX_DEPTH of servconf.c."""


@dataclass(frozen=True, slots=True)
class SshdSettings:
    """Where sshd listens, and MaxAuthTries; OpenSSH's defaults."""

    ports: tuple[int, ...] = (22,)
    tries: int = 6


def sshd_settings(config: Config, path: Path = SSHD_CONFIG) -> SshdSettings:
    """As the site configured it, else as sshd's file says, else as OpenSSH has it without one."""
    ports, tries = config.network.ssh_ports, config.network.ssh_tries
    found = read_settings(path) if ports == "auto" or tries == "auto" else SshdSettings()
    return SshdSettings(
        found.ports if ports == "auto" else tuple(ports), found.tries if tries == "auto" else tries
    )


def read_settings(path: Path) -> SshdSettings:
    """From sshd's file and those that it includes; of MaxAuthTries the highest, as a Match block may raise it."""
    ports: list[int] = []
    listening: list[int] = []
    tries: list[int] = []
    for word, value in _words(path, MOST_DEPTH):
        if word == "port" and _number(value):
            ports.append(_number(value))
        elif word == "maxauthtries" and _number(value):
            tries.append(_number(value))
        elif word == "listenaddress":
            address = value.split()[0] if value.split() else ""
            found = re.fullmatch(r"(?:\[[^]]*\]|[^:]*):([0-9]{1,5})", address)
            if found and _number(found[1]):
                listening.append(_number(found[1]))
    defaults = SshdSettings()
    return SshdSettings(
        tuple(dict.fromkeys([*ports, *listening])) or defaults.ports, max(tries, default=defaults.tries)
    )


def _words(path: Path, depth: int) -> Iterator[tuple[str, str]]:
    """Keyword, in lower case, and what follows it, of each line."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        found = re.match(r"\s*([A-Za-z]+)(?:\s*=\s*|\s+)(.*)", line)
        if found is None:
            continue
        word, value = found[1].lower(), found[2].strip()
        if word == "include" and depth:
            for pattern in value.replace('"', " ").split():
                base = Path("/") if pattern.startswith("/") else path.parent
                relative = pattern.lstrip("/")
                for included in sorted(base.glob(relative)) if relative else ():
                    yield from _words(included, depth - 1)
        else:
            yield word, value


def _number(text: str) -> int:
    """A number from 1 to 65535; 0 where `text` is none."""
    found = re.match(r'"?([0-9]{1,5})(?!\d)', text)
    number = int(found[1]) if found else 0
    return number if number <= 65_535 else 0
