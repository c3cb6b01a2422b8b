"""Packets a second: Gatewatch's decoding, flow table and whole replay beside Suricata on the same capture.

    python benchmarks/packets.py [--packets N] [--seed N] [--no-suricata]

Writes a seeded capture (TCP sessions with handshake and data, DNS over UDP, a port scan), lets Suricata read it
with four rules in one thread and in two, and prints each rate with its ratio to Suricata's best, by the clock and by
processor time (which a busy machine disturbs less), less what each needs to start.
"""

from __future__ import annotations

import argparse
import random
import re
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from gatewatch.daemon.collectors import capture_records, decode_layers, flows_table
from gatewatch.daemon.collectors.capture import Capture
from gatewatch.daemon.collectors.flows import FlowTable

RULES = """\
alert tcp any any -> 198.51.100.0/24 8000 (msg:"model endpoint"; flow:to_server,established; \
threshold:type limit,track by_src,count 1,seconds 60; sid:1; rev:1;)
alert tcp any any -> any 22 (msg:"many SSH connections"; flags:S; \
threshold:type both,track by_src,count 5,seconds 60; sid:2; rev:1;)
alert tcp any any -> any any (msg:"scan"; flags:S; \
threshold:type both,track by_src,count 100,seconds 10; sid:3; rev:1;)
alert dns any any -> any any (msg:"unusual name"; dns.query; content:"exfil"; sid:4; rev:1;)
"""


