"""Which accounts of this machine can become root, and whether refusing one more would leave none of them.

Account files alone are read, as passwd(5) and group(5) have them; nothing is looked up elsewhere. Who logs in as
uid 0 directly does not count: that way in is for emergencies, and often switched off.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator

GROUPS = ("sudo", "wheel", "admin")
"""The groups whose members distributions let become root: Debian, Red Hat and BSD, older Ubuntu."""

_NO_SHELLS = frozenset(("nologin", "false"))
_MOST_BYTES = 1 << 26


def admins(
    group_path: str = "/etc/group", passwd_path: str = "/etc/passwd", extra_groups: Iterable[str] = ()
) -> set[str]:
    """The accounts in one of `GROUPS` or `extra_groups`, as members or by their own group, that have a shell.

    Raises OSError where a file cannot be read.
    """
    wanted = {*GROUPS, *extra_groups} - {""}
    numbers: set[str] = set()
    members: set[str] = set()
    for fields in _lines(group_path, 4):
        if fields[0] in wanted:
            numbers.add(fields[2])
            members.update(name for name in fields[3].split(",") if name)
    return {
        name
        for name, _, uid, gid, _, _, shell in _lines(passwd_path, 7)
        if (name in members or gid in numbers)
        and not (uid.isascii() and uid.isdigit() and int(uid) == 0)
        and os.path.basename(shell) not in _NO_SHELLS
    }


def would_lock_out(name: str, already_denied: Collection[str], all_admins: Collection[str]) -> bool:
    """Whether `name` is the last of `all_admins` (as `admins` gives them) that is not denied yet."""
    if name not in all_admins or name in already_denied:
        return False
    return all(other == name or other in already_denied for other in all_admins)


def _lines(path: str, fields: int) -> Iterator[list[str]]:
    """The lines of an account file that have as many fields as they should."""
    with open(path, "rb") as file:
        for line in file.read(_MOST_BYTES).decode("utf-8", "surrogateescape").split("\n"):
            found = line.split(":")
            if len(found) == fields:
                yield found
