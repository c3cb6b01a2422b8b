"""CrowdSec's decisions, whitelists and allowlists, as `cscli` and the local API say them and as its YAML files hold
them. Only what names an address or a range can be taken over; everything else is remarked on.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from ..daemon.errors import InputError
from .imports import Found, read_plain, text_of

FOLDER = "/etc/crowdsec"
WHITELISTS = ("parsers/*/*.y*ml", "postoverflows/*/*.y*ml")

_MOST_JSON = 64 << 20
_MOST_FILES = 1000
_LIMIT_S = 120.0
_UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9}
_PART = re.compile(r"([0-9]{1,12}(?:\.[0-9]{0,12})?)(h|ms|us|µs|μs|ns|m|s)")


def parse_duration(text: str) -> float:
    """Seconds from Go's `Duration.String`, such as 3h59m56.39s or -1m0.5s. Raises ValueError."""
    rest = text[1:] if text[:1] in ("-", "+") else text
    if rest == "0":
        return 0.0
    total, at = 0.0, 0
    while part := _PART.match(rest, at):
        total += float(part[1]) * _UNITS_S[part[2]]
        at = part.end()
    if not at or at != len(rest):
        raise ValueError(f"{text[:40]!r} is no duration")
    return -total if text.startswith("-") else total


def ask(words: list[str]) -> tuple[Any, str]:
    """What `cscli WORDS -o json` says, and the command as text. Raises InputError."""
    said = f"cscli {' '.join(words)}"
    client = shutil.which("cscli")
    if client is None:
        raise InputError(
            "cscli is not installed here",
            remedy="run `cscli decisions list -a -l 0 -o json` where it is, and name the file with --decisions",
        )
    with tempfile.TemporaryFile() as out:
        try:
            done = subprocess.run(
                [client, *words, "-o", "json"],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.PIPE,
                timeout=_LIMIT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise InputError(f"{said}: {getattr(error, 'strerror', None) or 'no end in sight'}") from None
        if done.returncode:
            last = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2][:300]
            raise InputError(
                f"{said}: {last or f'exit code {done.returncode}'}", remedy="is CrowdSec running?"
            )
        out.seek(0)
        return _parsed(out.read(_MOST_JSON + 1), said), said


def read_json(path: str | os.PathLike[str]) -> tuple[Any, float]:
    """The JSON in `path`, and when it was written. Raises InputError."""
    data, written = read_plain(path, _MOST_JSON)
    return _parsed(data, os.fspath(path)), written


def _parsed(data: bytes, name: str) -> Any:
    if len(data) > _MOST_JSON:
        raise InputError(f"{name}: at most {_MOST_JSON:,} bytes are read")
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        raise InputError(f"{name}:{error.lineno}: no JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: no JSON: {error}") from None


def read_decisions(said: Any, name: str, age_s: float, found: Found) -> None:
    """Add the bans among the decisions in `said`, written `age_s` seconds ago.

    `said` is what `cscli decisions list` prints (alerts with decisions in them), or the local API's array of
    decisions, or its stream (`new`). Raises InputError where it is neither.
    """
    found.read.append(name)
    if isinstance(said, dict) and ("new" in said or "deleted" in said):
        said = said.get("new")
    if said is None:
        return
    if not isinstance(said, list):
        raise InputError(
            f"{name}: a list of decisions is wanted", remedy="cscli decisions list -a -l 0 -o json"
        )
    for i, item in enumerate(said):
        where = f"{name}[{i}]"
        if not isinstance(item, dict):
            found.remark(where, item, "no decision")
        elif isinstance(item.get("decisions"), list):
            for j, decision in enumerate(item["decisions"]):
                _decision(decision, f"{where}.decisions[{j}]", age_s, found)
        elif "decisions" not in item:
            _decision(item, where, age_s, found)


def _decision(decision: Any, where: str, age_s: float, found: Found) -> None:
    if not isinstance(decision, dict):
        found.remark(where, decision, "no decision")
        return
    value, scope, kind = (decision.get(k) for k in ("value", "scope", "type"))
    if decision.get("simulated") is True:
        found.remark(where, value, "only simulated")
    elif not isinstance(scope, str) or scope.lower() not in ("ip", "range"):
        found.remark(where, value, f"of scope {_word(scope)}: only addresses and ranges are blocked")
    elif not isinstance(kind, str) or kind.lower() != "ban":
        found.remark(where, value, f"of type {_word(kind)}: only bans are taken over")
    else:
        remains = _remains_s(decision, age_s)
        if remains is None:
            found.remark(where, value, "no duration")
        else:
            found.ban(value, remains, where)


