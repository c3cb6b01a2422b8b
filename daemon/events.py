"""The columns that collectors hand to detectors, and how addresses, text and time are held in them.

Every column of a batch is a NumPy array of the same first dimension n. A batch is never changed after it
was made. Detectors see nothing of a log or a packet but these columns.

Addresses are 128-bit numbers as `uint64[n, 2]` (high, low) with a family column (`uint8`: 0 unknown, 4, 6).
An IPv4 address is (0, address); an IPv4-mapped IPv6 address is turned into IPv4. Prefixes are taken
per family.

Text (user, service, path, ...) is a keyed 64-bit hash for state (`uint64[n]`, 0 = absent) and a span
(`int32[n, 2]`, start and end) into the batch's `text` for people. No string is made for an event that nobody
looks at, and what a batch holds is bounded by the chunk that it was parsed from.

Time is int64 nanoseconds since 1970-01-01T00:00:00Z.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas

I64 = NDArray[np.int64]
I32 = NDArray[np.int32]
U64 = NDArray[np.uint64]
U32 = NDArray[np.uint32]
U16 = NDArray[np.uint16]
U8 = NDArray[np.uint8]
Bool = NDArray[np.bool_]

NS_PER_S = 1_000_000_000
IPv4Address = ipaddress.IPv4Address
IPv6Address = ipaddress.IPv6Address
Address = IPv4Address | IPv6Address


class Outcome(IntEnum):
    """What an authentication event says. `label` is what users see as `outcome`."""

    OTHER = 0  # understood, and says nothing about a login
    SUCCESS = 1
    FAILURE = 2  # one attempt with a credential failed
    INVALID_USER = 3  # the service was asked for an account that does not exist
    PAM_FAILURE = 4  # PAM's own line about an attempt that the service may log as well
    DISCONNECT = 5  # the peer left, or was sent away, before it had authenticated
    SESSION_OPENED = 6
    SESSION_CLOSED = 7
    FACTOR_DENIED = 8  # a second factor was asked for and was denied, was wrong or ran out

    @property
    def label(self) -> str:
        return "failure" if self in (Outcome.PAM_FAILURE, Outcome.FACTOR_DENIED) else self.name.lower()


class Provenance(IntEnum):
    """How far the origin of an event can be trusted, in rising order."""

    NETWORK = 0  # UDP syslog: anyone can have sent it
    FILE = 1  # a text file that any local user may have written to through syslog
    JOURNAL = 2  # the journal with trusted fields: root wrote it from that unit
    DECLARED = 3  # the operator declared the collector trusted
    KERNEL = 4  # seen on the wire by the packet collector


class FlowState(IntEnum):
    """The furthest that a connection got."""

    OTHER = 0  # not TCP, or its beginning was not seen
    SYN = 1
    ESTABLISHED = 2
    REFUSED = 3
    CLOSED = 4


class Direction(IntEnum):
    """Where a flow goes, seen from the gateway's own addresses."""

    UNKNOWN = 0
    INGRESS = 1
    EGRESS = 2
    LOCAL = 3


def rfc3339(time_ns: int) -> str:
    """`2026-11-24T08:00:00.25Z`: UTC, with no more digits of the second than the time has."""
    seconds, fraction = divmod(time_ns, NS_PER_S)
    try:
        text = datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat()[:19]
    except (ValueError, OverflowError, OSError):
        return f"@{seconds}"
    return f"{text}.{fraction:09d}".rstrip("0").rstrip(".") + "Z" if fraction else text + "Z"


def address_text(family: int, high: int, low: int) -> str:
    """The usual text of an address (RFC 5952 for IPv6); `""` for family 0."""
    if family == 4:
        return f"{low >> 24}.{low >> 16 & 0xFF}.{low >> 8 & 0xFF}.{low & 0xFF}"
    if family == 6:
        return str(IPv6Address((high << 64) | low))
    return ""


