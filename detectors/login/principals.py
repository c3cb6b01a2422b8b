"""Whom a login was as: the principals (`account:alice`, `key:k-…`, `subject:alice`) that a finding may accuse.

What kind of principal it was travels with the hash of the name through the bounded state of campaigns, in its two
lowest bits; 0 there means that nothing accuses whoever has that name. No failure ever makes a principal.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from ...daemon.events import U64, Bool, Provenance
from ..profiles import METHODS
from .attempts import Attempts

KINDS = ("", "account", "key", "subject")
ACCOUNT, KEY, SUBJECT = 1, 2, 3
_MOST = 256
_KEPT = 63  # bytes of a name, from which on it may be a part only
_GUESSABLE = np.array([name not in ("publickey", "hostbased", "gssapi") for name in METHODS])
_VIS = re.compile(r"\\(\\|[0-3][0-7]{2})")
"""How sshd writes a backslash and what is no ASCII: strnvis(3) with VIS_OCTAL (OpenSSH, log.c)."""
_ESCAPED = re.compile(r"\\x[0-9A-Fa-f]{2}")
"""How nginx writes what it does not write as it is; the true name may have held these very characters."""


def is_keyed(attempts: Attempts, rows: Any) -> Bool:
    """Rows that are requests by an API key."""
    of = attempts.row[rows]
    keyed: Bool = (attempts.batch.status[of] != 0) & (attempts.batch.key[of] != 0)
    return keyed


def is_guessable(attempts: Attempts, rows: Any) -> Bool:
    """Rows whose login rests on what can be guessed or asked for: no key of the user's, no ticket."""
    guessable: Bool = _GUESSABLE[attempts.method[rows]]
    return guessable


def accused(attempts: Attempts, rows: Any, sure: Bool) -> U64:
    """The users of these rows as items of a campaign, with the kind of principal where one is accused.

    That is where `sure` (`bool[len(rows)]`) holds for a success of which no mere datagram told. A user of the access
    log is one only where the log's service verifies it: nginx writes as `$remote_user` whatever name a request claims,
    also at a location that asks for no password.
    """
    batch, of, user = attempts.batch, attempts.row[rows], attempts.user[rows]
    requests = batch.status[of] != 0
    subject = np.where(batch.verified[of], SUBJECT, 0)
    kind = np.where(requests, np.where(batch.key[of] != 0, KEY, subject), ACCOUNT)
    sure = sure & attempts.success[rows] & (batch.provenance[of] > Provenance.NETWORK)
    tagged = (user & ~np.uint64(3)) | np.where(sure, kind, 0).astype(np.uint64)
    made: U64 = np.where(user == 0, np.uint64(0), tagged)
    return made


def principals(names: Iterable[bytes], items: Iterable[int], whole: str = "") -> tuple[str, ...]:
    """Those accused of the `items` of a record, whose `names` are in the same order.

    `whole` is the name of the one whom the finding is about: a record keeps 62 bytes of a name.
    """
    found = set()
    for name, item in zip(names, items, strict=True):
        kind = KINDS[item & 3]
        if not kind:
            continue
        if len(name) >= _KEPT:
            text = whole if whole.startswith(name[:-1].decode("utf-8", "ignore")) else ""
        else:
            text = name.decode("utf-8", "replace")
        if "\ufffd" not in text:
            found.add(principal(kind, text))
    return tuple(sorted(found - {""}))


def principal(kind: str, name: str) -> str:
    """`KIND:NAME`, of a name as the log has it; `""` where the true name cannot be told or is none that is blocked:
    1 to 256 printable characters.
    """
    if kind == "account":
        try:
            true = _VIS.sub(_unvis, name).encode("latin-1").decode()
        except UnicodeError:
            true = name if "\\" not in name else ""
        name = true
    elif _ESCAPED.search(name):
        return ""
    return f"{kind}:{name}" if 1 <= len(name) <= _MOST and name.isprintable() else ""


def _unvis(found: re.Match[str]) -> str:
    said = found[1]
    return said if said == "\\" else chr(int(said, 8))