def write_capture(path: Path, packets: int, seed: int) -> None:
    """A pcap of about `packets` frames, interleaved as 64 conversations at a time would be."""
    made = random.Random(seed)
    with open(path, "wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262144, 1))
        running = [conversation(made) for _ in range(64)]
        now = 1_700_000_000_000_000_000
        for _ in range(packets):
            chosen = made.randrange(len(running))
            while not running[chosen]:
                running[chosen] = conversation(made)
            frame = running[chosen].pop()
            now += made.randrange(1_000, 4_000)
            file.write(struct.pack("<IIII", now // 10**9, now % 10**9, len(frame), len(frame)) + frame)


def conversation(made: random.Random) -> list[bytes]:
    """The frames of one conversation, the last first."""
    client, server = made.getrandbits(16) | 0x0A000000, 0xC6336400 | made.randrange(1, 40)
    port = made.randrange(32768, 61000)
    kind = made.random()
    if kind < 0.15:
        query = struct.pack("!6H", made.getrandbits(16), 0x0100, 1, 0, 0, 0)
        query += b"\x03www\x07example\x03com\0\0\1\0\1"
        return [udp(server, client, 53, port, query + bytes(32)), udp(client, server, port, 53, query)]
    if kind < 0.25:
        client, scanned = 0x0A0A0A0A, made.randrange(1, 60000)
        return [
            tcp(server, client, scanned, port, 0, 1, 0x14),
            tcp(client, server, port, scanned, 0, 0, 0x02),
        ]
    service = made.choice((22, 443, 8000, 8000))
    ours, theirs = made.getrandbits(32), made.getrandbits(32)
    frames = [tcp(client, server, port, service, ours, 0, 0x02)]
    frames.append(tcp(server, client, service, port, theirs, ours + 1, 0x12))
    ours, theirs = ours + 1, theirs + 1
    frames.append(tcp(client, server, port, service, ours, theirs, 0x10))
    for _ in range(made.randrange(4, 30)):
        size = made.choice((40, 200, 1200))
        if made.random() < 0.4:
            frames.append(tcp(client, server, port, service, ours, theirs, 0x18, made.randbytes(size)))
            ours += size
        else:
            frames.append(tcp(server, client, service, port, theirs, ours, 0x18, made.randbytes(size)))
            theirs += size
    frames.append(tcp(client, server, port, service, ours, theirs, 0x11))
    frames.append(tcp(server, client, service, port, theirs, ours + 1, 0x11))
    frames.append(tcp(client, server, port, service, ours + 1, theirs + 1, 0x10))
    return frames[::-1]


def tcp(
    source: int, target: int, port: int, service: int, sequence: int, ack: int, flags: int, data: bytes = b""
) -> bytes:
    segment = struct.pack(
        "!HHIIBBHHH", port, service, sequence & 0xFFFFFFFF, ack & 0xFFFFFFFF, 0x50, flags, 65535, 0, 0
    )
    return ip(source, target, 6, segment + data)


def udp(source: int, target: int, port: int, service: int, data: bytes) -> bytes:
    return ip(source, target, 17, struct.pack("!HHHH", port, service, 8 + len(data), 0) + data)


def ip(source: int, target: int, protocol: int, segment: bytes) -> bytes:
    """Ethernet and IPv4 with right checksums, without which Suricata would leave packets out."""
    pseudo = struct.pack("!IIBBH", source, target, 0, protocol, len(segment))
    at = 16 if protocol == 6 else 6
    total = checksum(pseudo + segment)
    segment = segment[:at] + struct.pack("!H", total or 0xFFFF) + segment[at + 2 :]
    head = struct.pack("!BBHHHBBHII", 0x45, 0, 20 + len(segment), 0, 0x4000, 64, protocol, 0, source, target)
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    return b"\x02\0\0\0\0\1\x02\0\0\0\0\2\x08\0" + head + segment


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) & 1)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def decoded(path: Path) -> int:
    with Capture(path) as capture:
        return sum(len(batch.packets) for batch in capture.batches())


def tracked(path: Path) -> int:
    table = FlowTable(local=["198.51.100.0/24"])
    count = 0
    with Capture(path) as capture:
        for batch in capture.batches():
            table.update(batch.packets)
            count += len(batch.packets)
    table.finish()
    return count


def replayed(path: Path) -> int:
    """The command as a user gives it."""
    start = "from gatewatch.daemon.cli import main; main()"
    command = [sys.executable, "-c", start, "replay", str(path), "--json"]
    return subprocess.run(command, check=True, capture_output=True, timeout=600).returncode


def suricata(path: Path, folder: Path, mode: str) -> int:
    """Packets that Suricata read; alerts go to one file and nothing else is written."""
    rules = folder / "four.rules"
    rules.write_text(RULES)
    logs = folder / "suricata"
    logs.mkdir(exist_ok=True)
    command = ["suricata", "-r", str(path), "-S", str(rules), "-l", str(logs), "--runmode", mode, "-v"]
    command += ["--set", "outputs.1.eve-log.enabled=no"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    count = re.search(r"read (\d+) files?, (\d+) packets", done.stdout + done.stderr)
    if count is None and "empty" not in path.name:
        raise SystemExit(f"suricata read nothing: {(done.stdout + done.stderr)[-2000:]}")
    return int(count[2]) if count else 0


def processor_s() -> float:
    """Seconds of processor time of this process and of those it waited for."""
    spent = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in spent)


def best(run: Callable[[Path], int], path: Path, empty: Path, packets: int) -> tuple[float, float]:
    """Packets a second by the clock, and a second of processor time.

    The best of two runs less the best of two over a capture without packets, which is what it takes to start.
    """
    took = []
    for each in (path, path, empty, empty):
        started, spent = time.perf_counter(), processor_s()
        run(each)
        took.append((time.perf_counter() - started, processor_s() - spent))
    return tuple(packets / (min(took[0][i], took[1][i]) - min(took[2][i], took[3][i])) for i in (0, 1))  # type: ignore[return-value]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--packets", type=int, default=500_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-suricata", action="store_true")
    options = parser.parse_args()
    if not (decode_layers.COMPILED and flows_table.COMPILED and capture_records.COMPILED):
        print("the loops are not compiled: python setup.py build_ext --inplace", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="gatewatch-benchmark-") as name:
        folder = Path(name)
        path = folder / "packets.pcap"
        write_capture(path, options.packets, options.seed)
        empty = folder / "empty.pcap"
        write_capture(empty, 0, options.seed)

        def measured(run: Callable[[Path], int]) -> tuple[float, float]:
            return best(run, path, empty, options.packets)

        rates: list[tuple[str, tuple[float, float]]] = []
        if not options.no_suricata and shutil.which("suricata"):
            modes = [measured(partial(suricata, folder=folder, mode=mode)) for mode in ("single", "autofp")]
            rates.append(("suricata, four rules", (max(m[0] for m in modes), max(m[1] for m in modes))))
        peer = rates[0][1] if rates else None
        rates.append(("gatewatch replay", measured(replayed)))
        rates.append(("gatewatch: read and decode", measured(decoded)))
        rates.append(("gatewatch: read, decode, flow table", measured(tracked)))
        print(f"{options.packets} packets, {path.stat().st_size / 1e6:.0f} MB, seed {options.seed}")
        print(f"{'':38}{'packets/s':>12}{'ratio':>9}{'packets/CPU s':>16}{'ratio':>9}")
        for label, (wall, cpu) in rates:
            ratios = (f"{wall / peer[0]:7.1f} x", f"{cpu / peer[1]:7.1f} x") if peer else ("", "")
            print(f"{label:38}{wall:12,.0f}{ratios[0]:>9}{cpu:16,.0f}{ratios[1]:>9}")


if __name__ == "__main__":
    main()