def address_columns(text: str) -> tuple[int, int, int]:
    """(family, high, low) of an address; (0, 0, 0) where `text` is none. IPv4-mapped IPv6 becomes IPv4."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return 0, 0, 0
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is None:
            number = int(address)
            return 6, number >> 64, number & 0xFFFF_FFFF_FFFF_FFFF
        address = address.ipv4_mapped
    return 4, 0, int(address)


class _Columns:
    """What both batches share: slicing and concatenation over whatever columns the dataclass names."""

    __slots__ = ()

    time_ns: I64
    text: bytes
    spans: I32

    @classmethod
    def _columns(cls) -> list[str]:
        made: Any = cls
        return [f.name for f in fields(made) if f.name != "text"]

    def __len__(self) -> int:
        return len(self.time_ns)

    def take(self, index: slice | NDArray[Any]) -> Self:
        """The rows that `index` (a slice, an index array or a mask) selects, with the same text."""
        made: Any = type(self)
        chosen: Self = made(**{n: getattr(self, n)[index] for n in self._columns()}, text=self.text)
        return chosen

    @classmethod
    def concatenate(cls, batches: Sequence[Self]) -> Self:
        """All rows in order; texts are joined and spans moved.

        Raises ValueError where `batches` is empty.
        """
        if not batches:
            raise ValueError("nothing to concatenate")
        if len(batches) == 1:
            return batches[0]
        columns = {n: np.concatenate([getattr(b, n) for b in batches]) for n in cls._columns()}
        spans, at = [], 0
        for batch in batches:
            spans.append(np.where(batch.spans < 0, batch.spans, batch.spans + np.int32(at)))
            at += len(batch.text)
        columns["spans"] = np.concatenate(spans)
        made: Any = cls
        joined: Self = made(**columns, text=b"".join(b.text for b in batches))
        return joined

    def _text(self, row: int, column: int) -> str:
        start, end = self.spans[row, column].tolist()
        return "" if start < 0 else self.text[start:end].decode("utf-8", "backslashreplace")


AUTH_TEXTS = ("raw", "user", "service", "method", "key", "host", "path")
"""The columns of `AuthBatch.spans`, in order; `raw` is the whole line."""


@dataclass(frozen=True, slots=True)
class AuthBatch(_Columns):
    """Login attempts and what belongs to them; one row is one line of a log (or one message of a journal).

    `peer` is the address at layer 3, `client` whom the request is from; they differ behind a proxy.
    """

    time_ns: I64
    outcome: U8  # Outcome
    count: U32  # how many attempts the row tells of ("message repeated N times"), at least 1
    status: U16  # HTTP status, 0 where there is none
    peer: U64  # [n, 2]
    peer_family: U8
    client: U64  # [n, 2]
    client_family: U8
    user: U64  # keyed hash, 0 = unknown
    service: U64
    key: U64  # opaque key id of the gateway's clients
    verified: Bool  # of a request: its service admits no `user` whose password it has not checked
    session: U64  # hash of host, program and process id: joins the lines of one connection; 0 = none
    provenance: U8  # Provenance
    line: I64  # number of the line in its source, from 1
    text: bytes
    spans: I32  # [n, len(AUTH_TEXTS), 2], -1 where absent

    @classmethod
    def empty(cls) -> Self:
        return cls.blank(0, b"")

    @classmethod
    def blank(cls, n: int, text: bytes) -> Self:
        """n rows in which nothing is known, for a parser to start from before the batch is shared."""
        return cls(
            time_ns=np.zeros(n, np.int64),
            outcome=np.zeros(n, np.uint8),
            count=np.ones(n, np.uint32),
            status=np.zeros(n, np.uint16),
            peer=np.zeros((n, 2), np.uint64),
            peer_family=np.zeros(n, np.uint8),
            client=np.zeros((n, 2), np.uint64),
            client_family=np.zeros(n, np.uint8),
            user=np.zeros(n, np.uint64),
            service=np.zeros(n, np.uint64),
            key=np.zeros(n, np.uint64),
            verified=np.zeros(n, np.bool_),
            session=np.zeros(n, np.uint64),
            provenance=np.full(n, Provenance.FILE, np.uint8),
            line=np.zeros(n, np.int64),
            text=text,
            spans=np.full((n, len(AUTH_TEXTS), 2), -1, np.int32),
        )

    def text_of(self, row: int, column: str) -> str:
        """The text of one of `AUTH_TEXTS` in one row, `""` where absent; what is no UTF-8 is escaped."""
        return self._text(row, AUTH_TEXTS.index(column))

    def source_of(self, row: int) -> str:
        """The client's address as text."""
        return address_text(int(self.client_family[row]), *self.client[row].tolist())

    def to_pandas(self) -> pandas.DataFrame:
        """For people: one row an event, names and addresses as text."""
        import pandas

        return pandas.DataFrame(
            {
                "time": pandas.to_datetime(self.time_ns, utc=True),
                "outcome": [Outcome(o).label for o in self.outcome.tolist()],
                "count": self.count,
                "source": [self.source_of(i) for i in range(len(self))],
                **{n: [self.text_of(i, n) for i in range(len(self))] for n in AUTH_TEXTS[1:]},
                "status": self.status,
                "line": self.line,
            }
        )


