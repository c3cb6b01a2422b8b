"""Near-valid input from a fuzzer's bytes: requests, rails, answers and damaged journals that get past the first check.

`Provider` takes the bytes apart as atheris.FuzzedDataProvider does, which stands in its place where there is one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any, Protocol

from gatewatch.daemon.enforcer import signatures
from gatewatch.daemon.enforcer.protocol import CHOICES, REQUESTS

SEED = bytes(range(32))
"""The private key of the one signer whom the rails name."""

ADDRESSES = (
    "203.0.113.7", "203.0.113.8", "203.0.113.0/24", "2001:db8:1::7", "2001:db8:1::/64", "2001:db8:1::/48",
    "::ffff:203.0.113.7", "203.0.113.7/32", "0.0.0.0/0", "::/0", "10.1.0.9", "10.1.0.0/24", "192.0.2.1",
    "192.0.2.0/24", "192.0.2.254", "198.51.100.53", "127.0.0.1", "::1", "fe80::1%eth0", "224.0.0.1", "203.0.113.70",
    "198.51.100.10", "203.0.113.7/33", "203.0.113.300", "1", "::ffff:10.1.0.9", "::ffff:0:0/96", "64:ff9b::a01:9",
)  # fmt: skip
USERS = (
    "alice", "bob", "root", "breakglass", "ghost", "k-0011223344556677", "a:b", " ", "\u00e9", "x" * 256, "x" * 257,
)  # fmt: skip
ENDPOINTS = ("models", "automatic", "spared", "door", "mapped", "", "*", "nobody", "models\n")
TEXTS = (
    "a",
    "login burst",
    "x" * 500,
    "x" * 501,
    "\u202e",
    "\U0001f600" * 500,
    "\x1b[2J",
    '"\\',
    "\ud800",
    "A1",
    "A2",
)
NUMBERS = (0, 1, 2, 60, 3600, 3601, 604_800, 10**9, 10**9 + 1, 2**31, 2**53, 2**63, 2**64, 10**30, -1)
RAILS_WORDS = (
    "management", "never_block", "proxies", "sinks", "operators", "two_people", "cut_helper", "limits", "endpoint",
    "signer", "never_block_users", "accounts_helper", "allowed", "restrict_without_person", "most_users",
    "most_waiting", "name", "fronts", "backs", "kill_switch", "kill_without_person", "criticality", "namespaces",
    "public_key", "uid", "most_blocks", "most_new_per_minute", "longest_ttl_s",
    "smallest_prefix_ipv4", "smallest_prefix_ipv6",
)  # fmt: skip
SERVICES = ("*:443/tcp", "*:8443/udp", "192.0.2.10:8000/tcp", "[2001:db8::1]:80/tcp", "*:22/tcp", "*:0/tcp", "x:1/tcp",
            "127.0.0.1:8000/tcp", "*:65536/tcp", "*:443/sctp", "::1:80/tcp", "[192.0.2.1]:80/tcp")  # fmt: skip


class Bytes(Protocol):
    """What is used of atheris.FuzzedDataProvider."""

    def ConsumeIntInRange(self, least: int, most: int) -> int: ...
    def ConsumeBytes(self, count: int) -> bytes: ...
    def ConsumeUnicode(self, count: int) -> str: ...
    def remaining_bytes(self) -> int: ...


class Provider:
    """For where atheris cannot be installed."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def ConsumeIntInRange(self, least: int, most: int) -> int:
        size = ((most - least).bit_length() + 7) // 8
        return least + int.from_bytes(self.ConsumeBytes(size), "little") % (most - least + 1)

    def ConsumeBytes(self, count: int) -> bytes:
        taken, self._data = self._data[:count], self._data[count:]
        return taken

    def ConsumeUnicode(self, count: int) -> str:
        return self.ConsumeBytes(count).decode("utf-8", "surrogateescape")

    def remaining_bytes(self) -> int:
        return len(self._data)


def pick(bytes_: Bytes, choices: Sequence[Any]) -> Any:
    return choices[bytes_.ConsumeIntInRange(0, len(choices) - 1)]


def text(bytes_: Bytes, known: Sequence[str]) -> str:
    if bytes_.ConsumeIntInRange(0, 3):
        return str(pick(bytes_, known))
    return bytes_.ConsumeUnicode(bytes_.ConsumeIntInRange(0, 40))


def number(bytes_: Bytes) -> Any:
    return pick(bytes_, NUMBERS) if bytes_.ConsumeIntInRange(0, 1) else bytes_.ConsumeIntInRange(0, 4000)


def address(bytes_: Bytes) -> str:
    if bytes_.ConsumeIntInRange(0, 1):
        return text(bytes_, ADDRESSES)
    return pick(bytes_, ("203.0.113.{}", "203.0.{}.0/24", "2001:db8:1::{}", "2001:db8:{}::/48")).format(  # type: ignore[no-any-return]
        bytes_.ConsumeIntInRange(0, 255)
    )


def value(bytes_: Bytes, kind: str, name: str) -> Any:
    """One that fits the field most of the time."""
    if bytes_.ConsumeIntInRange(0, 15) == 0:
        return pick(bytes_, (None, True, 1.5, [], {}, [[]], "", -1, ["models", 1], {"a": 1}))
    if kind == "number":
        return number(bytes_)
    if kind == "names":
        return [text(bytes_, ENDPOINTS) for _ in range(bytes_.ConsumeIntInRange(0, 4))]
    if kind == "blocks":
        found = [[address(bytes_), number(bytes_)] for _ in range(bytes_.ConsumeIntInRange(0, 5))]
        return found * pick(bytes_, (1, 1, 1, 60, 100))
    if kind in CHOICES:
        return text(bytes_, CHOICES[kind])
    if name == "user":
        return text(bytes_, USERS)
    return address(bytes_) if name == "address" else text(bytes_, TEXTS)


