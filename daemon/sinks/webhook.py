"""Documents as they are, sent by POST and signed: the generic hook.

The receiver has a document for good once it answers 2xx; until then the same one comes again, with the same
`webhook-id`, by which the receiver can tell.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec

from ..events import NS_PER_S, rfc3339
from .contract import Row
from .hook import Document, Hook
from .http import Answer, Refused, judge
from .signature import message_id, signed_headers, signing_keys


class Webhook(Hook):
    """Sends each document to `url`. The options are those of `Hook`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(options)
        self.url = options["url"]  # as it was written: a receiver may tell / from nothing
        self._keys = signing_keys(self.secret, options["secret_file"])

    async def deliver(self, row: Row, document: Document) -> None:
        body = bytes(row.document)
        if not body.lstrip().startswith(b"{"):
            raise Refused("not a JSON object")
        judge(await self._post(message_id(row.key), body), self.url)

    async def test(self) -> Answer:
        """Sends a signed document whose `do` is `test`."""
        now = rfc3339(time.time_ns() // NS_PER_S * NS_PER_S)
        document = {
            "event": "hook", "do": "test", "id": "test", "reason": "gatewatch hooks test", "time": now,
        }  # fmt: skip
        return await self._post(f"test-{time.time_ns():x}", msgspec.json.encode(document))

    async def _post(self, message: str, body: bytes) -> Answer:
        headers = {
            "Content-Type": "application/json",
            **signed_headers(self._keys, message, int(time.time()), body),
        }
        return await self.client.ask("POST", self.url, headers, body)
