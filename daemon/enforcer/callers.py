"""Who asks the enforcer for something: as the kernel says, or as a signature proves. It decides nothing."""

from __future__ import annotations

from typing import Any, NamedTuple

_UNSET = 2**32 - 1  # pam_loginuid(8): nobody logged in


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
        """The uid; for root, of whoever became root (sudo keeps it). Others could lend a process to each other."""
        if self.uid != 0:
            return self.uid
        try:
            with open(f"/proc/{self.pid}/loginuid", encoding="ascii") as file:
                login = int(file.read())
        except (OSError, ValueError):
            return self.uid
        return self.uid if login == _UNSET else login

    @property
    def person(self) -> str:
        """Whom two different people have to differ in."""
        return f"signer {self.signer}" if self.signer and self.uid < 0 else f"uid {self.login}"

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
