"""Which networks belong to the same autonomous system: an index of a database in MaxMind's format.

The search tree is walked as columns, level by level: node by node it would hold the interpreter for many seconds, and
a damaged tree, in which a branch leads back to an earlier one, could be walked for ever. Levels and rows are bounded.

Format: MaxMind DB File Format Specification 2.0, section "Binary Search Tree Section".
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Any

import numpy as np

from .events import U8, U64

DEPTH = {4: 24, 6: 48}
"""How long the prefixes are that are told, by family: the widest that the enforcer blocks."""
MOST_ROWS = 1 << 22
"""Networks of one length at which a tree is no database of autonomous systems; the largest has a fifth."""
_BITS = {4: 32, 6: 128}

System = Callable[[IPv4Address | IPv6Address], int]


class Systems:
    """The networks of each system, by family.

    Parameters: `content` of the file; `nodes`, `record_bits` (24, 28 or 32) and `version` (4 or 6) by its metadata;
    `system`: the autonomous system of an address, 0 = unknown. Raises ValueError where the tree makes no sense.
    """

    def __init__(self, content: bytes, *, nodes: int, record_bits: int, version: int, system: System) -> None:
        if record_bits not in (24, 28, 32) or nodes * record_bits // 4 > len(content):
            raise ValueError("its tree is larger than the file, or of an unknown kind")
        self._tree = np.frombuffer(content, np.uint8, nodes * record_bits // 4).reshape(nodes, -1)
        self._nodes = nodes
        inner = self._of_ipv4() if version == 6 else 0
        self._kept = {4: self._indexed(4, inner, -1, system)}
        if version == 6:
            self._kept[6] = self._indexed(6, 0, inner, system)
        del self._tree

    def networks(self, system: int, version: int, most: int) -> list[str]:
        """The /24 networks (IPv6: /48) of a system, the lowest first; at most `most`, whoever has more."""
        if version not in self._kept:
            return []
        systems, starts, lengths = self._kept[version]
        first, last = np.searchsorted(systems, [system, system + 1])
        found: list[str] = []
        depth = DEPTH[version]
        for start, length in zip(starts[first:last].tolist(), lengths[first:last].tolist(), strict=True):
            count = min(1 << depth - length, most - len(found))
            found += [str(_network(version, number)) for number in range(start, start + count)]
            if len(found) >= most:
                break
        return found

    def _of_ipv4(self) -> int:
        """The node under which IPv4 lies in a tree of IPv6: ninety-six zeros down."""
        node = 0
        for _ in range(96):
            if node >= self._nodes:
                break
            node = int(self._children(np.array([node], np.uint64))[0])
        return node

    def _indexed(self, version: int, root: int, alias: int, system: System) -> tuple[U64, U64, U8]:
        """Systems in ascending order, each with a network: its first /24 (or /48) by number, and its length.

        `alias`: the node of IPv4 in a tree of IPv6; 6to4 and others lead there as well and are no networks of IPv6.
        """
        nodes, prefixes = np.array([root], np.uint64), np.zeros(1, np.uint64)
        starts, lengths, records = [], [], []
        for length in range(DEPTH[version] + 1):
            leaf = nodes > self._nodes
            starts.append(prefixes[leaf] << np.uint64(DEPTH[version] - length))
            lengths.append(np.full(np.count_nonzero(leaf), length, np.uint8))
            records.append(nodes[leaf])
            inside = (nodes < self._nodes) & (nodes.astype(np.int64) != alias)
            nodes, prefixes = nodes[inside], prefixes[inside]
            if len(nodes) > MOST_ROWS:
                raise ValueError(f"its tree has more than {MOST_ROWS:,} networks of one length")
            nodes = self._children(nodes)
            prefixes = np.repeat(prefixes << np.uint64(1), 2)
            prefixes[1::2] |= np.uint64(1)
        start, length_of = np.concatenate(starts), np.concatenate(lengths)
        _, sample, back = np.unique(np.concatenate(records), return_index=True, return_inverse=True)
        # Each record is read once, by the address of one of its networks.
        numbers = [system(_network(version, number).network_address) for number in start[sample].tolist()]
        systems = np.array(numbers, np.uint64)[back.ravel()] if numbers else np.zeros(0, np.uint64)
        order = np.lexsort((start, systems))
        order = order[systems[order] != 0]
        return systems[order], start[order], length_of[order]

    def _children(self, nodes: U64) -> U64:
        """Both children of each node, side by side."""
        rows = self._tree[nodes.astype(np.int64)].astype(np.uint64)
        width = rows.shape[1]
        half = width // 2
        left, right = _number(rows[:, :half]), _number(rows[:, width - half :])
        if width == 7:  # 28 bits: the middle byte holds the highest four bits of both
            left |= (rows[:, 3] >> np.uint64(4)) << np.uint64(24)
            right |= (rows[:, 3] & np.uint64(0x0F)) << np.uint64(24)
        made = np.empty(2 * len(nodes), np.uint64)
        made[0::2], made[1::2] = left, right
        return made


def _number(columns: U64) -> U64:
    """Big-endian numbers from columns of bytes."""
    number = np.zeros(len(columns), np.uint64)
    for column in columns.T:
        number = number << np.uint64(8) | column
    return number


def _network(version: int, number: int) -> IPv4Network | IPv6Network:
    depth = DEPTH[version]
    made: Any = IPv4Address if version == 4 else IPv6Address
    return ip_network((made(number << _BITS[version] - depth), depth))
