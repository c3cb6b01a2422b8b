"""Whether PAM really asks the file of denied accounts: reads the stacks of the login programs, and changes nothing.

It knows what pam.d(5) says of includes, controls and jumps as far as it takes to see that our line stands in the
`auth` stack (passwords) and in the `account` stack (keys as well), and that no line before it can pass over it.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

FOLDER = "/etc/pam.d"
SSHD = "/etc/ssh/sshd_config"
SERVICES = ("sshd", "login")
STACKS = ("auth", "account")

_ROOT_ALONE = (("quiet", "uid", "eq", "0"), ("uid", "eq", "0"))
_MOST_DEPTH = 8
_MOST_BYTES = 1 << 20
_WORD = re.compile(r"\[(?:\\\]|[^\]])*\]|\S+")


class Line(NamedTuple):
    control: str
    module: str
    arguments: tuple[str, ...]


def rule(stack: str, file: str) -> str:
    """The line to put at the top of a PAM service: a missing file refuses nobody, one that others may write all."""
    return f"{stack} required pam_listfile.so onerr=succeed item=user sense=deny file={file}"


def missing(service: str, file: str, folder: str = FOLDER) -> list[str]:
    """What keeps PAM from asking `file` when somebody logs in by `service`, in words; none where it is asked."""
    problems = []
    for stack in STACKS:
        before: list[Line] = []
        for line in _stack(service, stack, folder, 0):
            if _asks(line, file):
                passing = next((b for i, b in enumerate(before) if _passes(b, len(before) - i)), None)
                if passing is not None:
                    problems.append(f"{service}: {passing.module} can pass over the {stack} line")
                break
            before.append(line)
        else:
            problems.append(f"{service}: its {stack} stack does not ask {file}")
    return problems


def summary(file: str, folder: str = FOLDER, sshd: str = SSHD) -> str:
    """One line about all `SERVICES` that there are."""
    there = [service for service in SERVICES if os.path.exists(f"{folder}/{service}")]
    problems = [problem for service in there for problem in missing(service, file, folder)]
    if "sshd" in there and uses_pam(sshd) is False:
        problems.append(f"sshd: {sshd} does not say UsePAM yes")
    if problems:
        return "; ".join(problems)
    return (
        f"asked by {' and '.join(there)}" if there else f"no service of {' or '.join(SERVICES)} in {folder}"
    )


def uses_pam(path: str = SSHD) -> bool | None:
    """What sshd_config(5) says: the first UsePAM counts, without one it is no. None where there is no such file."""
    if not os.path.exists(path):
        return None
    return next(_use_pam(path, 0), False)


def _use_pam(path: str, depth: int) -> Iterator[bool]:
    for line in _text(path).splitlines():
        words = line.replace("=", " ", 1).split()
        if len(words) < 2:
            continue
        key = words[0].lower()
        if key == "match":
            return
        if key == "usepam":
            yield words[1].strip('"').lower() == "yes"
        elif key == "include" and depth < _MOST_DEPTH:
            for pattern in words[1:]:
                with contextlib.suppress(ValueError):  # a path with a zero byte
                    for found in sorted(glob.glob(os.path.join("/etc/ssh", pattern))):
                        yield from _use_pam(found, depth + 1)


def _stack(service: str, stack: str, folder: str, depth: int) -> Iterator[Line]:
    """The lines of one stack in their order, with what they include."""
    if depth > _MOST_DEPTH:
        return
    for line in _text(os.path.join(folder, service)).replace("\\\n", " ").splitlines():
        words = _WORD.findall(line.split("#", 1)[0])
        if len(words) == 2 and words[0] == "@include":
            yield from _stack(words[1], stack, folder, depth + 1)
        elif len(words) >= 3 and words[0].removeprefix("-").lower() == stack:
            if words[1] in ("include", "substack"):
                yield from _stack(words[2], stack, folder, depth + 1)
            else:
                yield Line(words[1].lower(), os.path.basename(words[2]), tuple(words[3:]))


def _asks(line: Line, file: str) -> bool:
    wanted = {"item=user", "sense=deny", f"file={file}"}
    holds = line.control in ("required", "requisite") or bool(
        re.search(r"\bdefault=(bad|die)\b", line.control) and "auth_err=" not in line.control
    )
    return line.module == "pam_listfile.so" and holds and wanted <= set(line.arguments)


def _passes(line: Line, distance: int) -> bool:
    """Whether this line, `distance` before ours, can let somebody in without ours being asked."""
    if line.module == "pam_succeed_if.so" and line.arguments in _ROOT_ALONE:
        return False  # the way in for root that docs/accounts.md describes
    if line.control == "sufficient":
        return True
    jumps = [int(n) for n in re.findall(r"=(\d+)\b", line.control)]
    return "=done" in line.control or any(n >= distance for n in jumps)


def _text(path: str) -> str:
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        return file.read(_MOST_BYTES)
    return ""
