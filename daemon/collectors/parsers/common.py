"""What every parser is and gives back.

A parser takes whole lines and gives columns; it must never open a file, ask the clock after it was made, or
raise for anything that a line holds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from ...events import I64, AuthBatch, Provenance


@dataclass(frozen=True)
class ParserOptions:
    """What a parser must know that is not in the lines.

    Parameters
    ----------
    year : the year of the first line, for syslog times, which have none; later lines roll over by themselves.
        None: for each line the newest year that puts it not later than `now_ns` and a day
    now_ns : receive time, for inferring the year and for lines without a time; None: when this object is made
    timezone : "local", "UTC" or an IANA name, for times without an offset
    hash_key : 16 bytes under which texts are hashed (`scan.keyed_hash`)
    trusted_proxies : networks whose `X-Forwarded-For` is believed
    provenance : how far the lines can be trusted
    verified_users : whether the service of an access log lets no user in whose password it has not checked
    """

    year: int | None = None
    now_ns: int | None = None
    timezone: str = "local"
    hash_key: bytes = b"\0" * 16
    trusted_proxies: tuple[str, ...] = ()
    provenance: Provenance = Provenance.FILE
    verified_users: bool = False
    received_ns: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "received_ns", time.time_ns() if self.now_ns is None else self.now_ns)


@dataclass(frozen=True)
class Parsed:
    """What a chunk held: a row for each line that was understood, in order, and the numbers of the others."""

    events: AuthBatch
    unparsed: I64
    lines: int


class Parser(Protocol):
    """Lines in, columns out; the same for any division of the lines into chunks with the same receive time."""

    name: ClassVar[str]

    def parse(self, chunk: bytes, first_line: int = 1, receive_ns: int | None = None) -> Parsed:
        """Parse whole lines (the last may lack its newline); `receive_ns`, when given, replaces `now_ns`.

        Raises ValueError where `chunk` has 2 GiB or more.
        """
        ...

    def save(self) -> dict[str, Any]:
        """What must survive a restart."""
        ...

    def load(self, state: dict[str, Any], /) -> None: ...
