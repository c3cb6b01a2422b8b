"""fail2ban's bans and ignore lists, read from its SQLite database and its configuration. Neither is ever written to,
and a running fail2ban goes on undisturbed.

The database is that of fail2ban 0.11 and later (schema 4, `fail2ban/server/database.py`). The configuration is asked of
`fail2ban-client -d`, which needs no running server; where that is missing or fails, the files are merged here in
fail2ban's own order (jail.conf(5)).
"""

from __future__ import annotations

import configparser
import math
import os
import re
import shutil
import sqlite3
import subprocess
from ast import literal_eval
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from ..daemon.errors import InputError
from .imports import FOREVER_S, MOST_BANS, Found, open_plain, text_of

DATABASE = "/var/lib/fail2ban/fail2ban.sqlite3"
FOLDER = "/etc/fail2ban"

_MOST_DATABASE = 16 << 30
_LIMIT_S = 60.0
_MOST_BUSY_S = 10.0  # fail2ban writes for milliseconds
_UNKNOWN_BANTIME_S = 600  # what fail2ban itself assumes for -2, a row from before schema 3
_DEEPEST = 10
_MOST_NAMED = 3
_TRUE = ("1", "on", "true", "yes")

# Lengths are bounded by SQLite, so that no row can be larger than this process.
_COLUMNS = """
    rowid, CASE WHEN typeof(ip) = 'text' AND length(ip) <= 200 THEN ip ELSE typeof(ip) END,
    CASE WHEN typeof(jail) = 'text' THEN substr(jail, 1, 64) ELSE '' END,
    CASE WHEN typeof(timeofban) IN ('integer', 'real') THEN timeofban END,
    CASE WHEN typeof(bantime) IN ('integer', 'real') THEN bantime END
"""


def read_bans(path: str | os.PathLike[str], found: Found, now: float) -> None:
    """Add the bans in the database `path` that have not ended at `now` (seconds since 1970). Raises InputError."""
    descriptor, _ = open_plain(path, _MOST_DATABASE)
    os.close(descriptor)  # SQLite has to open it by name, for the locks
    name = os.fspath(path)
    found.read.append(name)
    try:
        uri = Path(name).absolute().as_uri() + "?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=_MOST_BUSY_S)) as database:
            database.text_factory = lambda data: data.decode("utf-8", "replace")
            database.execute("PRAGMA trusted_schema = OFF")
            _read_rows(database, name, found, now)
    except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter: names in a damaged schema
        if found.bans:
            found.remark(name, "", f"{error}: only {len(found.bans):,} bans before that are read")
            return
        raise InputError(
            f"{name}: {error}",
            remedy="name fail2ban's own database with --database (dbfile of fail2ban.conf)",
        ) from None


def _read_rows(database: sqlite3.Connection, name: str, found: Found, now: float) -> None:
    tables = {
        row[0]
        for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table' LIMIT 1000")
        if isinstance(row[0], str)
    }
    table = "bips" if "bips" in tables else "bans"
    if table not in tables:
        raise InputError(f"{name}: has no table bips, so it is no database of fail2ban's")
    columns = {row[1] for row in database.execute(f"PRAGMA table_info({table})")}
    if not {"ip", "jail", "timeofban", "bantime"} <= columns:
        raise InputError(
            f"{name}: table {table} is of a fail2ban before 0.11, which did not store how long a ban lasts",
            remedy="start a newer fail2ban once, which upgrades it",
        )
    gone = _jails_gone(database) if "jails" in tables else set()
    rows = database.execute(f"SELECT {_COLUMNS} FROM {table} ORDER BY rowid LIMIT ?", (MOST_BANS + 1,))
    for count, (rowid, ip, jail, since, bantime) in enumerate(rows):
        where = f"{name}, table {table}, row {rowid}"
        if count == MOST_BANS:
            found.remark(where, "", f"only the first {MOST_BANS:,} rows are read")
        elif jail in gone:
            found.remark(where, ip, f"jail {jail} is not enabled any more")
        elif since is None or bantime is None or not (math.isfinite(since) and math.isfinite(bantime)):
            found.remark(where, ip, "no time")
        else:
            found.ban(ip, _remains_s(since, bantime, now), where)


