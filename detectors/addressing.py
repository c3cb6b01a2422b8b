"""Keys and texts of networks, and how two keys are joined into one. Hashes are keyed: nobody who does not know
the key can choose addresses that fall into one bucket."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from ..daemon.events import U8, U64, address_text

_ODD = np.uint64(0x9E37_79B9_7F4A_7C15)  # 2**64 / golden ratio, as in SplitMix64
_MIX = np.uint64(0xBF58_476D_1CE4_E5B9)  # SplitMix64 finaliser (Steele, Lea, Flood 2014)

_WHOLE = (1 << 64) - 1


def _scramble(x: U64) -> U64:
    x = (x ^ (x >> np.uint64(30))) * _MIX
    x = (x ^ (x >> np.uint64(27))) * _ODD
    made: U64 = x ^ (x >> np.uint64(31))
    return made


def _scramble_one(x: int) -> int:
    x = ((x ^ (x >> 30)) * int(_MIX)) & _WHOLE
    x = ((x ^ (x >> 27)) * int(_ODD)) & _WHOLE
    return x ^ (x >> 31)


def join_keys(first: U64, second: U64) -> U64:
    """One key for two (or a key and a small number), never 0; order matters."""
    return np.maximum(_scramble(first * _ODD + second), np.uint64(1))


class NetworkKeys:
    """Keyed hashes of the networks that addresses belong to.

    Parameters: `hash_key` (secret bytes of the site), `prefix4` and `prefix6` (lengths in bits).
    """

    def __init__(self, hash_key: bytes, prefix4: int = 32, prefix6: int = 64) -> None:
        secret = hashlib.blake2b(hash_key, digest_size=16, person=b"gw-networks").digest()
        self._low, self._high = (
            np.uint64(int.from_bytes(part, "little")) for part in (secret[:8], secret[8:])
        )
        self._mask4 = np.uint64((0xFFFF_FFFF << (32 - prefix4)) & 0xFFFF_FFFF)
        mask6 = ((1 << 128) - 1) ^ ((1 << (128 - prefix6)) - 1)
        self._mask6_high, self._mask6_low = np.uint64(mask6 >> 64), np.uint64(mask6 & 0xFFFF_FFFF_FFFF_FFFF)
        self.prefix4, self.prefix6 = prefix4, prefix6

    def keys(self, address: U64, family: U8) -> U64:
        """`uint64[n]` for addresses `uint64[n, 2]`; 0 where the family is unknown."""
        six = family == 6
        low = address[:, 1] & np.where(six, self._mask6_low, self._mask4)
        mixed = _scramble(low ^ self._low)
        if six.any():
            high = np.where(six, (address[:, 0] & self._mask6_high) ^ self._high, np.uint64(0))
            mixed = np.where(six, _scramble(mixed * _ODD + high), mixed)
        return np.where(family == 0, np.uint64(0), np.maximum(mixed, np.uint64(1)))

    def key(self, family: int, high: int, low: int) -> Any:
        """The same of one address, as `numpy.uint64`: in Python's numbers, which is faster than columns of one."""
        if family == 0:
            return np.uint64(0)
        mixed = _scramble_one((low & int(self._mask6_low if family == 6 else self._mask4)) ^ int(self._low))
        if family == 6:
            high = (high & int(self._mask6_high)) ^ int(self._high)
            mixed = _scramble_one((mixed * int(_ODD) + high) & _WHOLE)
        return np.uint64(max(mixed, 1))

    def text(self, family: int, high: int, low: int) -> str:
        """The network that an address belongs to: `203.0.113.7`, `2001:db8::/64`; `""` for family 0."""
        if family == 4:
            text = address_text(4, 0, low & int(self._mask4))
            return text if self.prefix4 == 32 else f"{text}/{self.prefix4}"
        text = address_text(family, high & int(self._mask6_high), low & int(self._mask6_low))
        return text if not text or self.prefix6 == 128 else f"{text}/{self.prefix6}"
