"""The enforcer's work done by the command itself, as root, on the day when no enforcer answers.

It takes the journal's lock, so a dead enforcer's work is carried on where it stopped. Where a hung enforcer
still holds the lock, the kill switch acts on the kernel alone; the enforcer takes that over when it wakes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from ...config import FOLDER
from ..errors import EnforcerError, GatewatchError
from . import rails as rails_file
from .authority import Authority
from .callers import Caller
from .client import judged
from .deny_list import DENIED, DenyList
from .journal import Journal
from .kernel.nft import Nft
from .killswitch import Later
from .protocol import encode, parse
from .state import clocks

ETC_RAILS = f"{FOLDER}/rails.toml"
_WRITING = (
    "block", "unblock", "block_user", "unblock_user", "import", "kill", "release", "cut",
    "restrict", "lift", "grant", "deny", "signed",
)  # fmt: skip
_LOCK_S = 0.3


def rails_path(state: str) -> str:
    """Where the rails are: GATEWATCH_RAILS, else the enforcer's last valid copy, else /etc."""
    copy = f"{state}/enforcer/rails.toml"
    return os.environ.get("GATEWATCH_RAILS", "") or (copy if os.path.exists(copy) else ETC_RAILS)


class Direct:
    """Answers as `client.Enforcer.call` does, from the journal in `state` and the rails in `rails`.

    Raises GatewatchError where rails or library are missing.
    """

    def __init__(self, state: str, rails: str) -> None:
        self._state = state
        self._rails = rails
        self._authority: Authority | None = None

    def call(self, message: Mapping[str, object], timeout: float = 0.0) -> dict[str, Any]:
        """As `client.Enforcer.call`; `timeout` is not needed, as nobody is waited for."""
        ask = parse(encode(message))
        writing = ask["request"] in _WRITING
        if writing or self._authority is None:
            self._authority = self._open(writing, engaging=ask["request"] == "kill")
        caller = Caller("operator", os.geteuid(), os.getpid())
        answer = self._authority.handle(ask, caller)
        if isinstance(answer, Later):
            answer = answer.finish()
        if writing:
            self._authority.publish()
            self._authority.journal.close()
            self._authority = None
        return judged(json.dumps(answer).encode("ascii"))

    def _open(self, writing: bool, engaging: bool) -> Authority:
        now, folder = clocks(), f"{self._state}/enforcer"
        try:
            journal = Journal(folder, now, read_only=not writing, wait_s=_LOCK_S)
        except EnforcerError:  # held by a hung enforcer, or the disk does not let us
            if not engaging:
                raise
            journal = Journal(folder, now, read_only=True)
        published = None  # only who writes the journal writes what is derived from it
        if journal.writable:
            published = DenyList(f"{self._state}/{DENIED}", journal, now, gid=None)
        authority = Authority(journal, Nft(), now, published)
        try:
            authority.use(rails_file.load(self._rails))
        except GatewatchError as error:
            journal.close()
            glass = f"nft -f {folder}/break-glass.nft"
            raise type(error)(error.message, remedy=f"{error.remedy}; in need: {glass}") from None
        return authority