def _jails_gone(database: sqlite3.Connection) -> set[str]:
    """Jails that are disabled beside others that are not. A server that is stopped in order leaves all disabled."""
    rows = database.execute("SELECT name, enabled FROM jails WHERE typeof(name) = 'text' LIMIT 10000")
    enabled = {name: bool(on) for name, on in rows}
    return {name for name, on in enabled.items() if not on} if any(enabled.values()) else set()


def _remains_s(since: float, bantime: float, now: float) -> float:
    if bantime == -1 or bantime < -2:
        return FOREVER_S
    lasts = _UNKNOWN_BANTIME_S if bantime == -2 else bantime
    return min(lasts, since + lasts - now)  # a ban from the future lasts no longer for it


def read_ignored(folder: str | os.PathLike[str], found: Found) -> str:
    """Add the ignore lists of the enabled jails that the configuration in `folder` describes; the database that it
    names ("None" and ":memory:" are none). Raises InputError."""
    name = os.fspath(folder)
    if not Path(name).is_dir():
        raise InputError(f"{name}: no such folder", remedy="name fail2ban's configuration with --directory")
    said = _ask(name)
    if said is None:
        found.read.append(f"{name} (merged here)")
        return _read_files(Path(name), found)
    found.read.append(f"{name} (fail2ban-client -d)")
    return _read_dump(said, name, found)