def _remains_s(decision: dict[str, Any], age_s: float) -> float | None:
    """Seconds that are left: by the duration, which ran on since it was written, and by `until`, whichever is less."""
    left = []
    duration = decision.get("duration")
    if isinstance(duration, str):
        try:
            left.append(parse_duration(duration) - max(age_s, 0.0))
        except ValueError:
            pass
    until = _time(decision.get("until"))
    if until is not None:
        left.append(until - time.time())
    return min(left) if left and all(map(math.isfinite, left)) else None


def _time(text: object) -> float | None:
    """Seconds since 1970 of an RFC 3339 time; None where it is none, or Go's zero time."""
    if not isinstance(text, str):
        return None
    try:
        when = datetime.fromisoformat(re.sub(r"(\.[0-9]{6})[0-9]+", r"\1", text[:40]))
        return when.timestamp() if when.year > 1 and when.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


def _word(value: object) -> str:
    return value[:40] if isinstance(value, str) and value.isprintable() and value else "that is none"


def read_whitelists(folder: str | os.PathLike[str], found: Found) -> None:
    """Add the addresses of the whitelists among the parsers and postoverflows under `folder`. Raises InputError."""
    base = Path(folder)
    if not base.is_dir():
        raise InputError(f"{base}: no such folder", remedy="name CrowdSec's configuration with --directory")
    found.read.append(str(base))
    paths = sorted(p for pattern in WHITELISTS for p in base.glob(pattern))
    for path in paths[:_MOST_FILES]:
        try:
            text = text_of(path)
        except InputError as error:
            found.remark(str(path), "", error.message)
            continue
        if "whitelist" in text:
            _whitelist(text, path, found)
    if len(paths) > _MOST_FILES:
        found.remark(str(base), "", f"only the first {_MOST_FILES:,} files are read")


def _whitelist(text: str, path: Path, found: Found) -> None:
    """Nodes, not values: every value has its line, and an alias costs nothing."""
    import yaml

    try:
        for document in yaml.compose_all(text, Loader=yaml.SafeLoader):
            top = dict(_entries(document))
            for key, node in _entries(top.get("whitelist")):
                _listed(key, node, path, "filter" in top, found)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        found.remark(f"{path}:{line}", "", f"no YAML: {error.problem}")
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        found.remark(str(path), "", f"no YAML: {' '.join(str(error).split())[:200]}")


def _listed(key: str, node: Any, path: Path, filtered: bool, found: Found) -> None:
    for item in node.value if hasattr(node, "value") and isinstance(node.value, list) else ():
        where = f"{path}:{_line(item)}" + (" (where its filter holds)" if filtered else "")
        value = item.value if isinstance(getattr(item, "value", None), str) else None
        if key in ("ip", "cidr"):
            found.ignore(value, where)
        elif key == "expression":
            found.remark(where, value or "", "an expression: the rails take addresses alone")


def _entries(node: Any) -> Iterator[tuple[str, Any]]:
    """Key and value of a mapping node; nothing of any other."""
    for pair in getattr(node, "value", None) or ():
        if isinstance(pair, tuple) and isinstance(pair[0].value, str):
            yield pair[0].value, pair[1]


def _line(node: Any) -> int:
    mark = getattr(node, "start_mark", None)
    return int(mark.line) + 1 if mark is not None else 1


def read_allowlists(said: Any, name: str, found: Found) -> list[str]:
    """Add the entries of the allowlists in `said` (`cscli allowlists list` or `inspect`); the names of those whose
    entries are not among it. Raises InputError."""
    if said is None:
        return []
    bare = []
    for i, one in enumerate(said if isinstance(said, list) else [said]):
        where = f"{name}[{i}]" if isinstance(said, list) else name
        if not isinstance(one, dict) or not isinstance(one.get("name"), str):
            raise InputError(f"{where}: no allowlist", remedy="cscli allowlists list -o json")
        items = one.get("items")
        if not isinstance(items, list):
            bare.append(one["name"])
            continue
        for j, item in enumerate(items):
            at = f"{where}.items[{j}]"
            value = item.get("value") if isinstance(item, dict) else item
            if isinstance(item, dict) and _time(item.get("expiration")) is not None:
                found.remark(at, value, f"ends at {_word(item['expiration'])}, and never_block does not end")
            else:
                found.ignore(value, at)
    return bare


def ask_allowlists(found: Found) -> None:
    """Add the allowlists that cscli knows; CrowdSec before 1.6.8 has none."""
    try:
        said, name = ask(["allowlists", "list"])
        for bare in read_allowlists(said, name, found):
            if re.fullmatch(r"[\w.][\w.-]*", bare):
                read_allowlists(*ask(["allowlists", "inspect", bare]), found)
    except InputError as error:
        if "unknown command" not in error.message:
            found.remark("cscli allowlists", "", error.message)