def request(bytes_: Bytes, *, signed: bool = True) -> dict[str, Any]:
    kind = pick(bytes_, [k for k in REQUESTS if signed or k != "signed"])
    if kind == "signed" and bytes_.ConsumeIntInRange(0, 3):
        return _signed(bytes_)
    made: dict[str, Any] = {"request": kind}
    for name, (type_, required, _) in REQUESTS[kind].items():
        if bytes_.ConsumeIntInRange(0, 31) if required else bytes_.ConsumeIntInRange(0, 1):
            made[name] = value(bytes_, type_, name)
    if bytes_.ConsumeIntInRange(0, 31) == 0:
        made[text(bytes_, ("page", "ttl_s", "by", "owner", "uid"))] = value(bytes_, "text", "")
    return made


def message(bytes_: Bytes) -> bytes:
    """A request as it comes over the socket: whole, damaged, or anything at all."""
    how = bytes_.ConsumeIntInRange(0, 15)
    if how == 0:
        return bytes_.ConsumeBytes(bytes_.ConsumeIntInRange(0, 300)) * pick(bytes_, (1, 1, 1, 300))
    if how == 1:
        return pick(bytes_, (b"[" * 70_000, b"[" * 5_000, b'{"a":' * 900, b"9" * 5_000, b" " * 65_537, b""))  # type: ignore[no-any-return]
    data = json.dumps(request(bytes_)).encode("ascii")
    return damaged(bytes_, data) if how == 2 else data


def damaged(bytes_: Bytes, data: bytes) -> bytes:
    for _ in range(bytes_.ConsumeIntInRange(1, 3)):
        at = bytes_.ConsumeIntInRange(0, len(data))
        how = bytes_.ConsumeIntInRange(0, 3)
        if how == 0 and at < len(data):
            data = data[:at] + bytes([data[at] ^ 1 << bytes_.ConsumeIntInRange(0, 7)]) + data[at + 1 :]
        elif how == 1:
            data = data[:at]
        elif how == 2:
            data = data[:at] + bytes_.ConsumeBytes(bytes_.ConsumeIntInRange(1, 8)) + data[at:]
        else:
            data = data[:at] + data[at + bytes_.ConsumeIntInRange(1, 16) :]
    return data


def lines_changed(bytes_: Bytes, data: bytes) -> bytes:
    """Lines that are removed, swapped, doubled, or damaged."""
    lines = data.splitlines(keepends=True)
    if lines:
        at, other = bytes_.ConsumeIntInRange(0, len(lines) - 1), bytes_.ConsumeIntInRange(0, len(lines) - 1)
        how = bytes_.ConsumeIntInRange(0, 3)
        if how == 0:
            del lines[at]
        elif how == 1:
            lines[at], lines[other] = lines[other], lines[at]
        elif how == 2:
            lines.insert(at, lines[other])
        else:
            lines[at] = damaged(bytes_, lines[at])
    return b"".join(lines)


def rails(bytes_: Bytes) -> str:
    """TOML that has the keys of `rails.toml`, and values of many kinds."""
    lines = []
    for _ in range(bytes_.ConsumeIntInRange(0, 12)):
        table = bytes_.ConsumeIntInRange(0, 9)
        if table < 4:
            lines.append(("[[endpoint]]", "[limits]", "[[signer]]", "[[endpoint]]")[table])
        lines.append(f"{text(bytes_, RAILS_WORDS)} = {_toml(bytes_)}")
    return "\n".join(lines)


def answer(bytes_: Bytes) -> bytes:
    keys = ("ok", "refused", "rail", "error", "remedy", "blocks", "next")
    made = {
        text(bytes_, keys): value(bytes_, pick(bytes_, ("number", "names", "text")), "") for _ in range(3)
    }
    data = json.dumps({"ok": bool(bytes_.ConsumeIntInRange(0, 1)), **made}).encode("ascii")
    return damaged(bytes_, data) if bytes_.ConsumeIntInRange(0, 1) else data


def _toml(bytes_: Bytes) -> str:
    how = bytes_.ConsumeIntInRange(0, 6)
    if how == 0:
        return str(number(bytes_))
    if how == 1:
        return json.dumps(text(bytes_, (*TEXTS, *ENDPOINTS, "critical", "root")), ensure_ascii=False)
    if how == 2:
        return json.dumps([text(bytes_, ADDRESSES)])
    if how == 3:
        return json.dumps([text(bytes_, SERVICES), text(bytes_, SERVICES)])
    if how == 4:
        return str(
            pick(
                bytes_, ("true", "false", "nan", "1.5", "{}", "[[]]", '["release"]', "1979-05-27", '"""x"""')
            )
        )
    if how == 5:
        return '"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="'
    return bytes_.ConsumeUnicode(20)


def _signed(bytes_: Bytes) -> dict[str, Any]:
    """A command that is signed as it must be, of which one thing may be wrong."""
    wrong = bytes_.ConsumeIntInRange(0, 7)
    asked = {k: v for k, v in request(bytes_, signed=False).items() if isinstance(v, (str, int, list))}
    made, signature = signatures.command(
        asked,
        target="elsewhere" if wrong == 1 else signatures.this_machine(),
        sequence=bytes_.ConsumeIntInRange(0, 9) if wrong != 2 else pick(bytes_, NUMBERS),
        nonce="n" * (100 if wrong == 3 else 8),
        expires=int(time.time()) + (-5 if wrong == 4 else 100),
        seed=SEED[::-1] if wrong == 5 else SEED,
    )
    if wrong == 6:
        made = damaged(bytes_, made.encode("ascii")).decode("ascii", "replace")
    return {"request": "signed", "command": made, "signer": "alice", "signature": signature}