def _ask(folder: str) -> str | None:
    """What `fail2ban-client -d` says of the configuration in `folder`; None where it is missing or fails."""
    client = shutil.which("fail2ban-client")
    if client is None:
        return None
    try:
        done = subprocess.run(
            [client, "-c", folder, "-d"],
            capture_output=True,
            timeout=_LIMIT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None


def _read_dump(said: str, folder: str, found: Found) -> str:
    """Each line is a command to the server, as a Python list."""
    lists, database = _Lists(), DATABASE
    for line in said.splitlines():
        if not line.startswith("['") or not any(
            word in line for word in ("ignore", "config-error", "dbfile")
        ):
            continue
        try:
            command = literal_eval(line)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        match command:
            case ["set", str(jail), "addignoreip", *words]:
                for word in words:
                    lists.add("ignoreip", str(word), folder, jail)
            case ["set", str(jail), "ignorecommand", str(text)] if text:
                lists.add("ignorecommand", text, folder, jail)
            case ["set", "dbfile", str(path)]:
                database = path
            case ["config-error", str(text)]:
                found.remark(folder, "", f"fail2ban says: {text}")
    lists.tell(found)
    return database


class _Lists:
    """What jails ignore, with the jails of each: most lists are those of all."""

    def __init__(self) -> None:
        self._jails: dict[tuple[str, str, str], list[str]] = {}

    def add(self, option: str, word: str, where: str, jail: str) -> None:
        self._jails.setdefault((option, word, where), []).append(jail)

    def tell(self, found: Found) -> None:
        for (option, word, where), jails in self._jails.items():
            more = f" and {len(jails) - _MOST_NAMED} more" if len(jails) > _MOST_NAMED else ""
            at = f"{where}, jail{'s' * (len(jails) > 1)} {', '.join(jails[:_MOST_NAMED])}{more}"
            if option == "ignorecommand":
                found.remark(at, word, "a command decides who is ignored (ignorecommand)")
            elif word.startswith("file:"):
                found.remark(at, word, "a file of addresses: name them in the rails yourself")
            else:
                found.ignore(word, at)


class _Files:
    """jail.conf and what comes after it, merged: `sections[name][option]` is (value, where)."""

    def __init__(self) -> None:
        self.sections: dict[str, dict[str, tuple[str, str]]] = {"DEFAULT": {}}
        self.known: dict[str, dict[str, str]] = {}

    def add(self, path: Path, found: Found, seen: tuple[Path, ...] = ()) -> None:
        """One file with the files that it includes before and after it, and the .local beside it."""
        if path in seen or len(seen) > _DEEPEST or not path.exists():
            return
        parser = configparser.RawConfigParser(inline_comment_prefixes=(";",), default_section="\0")
        try:
            text = text_of(path)
            parser.read_string(text, str(path))
        except InputError as error:
            found.remark(str(path), "", error.message)
            return
        except configparser.Error as error:
            found.remark(str(path), "", f"not understood: {' '.join(str(error).split())}")
            return
        includes = dict(parser.items("INCLUDES")) if parser.has_section("INCLUDES") else {}
        for other in _paths(includes.get("before", ""), path):
            self.add_with_local(other, found, (*seen, path))
        for section in parser.sections():
            if section != "INCLUDES":
                self._merge(section, parser.items(section), path, text)
        for other in _paths(includes.get("after", ""), path):
            self.add_with_local(other, found, (*seen, path))

    def add_with_local(self, path: Path, found: Found, seen: tuple[Path, ...] = ()) -> None:
        self.add(path, found, seen)
        if path.suffix != ".local":
            self.add(path.with_suffix(".local"), found, seen)

    def _merge(self, section: str, items: Iterable[tuple[str, str]], path: Path, text: str) -> None:
        into = self.sections.setdefault(section, {})
        for option, value in items:
            if option in into and section != "DEFAULT":
                self.known.setdefault(section, {})[option] = into[option][0]
            line = f":{_line(text, section, option)}" if option in ("ignoreip", "ignorecommand") else ""
            into[option] = (value or "", f"{path}{line}")

    def get(self, section: str, option: str) -> tuple[str, str] | None:
        """The value with its references filled in, and where it stands; ValueError where one leads nowhere."""
        raw = self._raw(section, option)
        return None if raw is None else (self._filled(raw[0], section, 0), raw[1])

    def _raw(self, section: str, option: str) -> tuple[str, str] | None:
        own = self.sections.get(section, {})
        return own.get(option) or self.sections["DEFAULT"].get(option)

    def _filled(self, value: str, section: str, depth: int) -> str:
        """%(option)s, %(section/option)s, %(known/option)s: the value before this file changed it."""
        if depth > _DEEPEST or len(value) > 1 << 20:
            raise ValueError("references that lead in a circle")

        def fill(match: re.Match[str]) -> str:
            if match[0] == "%%":
                return "%"
            named, slash, option = match[1].rpartition("/")
            if named.lower() == "known" and option in self.known.get(section, {}):
                inner: str | None = self.known[section][option]
            elif match[1] == "__name__":
                inner = section
            elif named and named.lower() not in ("known", "default") and named not in self.sections:
                inner = None
            else:
                at = section if not slash else "DEFAULT" if named.lower() in ("known", "default") else named
                raw = self._raw(at, option.lower())
                inner = raw[0] if raw else None
            if inner is None:
                raise ValueError(f"%({match[1]})s is set nowhere")
            return self._filled(inner, section, depth + 1)

        return re.sub(r"%%|%\(([^)]+)\)s", fill, value)


def _paths(text: str, beside: Path) -> Iterator[Path]:
    for line in text.split("\n"):
        if line.strip():
            yield beside.parent / line.strip()


def _line(text: str, section: str, option: str) -> int:
    """The line on which `option` is set in `section`."""
    here, last = "", 1
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("["):
            here = line[1:].partition("]")[0]
        elif here == section and re.split("[=:]", line, maxsplit=1)[0].strip().lower() == option:
            last = number
    return last


def _merged(folder: Path, name: str, found: Found) -> _Files:
    """NAME.conf with what comes after it, in fail2ban's order."""
    files = _Files()
    named = [
        folder / f"{name}.conf",
        *sorted(folder.glob(f"{name}.d/*.conf")),
        folder / f"{name}.local",
        *sorted(folder.glob(f"{name}.d/*.local")),
    ]
    for path in named:
        # A .local that is in the list has its turn there.
        local = path.with_suffix(".local")
        (files.add if local in named else files.add_with_local)(path, found)
    return files


def _read_files(folder: Path, found: Found) -> str:
    files = _merged(folder, "jail", found)
    lists = _Lists()
    for jail in files.sections:
        if jail == "DEFAULT" or _value(files, jail, "enabled", found)[0].lower() not in _TRUE:
            continue
        text, where = _value(files, jail, "ignoreip", found)
        for word in filter(None, re.split(r"[ ,\n]+", text)):
            lists.add("ignoreip", word, where, jail)
        text, where = _value(files, jail, "ignorecommand", found)
        if text:
            lists.add("ignorecommand", text, where, jail)
    lists.tell(found)
    return _value(_merged(folder, "fail2ban", found), "Definition", "dbfile", found)[0] or DATABASE


def _value(files: _Files, jail: str, option: str, found: Found) -> tuple[str, str]:
    try:
        return files.get(jail, option) or ("", "")
    except ValueError as error:
        raw: Any = files._raw(jail, option)
        found.remark(f"{raw[1]}, jail {jail}", raw[0], str(error))
        return "", ""
