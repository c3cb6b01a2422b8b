"""Access logs of nginx: `combined`, Gatewatch's `gateway` format and the same as JSON, told apart line by line.

It decides who the client is: the peer, unless the peer is a trusted proxy. It must never believe an
`X-Forwarded-For` that no trusted proxy vouches for, and never accuse a proxy of what its clients do.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any, ClassVar

import msgspec
import numpy as np

from ...errors import UsageError
from ...events import AUTH_TEXTS, I32, I64, NS_PER_S, AuthBatch, Bool, Outcome, address_columns
from .common import Parsed, ParserOptions
from .scan import Scanner, count_lines, keyed_hash

SERVICE_NAME = b"nginx"
USER, SERVICE, METHOD, KEY, HOST, PATH = (
    AUTH_TEXTS.index(name) for name in ("user", "service", "method", "key", "host", "path")
)
JSON_LINE = -2
MOST_HOPS = 32
"""The most entries of an `X-Forwarded-For` that are looked at; nobody has more proxies in a row."""

FULL = (1 << 64) - 1
NS_PER_US = 1_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Entry(msgspec.Struct, gc=False):
    """The fields of a line of JSON that Gatewatch reads; others are ignored. `-`, `""` and null are unknown."""

    status: int | str
    time_iso8601: str | None = None
    remote_addr: str | None = None
    realip_remote_addr: str | None = None
    remote_user: str | None = None
    request_method: str | None = None
    request_uri: str | None = None
    api_key_id: str | int | None = None
    host: str | None = None
    http_x_forwarded_for: str | None = None


class NginxParser:
    """Parses an access log; see docs/formats.md for what becomes of each line."""

    name: ClassVar[str] = "nginx"

    def __init__(self, options: ParserOptions) -> None:
        self._options = options
        self._scanner = Scanner(options.hash_key, None, {}, (0, 0), frozenset(), b"\0", [])
        self._decoder = msgspec.json.Decoder(Entry)
        self._service = keyed_hash(SERVICE_NAME, options.hash_key)
        self._proxies = [_network(text) for text in options.trusted_proxies]

    def parse(self, chunk: bytes, first_line: int = 1, receive_ns: int | None = None) -> Parsed:
        if len(chunk) >= 1 << 30:
            raise ValueError("a chunk must be smaller than 1 GiB")
        most = count_lines(chunk)
        text = chunk + SERVICE_NAME
        batch = AuthBatch.blank(most, text)
        missed = np.zeros(most, np.int64)
        forwarded = np.full((most, 2), -1, np.int32)
        rows, misses, lines = self._scanner.access(chunk, first_line, batch, missed, forwarded)
        batch, forwarded, unparsed = batch.take(slice(0, rows)), forwarded[:rows], missed[:misses]
        batch.provenance[:] = self._options.provenance
        batch.verified[:] = self._options.verified_users
        batch.service[:] = self._service
        batch.spans[:, SERVICE] = len(chunk), len(text)
        of_json = np.flatnonzero(forwarded[:, 0] == JSON_LINE)
        good = np.ones(rows, np.bool_)
        if len(of_json):
            now_ns = self._options.received_ns if receive_ns is None else receive_ns
            batch = self._fill(batch, of_json, forwarded, good, now_ns)
        batch.client[:] = batch.peer
        batch.client_family[:] = batch.peer_family
        if self._proxies:
            self._find_clients(batch, forwarded)
        if not good.all():
            unparsed = np.sort(np.concatenate([unparsed, batch.line[~good]]))
            batch = batch.take(good)
        return Parsed(batch, unparsed, lines)

    def save(self) -> dict[str, Any]:
        return {}

    def load(self, state: dict[str, Any], /) -> None:
        pass

    def _decode(self, line: bytes) -> Entry | None:
        """One line of JSON. nginx writes bytes that are no UTF-8 as they came, and nobody may hide a line by them."""
        try:
            return self._decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            pass
        try:
            return self._decoder.decode(line.decode("utf-8", "replace"))
        except msgspec.MsgspecError:
            return None

    def _fill(self, batch: AuthBatch, rows: I64, forwarded: I32, good: Bool, now_ns: int) -> AuthBatch:
        """Fill the rows of lines of JSON; their texts, unescaped, are appended to the text of the batch, each once."""
        added = bytearray()
        base = len(batch.text)
        absent = (-1, -1, 0)
        texts: dict[str, tuple[int, int, int]] = {"": absent, "-": absent}
        addresses: dict[str, tuple[int, int, int]] = {}

        def place(value: str | int | None) -> tuple[int, int, int]:
            """Where the text stands, and its hash."""
            text = "" if value is None else str(value)
            found = texts.get(text)
            if found is None:
                data = text.encode("utf-8", "surrogatepass")
                start = base + len(added)
                found = texts[text] = start, start + len(data), keyed_hash(data, self._options.hash_key)
                added.extend(data)
            return found

        kept: list[int] = []
        numbers: list[tuple[int, int, int, int]] = []  # time, status, outcome, family
        hashes: list[tuple[int, int, int, int]] = []  # address high and low, user, key
        spans: list[list[tuple[int, int]]] = []
        for row, (start, end) in zip(rows.tolist(), batch.spans[rows, 0].tolist(), strict=True):
            entry = self._decode(batch.text[start:end])
            status = None if entry is None else _status(entry.status)
            if entry is None or status is None:
                good[row] = False
                continue
            peer = entry.realip_remote_addr or entry.remote_addr or ""
            address = addresses.get(peer)
            if address is None:
                address = addresses[peer] = address_columns(peer)
            user, key = place(entry.remote_user), place(entry.api_key_id)
            outcome = Outcome.OTHER
            if status in (401, 403):
                outcome = Outcome.FAILURE
            elif 100 <= status < 400 and (user[2] or key[2]):
                outcome = Outcome.SUCCESS
            kept.append(row)
            numbers.append((_time(entry.time_iso8601, now_ns), status, outcome, address[0]))
            hashes.append((address[1], address[2], user[2], key[2]))
            path = place((entry.request_uri or "").partition("?")[0])
            chain = place(entry.http_x_forwarded_for)
            said = (user, key, place(entry.request_method), path, place(entry.host), chain)
            spans.append([text[:2] for text in said])
        if kept:
            index = np.array(kept)
            filled, hashed = np.array(numbers, np.int64), np.array(hashes, np.uint64)
            placed = np.array(spans, np.int32)
            batch.time_ns[index], batch.status[index] = filled[:, 0], filled[:, 1]
            batch.outcome[index], batch.peer_family[index] = filled[:, 2], filled[:, 3]
            batch.peer[index], batch.user[index], batch.key[index] = hashed[:, :2], hashed[:, 2], hashed[:, 3]
            batch.spans[index[:, None], [USER, KEY, METHOD, PATH, HOST]] = placed[:, :5]
            forwarded[index] = placed[:, 5]
        return replace(batch, text=batch.text + bytes(added))

    def _find_clients(self, batch: AuthBatch, forwarded: I32) -> None:
        """Where the peer is a trusted proxy, the client is the first address from the right that is none."""
        behind = np.flatnonzero(self._trusted(batch.peer_family, batch.peer[:, 0], batch.peer[:, 1]))
        known: dict[bytes, tuple[int, int, int]] = {}
        for row in behind.tolist():
            start, end = forwarded[row].tolist()
            chain = batch.text[start:end] if start >= 0 else b""
            found = known.get(chain)
            if found is None:
                found = known[chain] = self._client(chain.decode("utf-8", "replace"))
            batch.client_family[row] = found[0]
            batch.client[row] = found[1:]

    def _client(self, chain: str) -> tuple[int, int, int]:
        for hop in (
            chain.rsplit(",", MOST_HOPS)[:0:-1] if chain.count(",") >= MOST_HOPS else chain.split(",")[::-1]
        ):
            found = _hop(hop)
            if not found[0]:
                break
            if not self._trusted(*(np.array([number], np.uint64) for number in found))[0]:
                return found
        return 0, 0, 0

    def _trusted(self, family: Any, high: Any, low: Any) -> Bool:
        trusted = np.zeros(len(family), np.bool_)
        for of, net_high, net_low, mask_high, mask_low in self._proxies:
            trusted |= (family == of) & (high & mask_high == net_high) & (low & mask_low == net_low)
        return trusted


def _network(text: str) -> tuple[int, np.uint64, np.uint64, np.uint64, np.uint64]:
    try:
        network: IPv4Network | IPv6Network = ip_network(text, strict=False)
    except ValueError as error:
        raise UsageError(
            f"trusted proxy {text!r} is no network",
            remedy="write it as an address or a CIDR, such as 10.0.0.0/8",
        ) from error
    number, mask = int(network.network_address), int(network.netmask)
    if network.version == 4:
        mask |= FULL << 64
    return (
        network.version,
        np.uint64(number >> 64),
        np.uint64(number & FULL),
        np.uint64(mask >> 64),
        np.uint64(mask & FULL),
    )


def _hop(text: str) -> tuple[int, int, int]:
    """The address of one entry of `X-Forwarded-For`, which may carry a port and brackets."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    return address_columns(text)


def _status(value: int | str) -> int | None:
    if isinstance(value, str):
        if not (value.isascii() and value.isdigit() and len(value) == 3):
            return None
        value = int(value)
    return value if 0 <= value <= 999 else None


def _time(text: str | None, now_ns: int) -> int:
    """RFC 3339 to ns; the receive time where there is none."""
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError:
        return now_ns
    since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - EPOCH
    ns = (since.days * 86_400 + since.seconds) * NS_PER_S + since.microseconds * NS_PER_US
    return ns if 0 <= ns < 1 << 63 else now_ns
