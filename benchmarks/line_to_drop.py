"""From a log line being written to its source's packets being dropped in the kernel, beside fail2ban and sshguard.

    sudo python benchmarks/line_to_drop.py [--rounds 100] [--only gatewatch,sshguard,fail2ban]

In the lab, a source that has failed once too few already sends a numbered UDP packet about every 0.25 ms. The
deciding line is appended to the log that the tool follows; the first packet that no longer arrives tells when the
kernel dropped it. Every round has a source of its own, and all tools see the same lines and the same packets.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from figures import machine, percentile, table
from lab.lab import HOSTS, Lab, program, read, unmet, wait_for
from lab.running import Gatewatch

GATEWAY = HOSTS["gateway"].v4
PORT = 9999
PERIOD_S = 0.0002
LEAD = 60  # packets before the line is written
SILENCE_NS = 40_000_000  # so long without an arrival, and the source counts as dropped
LIMIT_S = 5.0
SOURCES = [f"203.0.113.{n}" for n in range(2, 127)]
PACKET = struct.Struct("!Qq")
SO_RCVBUFFORCE = 33  # asm-generic/socket.h

LINE = "{when} gateway sshd[{process}]: Failed password for root from {source} port {port} ssh2\n"


def lines(source: str, count: int, process: int) -> bytes:
    when = time.strftime("%b %e %H:%M:%S")
    told = (LINE.format(when=when, process=process, source=source, port=40000 + i) for i in range(count))
    return "".join(told).encode()


@contextlib.contextmanager
def gatewatch(lab: Lab, log: Path) -> Iterator[int]:
    """Yields how many lines of a source decide.

    The log is declared trusted, for nobody shook hands for these lines; and the shipped playbook's sixty blocks
    a minute are made more, for the rounds follow faster.
    """
    shipped = files("gatewatch.playbooks").joinpath("login-burst.yaml").read_text()
    folder = lab.folder / "playbooks"
    folder.mkdir()
    (folder / "login-burst.yaml").write_text(shipped.replace("per_minute: 60", "per_minute: 6000"))
    collectors = {
        "logs": [{"path": str(log), "format": "sshd", "trusted": True}],
        "journal": {"enabled": False},
        "packets": {"enabled": False},
    }
    with Gatewatch(lab, collectors=collectors, playbooks={"directories": [str(folder)]}):
        yield 10


@contextlib.contextmanager
def sshguard(lab: Lab, log: Path) -> Iterator[int]:
    """Its own pipeline as its start script joins it; three lines of ten points each reach its threshold of 30."""
    parts = "/usr/libexec/sshguard"
    pipe = f"{parts}/sshg-logtail {log} | {parts}/sshg-parser | {parts}/sshg-blocker -a 30 | {parts}/sshg-fw-nft-sets"
    process = lab.popen_in("gateway", ["sh", "-c", pipe])
    wait_for(
        "sshguard's table", lambda: "sshguard" in lab.run_in("gateway", ["nft", "list", "tables"]).stdout
    )
    wait_for("sshguard's tail", lambda: "tail" in commands(process.pid))
    yield 3
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(10)
    lab.run_in("gateway", ["nft", "flush", "ruleset"])


@contextlib.contextmanager
def fail2ban(lab: Lab, log: Path) -> Iterator[int]:
    """Its shipped sshd jail on this file, nftables instead of the iptables that it names, drop instead of reject."""
    folder = lab.folder / "fail2ban"
    shutil.copytree("/etc/fail2ban", folder)
    for file in (folder / "jail.d").iterdir():
        file.unlink()
    (folder / "jail.local").write_text(
        "[DEFAULT]\nprotocol = tcp,udp\nbanaction = nftables[type=allports, blocktype=drop]\n"
        f"[sshd]\nenabled = true\nbackend = auto\nlogpath = {log}\nmaxretry = 5\n"
    )
    (folder / "fail2ban.local").write_text(
        f"[Definition]\nlogtarget = {lab.folder}/fail2ban.log\ndbfile = None\n"
    )
    control = ["-c", str(folder), "-s", f"{lab.folder}/f2b.sock", "-p", f"{lab.folder}/f2b.pid"]
    process = lab.popen_in("gateway", ["fail2ban-server", "-f", *control, "start"])
    wait_for("fail2ban's jail", lambda: "Jail 'sshd' started" in read(lab.folder / "fail2ban.log"))
    yield 5
    process.terminate()
    process.wait(20)
    lab.run_in("gateway", ["nft", "flush", "ruleset"])


TOOLS: dict[str, tuple[Callable[[Lab, Path], contextlib.AbstractContextManager[int]], str]] = {
    "gatewatch": (gatewatch, "python3"),
    "sshguard": (sshguard, "sshguard"),
    "fail2ban": (fail2ban, "fail2ban-server"),
}


def commands(parent: int) -> str:
    said = subprocess.run(["pgrep", "-g", str(parent), "-l"], capture_output=True, text=True, check=False)
    return said.stdout


def round_ms(lab: Lab, log: Path, source: str, needed: int, process: int) -> float | None:
    """Milliseconds from the write of the deciding line to the sending of the first packet that did not arrive."""
    with lab.inside("gateway"):
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    with lab.inside("attacker"):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with receiver, sender, open(log, "ab", buffering=0) as file:
        receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 24)
        receiver.bind((GATEWAY, PORT))
        sender.bind((source, 0))
        sender.connect((GATEWAY, PORT))
        file.write(lines(source, needed - 1, process))
        time.sleep(
            0.05 + random.random() * 0.2
        )  # whatever period a tool polls at, the line falls anywhere in it
        deciding = lines(source, 1, process)
        sent: list[int] = []
        arrived = -1
        written = 0
        while True:
            now = time.monotonic_ns()
            sent.append(now)
            with contextlib.suppress(ConnectionRefusedError):
                sender.send(PACKET.pack(len(sent) - 1, now))
            with contextlib.suppress(BlockingIOError):
                while True:
                    arrived = PACKET.unpack(receiver.recv(64))[0]
            if len(sent) == LEAD:
                if arrived < LEAD // 2:
                    return None  # dropped before the line was written: not a measurement
                written = time.monotonic_ns()
                file.write(deciding)
            if written and now - sent[max(arrived, 0)] > SILENCE_NS:
                return (sent[arrived + 1] - written) / 1e6
            if written and now - written > LIMIT_S * 1e9:
                return None
            time.sleep(PERIOD_S)


def passers_by(log: Path, per_second: int) -> subprocess.Popen[bytes]:
    """A process that appends ordinary lines at a rate: accepted logins and departures from ever other addresses."""
    code = f"""
