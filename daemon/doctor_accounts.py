"""What `gatewatch doctor` checks about Unix accounts: whether a blocked one is really kept out, and how to mend it."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path

from .doctor import Check, State
from .enforcer import pamstack

MOST_SHOWN = 5


def account_checks(
    status: Path, file: str, *, wanted: bool, pam: str = pamstack.FOLDER, sshd: str = pamstack.SSHD
) -> Iterator[Check]:
    """`status` is where the helper says what it did, `file` what PAM asks; `wanted`: the rails want the helper."""
    if not wanted:
        yield from _left_over(file)
        return
    there = [service for service in pamstack.SERVICES if Path(pam, service).exists()]
    for service in there:
        problems = pamstack.missing(service, file, pam)
        if problems:
            lines = " and ".join(pamstack.rule(stack, file) for stack in pamstack.STACKS)
            remedy = f"at the top of {pam}/{service}: {lines}"
            state: State = "fail" if service == "sshd" else "warn"  # the console may be the last way in
            yield Check(f"PAM of {service}", state, "; ".join(problems), remedy)
        else:
            yield Check(f"PAM of {service}", "ok", f"asks {file}")
    if "sshd" in there and pamstack.uses_pam(sshd) is False:
        yield Check("sshd", "fail", f"{sshd} does not say UsePAM yes", "UsePAM yes there, and restart sshd")
    yield _file(file)
    yield _helper(status)


def _left_over(file: str) -> Iterator[Check]:
    """Without the helper nobody takes a name out of the file when its time has come."""
    try:
        denied = Path(file).read_text(errors="replace").splitlines()
    except OSError:
        return
    if denied:
        shown = ", ".join(denied[:MOST_SHOWN]) + (" …" if len(denied) > MOST_SHOWN else "")
        detail = f"the helper is off (accounts_helper), and {file} still denies {shown}"
        yield Check("denied accounts", "warn", detail, f"rm {file}, or switch the helper on again")


def _file(file: str) -> Check:
    try:
        mode = Path(file).lstat().st_mode
    except FileNotFoundError:
        detail = f"{file} is not there: nobody is kept out"
        return Check("denied accounts", "warn", detail, "see whether gatewatch-accounts runs")
    if not stat.S_ISREG(mode) or mode & stat.S_IWOTH:
        detail = f"{file} is no plain file, or everybody may write it: PAM lets nobody in"
        return Check("denied accounts", "fail", detail, f"rm {file}; the helper makes it anew")
    if mode & stat.S_IWGRP:
        detail = f"{file}: others than root may write it"
        return Check("denied accounts", "fail", detail, f"rm {file}; the helper makes it anew")
    return Check("denied accounts", "ok", file)


def _helper(status: Path) -> Check:
    remedy = "see what gatewatch-accounts says"
    try:
        said = json.loads(status.read_text())
        if said["problems"]:
            return Check("accounts helper", "warn", "; ".join(said["problems"]), remedy)
        detail = f"{len(said['denied'])} denied, {len(said['refused'])} asked for and never denied"
    except OSError as error:
        return Check("accounts helper", "warn", f"{status}: {error.strerror}", remedy)
    except (ValueError, KeyError, TypeError):
        return Check("accounts helper", "warn", f"{status} cannot be read", remedy)
    return Check("accounts helper", "ok", detail)