FLOW_TEXTS = ("server_name", "query")
"""The columns of `FlowBatch.spans`, in order."""


@dataclass(frozen=True, slots=True)
class FlowBatch(_Columns):
    """Connections, and what is known of each at this moment; a flow appears again when its state changes.

    `source` is who opened the flow. Rows come in the order of `time_ns`, the moment that the row tells of.
    """

    time_ns: I64  # when this row became true
    first_ns: I64
    last_ns: I64
    source: U64  # [n, 2]
    destination: U64  # [n, 2]
    family: U8
    source_port: U16
    destination_port: U16
    protocol: U8  # IANA protocol number
    state: U8  # FlowState
    direction: U8  # Direction
    packets_out: I64  # from source to destination, as seen
    packets_in: I64
    bytes_out: I64  # payload from source to destination; exact for TCP whose two ends were seen
    bytes_in: I64
    flow: U64  # keyed hash of the five-tuple and the first time: names the flow through all of its rows
    frame: I64  # number of the frame, from 1, that made this row; 0 for a live capture
    provenance: U8
    text: bytes = b""
    spans: I32 = field(default_factory=lambda: np.zeros((0, len(FLOW_TEXTS), 2), np.int32))

    @classmethod
    def empty(cls) -> Self:
        return cls.blank(0)

    @classmethod
    def blank(cls, n: int, text: bytes = b"") -> Self:
        """n rows in which nothing is known, for the flow table to start from before the batch is shared."""
        return cls(
            time_ns=np.zeros(n, np.int64),
            first_ns=np.zeros(n, np.int64),
            last_ns=np.zeros(n, np.int64),
            source=np.zeros((n, 2), np.uint64),
            destination=np.zeros((n, 2), np.uint64),
            family=np.zeros(n, np.uint8),
            source_port=np.zeros(n, np.uint16),
            destination_port=np.zeros(n, np.uint16),
            protocol=np.zeros(n, np.uint8),
            state=np.zeros(n, np.uint8),
            direction=np.zeros(n, np.uint8),
            packets_out=np.zeros(n, np.int64),
            packets_in=np.zeros(n, np.int64),
            bytes_out=np.zeros(n, np.int64),
            bytes_in=np.zeros(n, np.int64),
            flow=np.zeros(n, np.uint64),
            frame=np.zeros(n, np.int64),
            provenance=np.full(n, Provenance.KERNEL, np.uint8),
            text=text,
            spans=np.full((n, len(FLOW_TEXTS), 2), -1, np.int32),
        )

    def text_of(self, row: int, column: str) -> str:
        """The text of one of `FLOW_TEXTS` in one row; `""` where it is absent."""
        return self._text(row, FLOW_TEXTS.index(column))

    def source_of(self, row: int) -> str:
        return address_text(int(self.family[row]), *self.source[row].tolist())

    def destination_of(self, row: int) -> str:
        return address_text(int(self.family[row]), *self.destination[row].tolist())

    def to_pandas(self) -> pandas.DataFrame:
        """For people: one row a flow record, addresses as text."""
        import pandas

        return pandas.DataFrame(
            {
                "time": pandas.to_datetime(self.time_ns, utc=True),
                "source": [self.source_of(i) for i in range(len(self))],
                "source_port": self.source_port,
                "destination": [self.destination_of(i) for i in range(len(self))],
                "destination_port": self.destination_port,
                "protocol": self.protocol,
                "state": [FlowState(s).name.lower() for s in self.state.tolist()],
                "direction": [Direction(d).name.lower() for d in self.direction.tolist()],
                "bytes_out": self.bytes_out,
                "bytes_in": self.bytes_in,
                "frame": self.frame,
            }
        )
