"""Notices when somebody else changes one of our tables, or a rule anywhere (which may be of NAT): by the kernel's own
notices of every nftables transaction.

Formats: linux/netfilter/nfnetlink.h, nf_tables.h. In every message about a table, chain, rule, set or element
attribute 1 is the table's name; NEWGEN ends a transaction and names the process that made it.
"""

from __future__ import annotations

import os
import socket
import struct

from .blocktable import TABLE
from .killtable import KILL
from .netlink import attributes
from .restricttable import RESTRICT

_NETFILTER = 12  # NETLINK_NETFILTER
_GROUP = 1 << 6  # NFNLGRP_NFTABLES is group 7
_NEWGEN = (10 << 8) | 15  # NFNL_SUBSYS_NFTABLES, NFT_MSG_NEWGEN
_RULES = ((10 << 8) | 6, (10 << 8) | 8)  # NFT_MSG_NEWRULE and NFT_MSG_DELRULE
_GEN_PROCESS = 2  # NFTA_GEN_PROC_PID, big-endian
_BUFFER_BYTES = 8 << 20
_OURS = {name.encode() for name in (TABLE, KILL, RESTRICT)}


class Monitor:
    """Poll its `fileno`, then ask `changed_by_others`. `ruled`: others changed a rule of theirs; set it back."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETFILTER)
        self._socket.setsockopt(socket.SOL_SOCKET, 33, _BUFFER_BYTES)  # SO_RCVBUFFORCE
        self._socket.bind((0, _GROUP))
        self._socket.setblocking(False)
        self._touched = self._rule = self.ruled = False

    def fileno(self) -> int:
        return self._socket.fileno()

    def changed_by_others(self) -> bool:
        """Read what has come; whether another process changed one of our tables, or notices were lost."""
        changed = False
        while True:
            try:
                data = self._socket.recv(1 << 17)
            except BlockingIOError:
                return changed
            except OSError:  # ENOBUFS: the kernel had to drop notices
                changed = self.ruled = True
                continue
            changed |= self._read(data)

    def _read(self, data: bytes) -> bool:
        changed, at = False, 0
        while at + 20 <= len(data):
            length, kind = struct.unpack_from("=IH", data, at)
            if length < 20:
                break
            given = attributes(data[at : at + length], 20)
            if kind == _NEWGEN:
                process = int.from_bytes(given.get(_GEN_PROCESS, b""), "big")
                changed |= self._touched and process != os.getpid()
                self.ruled |= self._rule and process != os.getpid()
                self._touched = self._rule = False
            elif given.get(1, b"").rstrip(b"\0") in _OURS:
                self._touched = True
            elif kind in _RULES:
                self._rule = True
            at += (length + 3) & ~3
        return changed
