"""The other network namespaces of this machine, by the ids under which the kernel tells of their interfaces here.

To ask for an id takes no right over the processes there, and nobody enters a namespace for it. One that has no id yet
gets one, as it does from `ip link` where an interface leads there. Formats: linux/net_namespace.h.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct

from ..kernel.netlink import DUMP, Netlink, attribute, attributes

_NEW, _GET = 88, 90  # RTM_NEWNSID, RTM_GETNSID
_ID, _PROCESS, _FILE = 1, 2, 3  # NETNSA_*
_HEADER = b"\0" * 4  # rtgenmsg
_FOLDERS = ("/run/netns", "/run/docker/netns")
OURS = "/proc/thread-self/ns/net"


def others(netlink: Netlink) -> dict[int, str]:
    """Every namespace but this one, with a path to it ("": none is known). Raises OSError."""
    paths = [f"/proc/{p}/ns/net" for p in os.listdir("/proc") if p.isdigit()]
    for folder in _FOLDERS:
        with contextlib.suppress(OSError):
            paths += [f"{folder}/{name}" for name in os.listdir(folder)]
    found: dict[int, str] = {}
    seen: set[int] = set()
    namespaces = os.stat(OURS).st_dev
    for path in paths:
        try:
            there = os.stat(path)
        except PermissionError:
            there = None  # it is asked for by its process
        except OSError:
            continue
        if there is None or (there.st_dev == namespaces and there.st_ino not in seen):
            found.setdefault(known_as(netlink, path), path)
            if there is not None:
                seen.add(there.st_ino)
    for _, body in netlink.ask(_GET, _HEADER, DUMP):
        found.setdefault(_id(body), "")
    ours = known_as(netlink, OURS)
    return {space: path for space, path in found.items() if space not in (ours, -1)}


def known_as(netlink: Netlink, path: str) -> int:
    """The id of the namespace at `path`, of a process or a name; -1: it is gone. Raises PermissionError."""
    process = process_of(path)
    try:
        descriptor = -1 if process else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1
    try:
        which = attribute(_PROCESS if process else _FILE, struct.pack("=i", process or descriptor))
        for _ in range(2):
            with contextlib.suppress(ProcessLookupError):
                for _, body in netlink.ask(_GET, _HEADER + which, 0):
                    if _id(body) >= 0:
                        return _id(body)
            if netlink.tell(_NEW, [_HEADER + attribute(_ID, struct.pack("=i", -1)) + which]) == [errno.EPERM]:
                raise PermissionError(errno.EPERM, "to give a network namespace an id takes CAP_NET_ADMIN")
    finally:
        if not process:
            os.close(descriptor)
    return -1


def process_of(path: str) -> int:
    """The process whose namespace `path` is; 0 where it is none's."""
    words = path.split("/")
    return int(words[2]) if words[1:2] == ["proc"] and words[2].isdigit() else 0


def _id(body: bytes) -> int:
    return int(struct.unpack("=i", attributes(body, 4).get(_ID, b"\xff" * 4))[0])
