"""The other network namespaces of this machine, by the ids under which the kernel tells of their interfaces here.

To ask for an id takes no right over the processes there, and nobody enters a namespace for it. One that has no id yet
gets one, as it does from `ip link` where an interface leads there. Formats: linux/net_namespace.h.
"""

from __future__ import annotations

import contextlib
import os
import struct

from .netlink import DUMP, Netlink, attribute, attributes

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
    for path in paths:
        try:
            inode = os.stat(path).st_ino
        except PermissionError:
            inode = 0  # it is asked for by its process
        except OSError:
            continue
        if inode not in seen or not inode:
            seen.add(inode)
            found.setdefault(known_as(netlink, path), path)
    for _, body in netlink.ask(_GET, _HEADER, DUMP):
        found.setdefault(_id(body), "")
    ours = known_as(netlink, OURS)
    return {space: path for space, path in found.items() if space not in (ours, -1)}


def known_as(netlink: Netlink, path: str) -> int:
    """The id of the namespace at `path`, of a process or a name; -1: it is gone, or may not be asked for."""
    process = process_of(path)
    with contextlib.suppress(OSError):
        descriptor = -1 if process else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            which = attribute(_PROCESS if process else _FILE, struct.pack("=i", process or descriptor))
            for _ in range(2):
                for _, body in netlink.ask(_GET, _HEADER + which, 0):
                    if _id(body) >= 0:
                        return _id(body)
                netlink.tell(_NEW, [_HEADER + attribute(_ID, struct.pack("=i", -1)) + which])
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
