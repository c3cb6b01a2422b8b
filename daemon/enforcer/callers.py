"""Who asks the enforcer for something: as the kernel says, or as a signature proves. It decides nothing."""

from __future__ import annotations

from typing import Any, NamedTuple

_UNSET = 2**32 - 1  # pam_loginuid(8): nobody logged in


def shared(person: str, other: str) -> bool:
    """Whether both can be the same person (`Caller.person`)."""
    return not set(person.split(", ")).isdisjoint(other.split(", "))


def _login_of(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/loginuid", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):  # it is gone, or the kernel has no audit
        return _UNSET


class Caller(NamedTuple):
    """Who asks, as the kernel says (SO_PEERCRED) or as a signature proves."""

    role: str  # "operator", "analyser" or "stranger"
    uid: int
    pid: int
    signer: str = ""
    said: str = ""  # for the journal, where others agreed
    asker: str = ""  # "analyser" where persons granted what it had asked for: it may take it back
    approval: str = ""  # the id of the request that was granted

    @property
    def login(self) -> int:
        """The uid of whoever logged in: sudo and su keep it. The process's own where nobody did."""
        login = _UNSET if self.signer else _login_of(self.pid)
        return self.uid if login == _UNSET else login

    @property
    def person(self) -> str:
        """Who that is: two different people share none of the accounts named here (`shared`). Root is everybody's,
        so there the login alone counts. Of others both do, as with `sudo -u` one acts by the account of another, and
        a setuid program acts by the account of who lent it."""
        if self.signer and self.uid < 0:
            return f"signer {self.signer}"
        login = self.login
        return f"uid {login}" if self.uid in (0, login) else f"uid {self.uid}, uid {login}"

    @property
    def name(self) -> str:
        """For the journal."""
        if self.said or self.role == "analyser":
            return self.said or self.role
        if self.signer:
            return f"signer {self.signer}"
        login = self.login
        return f"uid {self.uid}" if login == self.uid else f"uid {self.uid} (logged in as uid {login})"

    @property
    def owner(self) -> str:
        """Who may take back what is done now: "analyser", or "operator" for people alone."""
        return self.asker or self.role

    @property
    def noted(self) -> dict[str, Any]:
        """What an entry of the journal says of who did it."""
        return {"by": self.name, "approval": self.approval} if self.approval else {"by": self.name}
