"""What all hooks share: which documents they take, for whom, and how long they go on trying.

A hook is a sink that gets only the documents that are addressed to it. It must never act on a user whom the rails
protect, whoever asks.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from .contract import RejectedError, Row, SinkError
from .hook_files import read_secret, tls
from .http import Answer, Client, Refused

KINDS = ("account", "key", "subject", "certificate", "any")


class Document(msgspec.Struct):
    """What a hook needs to know of a document; the whole is described in docs/hooks.md."""

    event: str = ""
    do: str = ""
    id: str = ""
    user: str = ""
    until: str = ""
    time: str = ""
    reason: str = ""


class Hook(ABC):
    """The common part of a hook; a template adds `deliver` and `test`.

    Parameters
    ----------
    secret_file, ca_file, client_certificate, client_key: paths; read when the hook is made. Raises ConfigError.
    kinds: the kinds of principals that it takes.
    protected: users that it never blocks, as KIND:NAME; `any` stands for every kind.
    timeout_s, give_up_s: seconds of one request, and of the attempts at one document.
    """

    most_rows = 1

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.url: str = options["url"].rstrip("/")
        self.secret = read_secret(options["secret_file"])
        self.client = Client(tls(options), options.get("timeout_s", 10))
        self._kinds = frozenset(options.get("kinds", KINDS))
        self._protected = [tuple(p.split(":", 1)) for p in options.get("protected", ())]
        self._give_up_s: float = options.get("give_up_s", 86_400)

    @abstractmethod
    async def deliver(self, row: Row, document: Document) -> None:
        """Carries one document out. Raises SinkError (it is tried again) or Refused (never)."""

    @abstractmethod
    async def test(self) -> Answer:
        """Asks the receiver for something that changes nothing. Raises SinkError."""

    async def write(self, rows: Sequence[Row]) -> None:
        for row in rows:
            try:
                document = msgspec.json.decode(row.document, type=Document)
                self._check(document)
            except (msgspec.MsgspecError, RecursionError) as error:
                raise RejectedError(row.id, f"not a document for hooks: {error}") from None
            except Refused as refused:
                raise RejectedError(row.id, str(refused)) from None
            try:
                await self.deliver(row, document)
            except Refused as refused:
                raise RejectedError(row.id, str(refused)) from None
            except SinkError as error:
                asked_s = seconds_of(document.time)
                if asked_s is not None and time.time() - asked_s > self._give_up_s:
                    raise RejectedError(
                        row.id, f"given up after {self._give_up_s:g} s: {error.message}"
                    ) from None
                raise

    async def close(self) -> None:
        await self.client.close()

    def _check(self, document: Document) -> None:
        if document.user:
            kind, name = split(document.user)
            if kind not in self._kinds:
                raise Refused(f"{document.user}: this hook takes {', '.join(sorted(self._kinds))} alone")
            if document.do == "block_user":
                self.refuse_protected(kind, name, document.user)

    def refuse_protected(self, kind: str, name: str, shown: str) -> None:
        """Raises Refused where that user is never blocked; names that differ in case alone are the same."""
        for never, whom in self._protected:
            if whom.lower() == name.lower() and (never == kind or "any" in (never, kind)):
                raise Refused(f"{shown}: is never blocked (rail never_block_users)")


def split(user: str) -> tuple[str, str]:
    """Kind and name of a principal. Raises Refused."""
    kind, colon, name = user.partition(":")
    if not colon or kind not in KINDS or not 1 <= len(name) <= 256 or not name.isprintable():
        raise Refused(f"{user[:100]!r} names nobody; KIND:NAME is needed")
    return kind, name


def seconds_of(time_text: str) -> float | None:
    """Unix seconds of a time in RFC 3339; None where it is none."""
    try:
        return datetime.fromisoformat(time_text).timestamp()
    except (ValueError, OverflowError, OSError):
        return None
