"""How long after the start of `kill-switch engage` the last byte of a streaming answer still leaves.

    sudo python benchmarks/kill_switch.py [--pulls 30]

In the lab, a client reads a stream through nginx. Every pull is timed from the exec of the command (the wrapper
that enters the gateway's namespaces included) to the kernel's timestamp of the last packet with payload that
reached the client from the endpoint; then the switch is released and the next stream is opened. Once on an
otherwise idle machine, once with a busy loop on every CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from figures import machine, percentile, table
from lab.lab import HOSTS, MODEL_PORTS, Lab, answers, unmet, wait_for
from lab.running import Gatewatch
from lab.stream import Stream

GATEWAY = HOSTS["gateway"].v4
FRONT = MODEL_PORTS["chat"][0]
ETH_P_IP = 0x0800
SO_TIMESTAMPNS = 35  # asm-generic/socket.h
SO_RCVBUFFORCE = 33
GOAL_MS = {"idle": (50.0, 200.0), "busy": (50.0, 200.0)}
SETTLE_S = 0.3  # far longer than the stream's pauses: nothing has come for so long, so nothing comes any more


class Tap:
    """Arrival times (CLOCK_REALTIME, ns) of TCP payload from the endpoint at the client, by an AF_PACKET socket."""

    def __init__(self, lab: Lab) -> None:
        with lab.inside("client"):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_IP))
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 26)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._socket.bind(("eth0", ETH_P_IP))
        self._socket.setblocking(False)
        self._gateway = socket.inet_aton(GATEWAY)

    def close(self) -> None:
        self._socket.close()

    def last_payload_ns(self) -> int:
        """The newest of what arrived since the last call; 0 where nothing did."""
        newest = 0
        while True:
            try:
                frame, ancillary, _, _ = self._socket.recvmsg(2048, 128)
            except BlockingIOError:
                return newest
            if self._is_payload(frame):
                for level, kind, data in ancillary:
                    if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
                        seconds, nanoseconds = struct.unpack("qq", data[:16])
                        newest = max(newest, seconds * 1_000_000_000 + nanoseconds)

    def _is_payload(self, frame: bytes) -> bool:
        """RFC 791, RFC 9293: a TCP segment from the front's port that carries data."""
        if len(frame) < 54 or frame[23] != socket.IPPROTO_TCP or frame[26:30] != self._gateway:
            return False
        tcp = 14 + (frame[14] & 15) * 4
        total = int.from_bytes(frame[16:18], "big")
        data = total - (tcp - 14) - (frame[tcp + 12] >> 4) * 4
        return int.from_bytes(frame[tcp : tcp + 2], "big") == FRONT and data > 0


def pull(lab: Lab, watch: Gatewatch, tap: Tap) -> tuple[float, float]:
    """Milliseconds from exec to the last payload, and to the command's end."""
    with Stream(lab, tokens_per_second=2000) as stream:
        wait_for("the stream", stream.flows)
        command = watch.kill_switch_command("engage", "--endpoint", "chat", "--reason", "benchmark")
        begun = time.time_ns()
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
        ended = time.time_ns()
        if done.returncode != 0:
            raise RuntimeError(f"kill-switch engage failed: {done.stderr}{done.stdout}")
        last = tap.last_payload_ns()
        time.sleep(SETTLE_S)
        last = max(last, tap.last_payload_ns())
        watch.kill_switch("release", "--endpoint", "chat", "--reason", "benchmark")
        with lab.inside("client"):
            wait_for("the endpoint's return", lambda: answers(GATEWAY, FRONT, 0.2))
        return (last - begun) / 1e6, (ended - begun) / 1e6


@contextlib.contextmanager
def busy_cpus() -> Iterator[None]:
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description="kill switch: exec of the command to the last payload")
    parser.add_argument("--pulls", type=int, default=30)
    pulls = parser.parse_args().pulls
    why = unmet()
    if why:
        print(f"kill_switch: {why}", file=sys.stderr)
        return 1
    rows = []
    with Lab() as lab, Gatewatch(lab) as watch:
        tap = Tap(lab)
        for name, load in (("idle", contextlib.nullcontext()), ("busy", busy_cpus())):
            with load:
                found = [pull(lab, watch, tap) for _ in range(pulls)]
            for what, column in (("last payload", 0), ("command ended", 1)):
                values = [one[column] for one in found]
                median, high = percentile(values, 0.5), percentile(values, 0.99)
                goal = GOAL_MS[name]
                ratio = f"{median / goal[0]:.2f}, {high / goal[1]:.2f}" if column == 0 else "-"
                rows.append([f"{name}: {what}", str(pulls), f"{median:.1f}", f"{high:.1f}", ratio])
        tap.close()
    print(f"kill-switch engage, ms after the exec of the command; {machine()}")
    print(table(["", "pulls", "median", "p99", "share of the goal 50, 200"], rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
