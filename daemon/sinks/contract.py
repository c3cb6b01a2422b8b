"""What a sink is, and how it says that it could not take a document.

To add a sink, write its module beside this one, name it in `registry.py`, and the contract tests run on it. A sink
must never lose the order of what it is given, nor say that it has what a power cut could still take from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from ..errors import GatewatchError

LARGEST_DOCUMENT = 4 << 20
"""Bytes of JSON; a larger document is never sent, and is put aside as dead."""

WINDOW = 128
"""The most rows that a sink may have been sent and not acknowledged."""


class Row(msgspec.Struct, frozen=True):
    """One document for one sink. `id` rises; `key` is stable, so that the receiver can tell a double."""

    sink: str
    id: int
    key: str
    document: msgspec.Raw


class SinkError(GatewatchError):
    """The sink cannot take documents now; the same ones are tried again, after `wait_s` seconds at the earliest."""

    def __init__(self, message: str, *, remedy: str = "", wait_s: float = 0.0) -> None:
        super().__init__(message, remedy=remedy)
        self.wait_s = wait_s


class RejectedError(GatewatchError):
    """The sink will never take the row with this id. The rows before it in the same call are written."""

    def __init__(self, row_id: int, reason: str) -> None:
        super().__init__(reason)
        self.row_id = row_id


class Sink(Protocol):
    """Where documents go. One task uses it, a call at a time, and a call is never cancelled half-way."""

    async def write(self, rows: Sequence[Row]) -> None:
        """Writes rows in order; when it returns the receiver has them for good.

        Rows may come again after a failure or a restart: a sink that can tell leaves out those that it has.
        A sink with an attribute `most_rows` is given no more at once. Raises SinkError (all of them come again) or
        RejectedError.
        """
        ...

    async def close(self) -> None: ...
