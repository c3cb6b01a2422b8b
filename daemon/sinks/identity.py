"""Blocking a user at an identity provider: disable the account, end its sessions, and later enable it again.

An account that somebody else has disabled is left alone, and only one that we disabled is enabled again (`Holds`).
Every step may be repeated. A template (Keycloak, SCIM) says how an account is found and changed.
"""

from __future__ import annotations

import re
import time
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from .contract import Row
from .holds import Holds
from .hook import Document, Hook, seconds_of, split
from .http import Answer, Refused, judge


@dataclass(frozen=True, slots=True)
class Account:
    """A user as the provider knows it; `id` never changes."""

    id: str
    name: str
    active: bool


class IdentityProvider(Hook):
    """The common part of the templates; `holds` is the path of the file of what we disabled."""

    media_type = "application/json"
    forbidden = "permit what is asked to the account that the secret belongs to"
    """What a person does where the provider answers 401 or 403."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        self._holds = Holds(Path(options["holds"]))

    @abstractmethod
    async def find(self, kind: str, name: str) -> Account | None:
        """The account of a principal. Raises Refused where there are several."""

    @abstractmethod
    async def get(self, account_id: str) -> Account | None: ...

    @abstractmethod
    async def set_active(self, account: Account, active: bool) -> None: ...

    async def end_sessions(self, account: Account) -> None:
        """Ends what the account has open, where the provider can."""

    @abstractmethod
    async def authorization(self) -> str:
        """The value of the header Authorization."""

    @abstractmethod
    def forget_authorization(self) -> bool:
        """Whether another try may be better off, since there will be a new token."""

    async def deliver(self, row: Row, document: Document) -> None:
        if not document.id:
            raise Refused("the document has no action id")
        match document.do:
            case "block_user":
                await self._block(document)
            case "unblock_user":
                await self._unblock(document)
            case _:
                raise Refused(f"an identity provider cannot {document.do[:40]!r}")

    async def _block(self, document: Document) -> None:
        until_s = seconds_of(document.until)
        if until_s is not None and until_s <= time.time():
            raise Refused(f"the block was over at {document.until}, before it could be made")
        kind, name = split(document.user)
        account = await self.find(kind, name)
        if account is None:
            raise Refused(f"{document.user}: is not known there")
        # What was asked for may be an id, or the name in another spelling.
        self.refuse_protected(kind, account.name, f"{document.user} ({account.name})")
        held = self._holds.of(account.id)
        if account.active:
            # What held it before was undone by a person.
            self._holds.put(account.id, (document.id,))
            try:
                await self._change(account, False)
            except Refused:
                self._holds.put(account.id, ())
                raise
        elif held:
            self._holds.put(account.id, (*(i for i in held if i != document.id), document.id))
        else:
            return
        try:
            await self.end_sessions(account)
        except Refused as refused:
            raise Refused(
                f"the account is disabled, and its sessions could not be ended: {refused}"
            ) from None

    async def _unblock(self, document: Document) -> None:
        account_id = self._holds.account_of(document.id)
        if account_id is None:
            return
        others = tuple(i for i in self._holds.of(account_id) if i != document.id)
        account = await self.get(account_id)
        if account is not None and not account.active and not others:
            await self._change(account, True)
        self._holds.put(account_id, others)

    async def _change(self, account: Account, active: bool) -> None:
        """Providers answer with success where an attribute may not be written; so the account is read again."""
        await self.set_active(account, active)
        now = await self.get(account.id)
        if now is None or now.active != active:
            raise Refused(
                f"{account.name}: the change was accepted and not made; is the account read-only there?"
            )

    async def ask(self, method: str, path: str, body: Any = None, *, absent: bool = False) -> Answer:
        """One request below `self.url`, authorised. A 404 is the answer where `absent` permits it.

        Raises SinkError or Refused.
        """
        url = self.url + path
        content = None if body is None else msgspec.json.encode(body)
        for last in (False, True):
            headers = {"Authorization": await self.authorization(), "Accept": self.media_type}
            if content is not None:
                headers["Content-Type"] = self.media_type
            answer = await self.client.ask(method, url, headers, content)
            if answer.status != 401 or last or not self.forget_authorization():
                break
        if not (absent and answer.status == 404):
            what = f"{method} {url.partition('?')[0]}"
            judge(answer, what, {401: "check the secret file", 403: self.forbidden})
        return answer


def segment(account_id: str) -> str:
    """An id as a segment of a path. Raises Refused where it could lead to another path, such as `..`.

    What comes from a log may be any text: a request for /users/../ would change something else altogether.
    """
    if not re.fullmatch(r"[A-Za-z0-9_:@+=,~ .-]{1,256}", account_id) or set(account_id) <= {"."}:
        raise Refused(f"{account_id[:100]!r} is no id of an account")
    return quote(account_id, safe=":@")
