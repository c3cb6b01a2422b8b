"""Takes a lab apart: its processes, its network namespaces, its folder.

It runs as a process of its own that waits for the end of its standard input. Whatever ends the test (also a
kill -9) closes that pipe, so a lab never outlives what built it. It touches only namespaces and folders whose
name begins with the lab's own prefix.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MARK = "gwlab"
NETNS = Path("/run/netns")


def started(pid: int) -> int | None:
    """When a process began, in clock ticks since boot (field 22 of proc(5) stat); None where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])


def namespaces(prefix: str) -> list[str]:
    try:
        return sorted(path.name for path in NETNS.iterdir() if path.name.startswith(prefix + "-"))
    except FileNotFoundError:
        return []


def pids_in(namespace: str) -> list[int]:
    """The processes inside a network namespace, without this one."""
    said = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
    return [pid for pid in map(int, said.stdout.split()) if pid != os.getpid()]


def remove(prefix: str, limit_s: float = 10.0) -> None:
    """End every process in the lab's namespaces, then remove these and the lab's folder."""
    names = namespaces(prefix)
    until = time.monotonic() + limit_s
    alive = True
    while alive and time.monotonic() < until:
        alive = False
        for name in names:
            for pid in pids_in(name):
                alive = True
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        if alive:
            time.sleep(0.01)
    for name in names:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    for folder in Path(tempfile.gettempdir()).glob(prefix + "-*"):
        shutil.rmtree(folder, ignore_errors=True)


def stale() -> list[str]:
    """Prefixes of labs whose builder is gone."""
    seen = [*namespaces(MARK), *(p.name for p in Path(tempfile.gettempdir()).glob(MARK + "-*"))]
    found = set()
    for name in seen:
        parts = name.split("-")
        numbered = len(parts) >= 5 and parts[1].isdigit() and parts[2].isdigit()
        if numbered and started(int(parts[1])) != int(parts[2]):
            found.add("-".join(parts[:4]))
    return sorted(found)


def main() -> None:
    prefix = sys.argv[1]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    remove(prefix)


if __name__ == "__main__":
    main()
