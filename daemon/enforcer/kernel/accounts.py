"""Which Unix accounts of this machine can become root: read from passwd(5) and group(5) at the moment of a decision.

Only the files count, so that nobody is waited for; who is an administrator by a directory service alone is none here.
"""

from __future__ import annotations

PASSWD, GROUP = "/etc/passwd", "/etc/group"
ADMINISTRATORS = ("sudo", "wheel", "admin")
"""The groups that distributions let become root."""
_NO_LOGIN = ("/nologin", "/false")


def administrators(operators: str = "", passwd: str = PASSWD, group: str = GROUP) -> frozenset[str]:
    """Names of the accounts, but for uid 0, that are in one of the administrators' groups or in the group
    `operators`, and have a shell. Raises OSError where a file cannot be read."""
    accounts = {a[0]: a for a in _lines(passwd, 7)}
    named, ids = set(), set()
    for name, _, gid, members in _lines(group, 4):
        if name in (*ADMINISTRATORS, operators):
            ids.add(gid)
            named |= {member.strip() for member in members.split(",")}
    return frozenset(
        name
        for name, (_, _, uid, gid, _, _, shell) in accounts.items()
        if (name in named or gid in ids)
        and uid.strip("0")  # root itself does not count, nor whoever shares its uid
        and not shell.strip().endswith(_NO_LOGIN)  # whoever cannot log in is nobody's way in
    )


def _lines(path: str, fields: int) -> list[list[str]]:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        found = [line.rstrip("\n").split(":") for line in file]
    return [line for line in found if len(line) == fields and line[0]]