import os, time
log = os.open({str(log)!r}, os.O_WRONLY | os.O_APPEND)
number, begun = 0, time.monotonic()
while True:
    when = time.strftime("%b %e %H:%M:%S")
    due = int((time.monotonic() - begun) * {per_second})
    said = []
    for number in range(number, due):
        a, b = number >> 8 & 255, number & 255
        said.append(f"{{when}} gateway sshd[{{number % 30000 + 1000}}]: Accepted publickey for alice from "
                    f"10.1.{{a}}.{{b}} port 50000 ssh2: ED25519 SHA256:x\\n")
    number = due
    os.write(log, "".join(said).encode())
    time.sleep(0.005)
"""
    return subprocess.Popen([sys.executable, "-c", code])


def measure(name: str, rounds: int, busy: int) -> tuple[list[float], int]:
    with Lab(services=False) as lab:
        more = "\n".join(f"addr add {source}/25 dev eth0" for source in SOURCES)
        lab.run_in("attacker", ["ip", "-force", "-batch", "-"], input=more, check=False)
        log = lab.log / "auth.log"
        log.write_text("Nov 24 08:00:00 gateway sshd[1]: Server listening on :: port 22.\n")
        log.chmod(0o644)
        start = TOOLS[name][0]
        found: list[float] = []
        with start(lab, log) as needed:
            background = passers_by(log, busy) if busy else None
            try:
                for number in range(rounds):
                    took = round_ms(lab, log, SOURCES[number % len(SOURCES)], needed, 1000 + number)
                    if took is not None:
                        found.append(took)
            finally:
                if background:
                    background.kill()
                    background.wait()
        return found, rounds


def main() -> int:
    parser = argparse.ArgumentParser(description="log line to kernel drop, beside fail2ban and sshguard")
    parser.add_argument("--rounds", type=int, default=100, help=f"at most {len(SOURCES)}")
    parser.add_argument("--only", default=",".join(TOOLS))
    parser.add_argument(
        "--busy", type=int, default=10_000, help="lines a second in the second pass; 0: no such pass"
    )
    options = parser.parse_args()
    why = unmet()
    if why:
        print(f"line_to_drop: {why}", file=sys.stderr)
        return 1
    rounds = min(options.rounds, len(SOURCES))
    measured: dict[tuple[str, int], list[float]] = {}
    lost: list[str] = []
    for name in options.only.split(","):
        if program(TOOLS[name][1]) is None:
            print(f"{name} is not installed: left out")
            continue
        passes = (0, options.busy) if name == "gatewatch" and options.busy else (0,)
        for busy in passes:
            found, tried = measure(name, rounds, busy)
            measured[name, busy] = found
            if len(found) < tried:
                lost.append(f"{name}: {tried - len(found)} of {tried} rounds without a drop in {LIMIT_S:g} s")
    print(
        f"log line written -> dropped in the kernel, ms; {machine()}; resolution {PERIOD_S * 1000 + 0.05:.2f} ms"
    )
    ours = percentile(measured["gatewatch", 0], 0.5) if measured.get(("gatewatch", 0)) else None
    rows = []
    for (name, busy), found in measured.items():
        if not found:
            continue
        median = percentile(found, 0.5)
        rows.append(
            [
                name + (f", {busy:,} lines/s passing by" if busy else ""),
                str(len(found)),
                f"{median:.2f}",
                f"{percentile(found, 0.99):.2f}",
                f"{max(found):.2f}",
                f"{median / ours:.1f} x" if ours else "-",
            ]
        )
    print(table(["", "rounds", "median", "p99", "most", "median / gatewatch"], rows))
    for line in lost:
        print(line)
    return 1 if lost else 0


if __name__ == "__main__":
    raise SystemExit(main())
