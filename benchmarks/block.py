"""How long one block takes, and how soon the kernel holds again what somebody else took away.

    sudo python benchmarks/block.py [--blocks 300] [--rounds 100] [--held 0,20000,100000]

In the lab's gateway, with connection tracking in use. First: a process with the analyser's uid asks for blocks, with
so many in force; from the request to the answer, which comes when the block is on disk and in the kernel. Beside it,
what the disk takes of that: the same bytes written to a file in the same folder, fdatasync after each; the whole with
the journal in memory; and the time that the enforcer spent on a CPU, most of it after the answer. Second: `nft flush
ruleset`, or the kill switch's table deleted, until the kernel gives notice that the enforcer's transaction is in
force, with 1,000 blocks.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import socket
import struct
import sys
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from enforcer_rig import ANALYSER_UID, OTHER, RAILS, Rig
from figures import machine, percentile, table
from gatewatch.daemon.enforcer.client import Enforcer
from gatewatch.daemon.enforcer.journal import Journal
from gatewatch.daemon.enforcer.kernel.netlink import attributes
from gatewatch.daemon.enforcer.state import NS_PER_S, clocks
from lab.lab import Lab, unmet, wait_for

PERMISSIVE = RAILS.replace("most_blocks = 50", "most_blocks = 200_000").replace(
    "most_new_per_minute = 20", "most_new_per_minute = 1_000_000"
)
GOAL_MS, HEAL_GOAL_MS = 1.0, 50.0
HEALED_WITH = 1_000
TTL_S = 3_000
ONE, NO_DISK, BURST = "one at a time", "the journal in memory", "in a burst"
PAUSE_S = (
    0.04  # after the answer the blocked source's connections are ended, which takes the kernel some 15 ms
)
MEMORY = Path("/dev/shm")
BLOCK_TABLE, KILL_TABLE = "gatewatch", "gatewatch_kill"
SO_RCVBUFFORCE = 33  # asm-generic/socket.h
NEW_TABLE, DELETE_TABLE, NEW_GENERATION = (10 << 8 | kind for kind in (0, 2, 15))  # NFT_MSG_*


@contextlib.contextmanager
def enforcing(lab: Lab, blocks: int, memory: bool = False) -> Iterator[Rig]:
    """An enforcer with so many blocks in force, from a journal that was written for it, on disk or in memory."""
    rig = Rig(lab, PERMISSIVE)
    with contextlib.ExitStack() as cleaning:
        if memory:
            rig.state = MEMORY / lab.prefix
            cleaning.callback(shutil.rmtree, rig.state, ignore_errors=True)
        cleaning.enter_context(rig)
        rig.stop()
        journal = Journal(f"{rig.state}/enforcer", clocks())
        since = time.time_ns()
        for at in range(0, blocks, 500):
            addresses = (str(ip_address((10 << 24) + n)) for n in range(at, min(at + 500, blocks)))
            rest = (TTL_S, since, "operator", "benchmark", "benchmark", "", "")
            journal.append(
                "restore", sync=False, blocks=[[address, TTL_S * NS_PER_S, *rest] for address in addresses]
            )
        journal.close()
        rig.start()
        rig.nft("add table inet theirs; add chain inet theirs c { type filter hook input priority 0; }")
        rig.nft("add rule inet theirs c ct state new counter")
        with rig.serving(OTHER), rig.connect(OTHER):
            yield rig


def asked(rig: Rig, count: int, pause_s: float) -> list[float]:
    """Milliseconds from request to answer of each block, in a process of the analyser's user."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresuid(ANALYSER_UID, ANALYSER_UID, ANALYSER_UID)
            took = list(_asking(Enforcer(rig.state / "run" / "enforcer.sock"), count, pause_s))
            with open(writable, "w") as out:
                json.dump(took, out)
        finally:
            os._exit(0)  # whatever happened: the lab belongs to the parent
    os.close(writable)
    with open(readable) as answer:
        said = answer.read()
    os.waitpid(child, 0)
    return [float(one) for one in json.loads(said)]


def _asking(enforcer: Enforcer, count: int, pause_s: float) -> Iterator[float]:
    enforcer.check("198.18.0.1")
    for number in range(count):
        time.sleep(pause_s)
        address = str(ip_address("198.18.0.0") + number)
        begun = time.perf_counter()
        enforcer.block(address, ttl_s=600, reason="12 failed logins", incident="i1", playbook="login-burst")
        yield (time.perf_counter() - begun) * 1e3


def on_disk(folder: Path, size: int, count: int, pause_s: float) -> list[float]:
    """Milliseconds for a write of `size` bytes and fdatasync."""
    descriptor = os.open(folder / "beside", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    took = []
    for _ in range(count):
        time.sleep(pause_s)
        begun = time.perf_counter()
        os.write(descriptor, b"x" * size)
        os.fdatasync(descriptor)
        took.append((time.perf_counter() - begun) * 1e3)
    os.close(descriptor)
    return took


def on_cpu_ms(rig: Rig) -> float:
    """What the enforcer has run so far, /proc/PID/schedstat."""
    assert rig.process is not None
    return int(Path(f"/proc/{rig.process.pid}/schedstat").read_text().split()[0]) / 1e6


def one_block(lab: Lab, held: int, count: int, how: str) -> list[str]:
    pause_s = 0 if how == BURST else PAUSE_S
    with enforcing(lab, held, how == NO_DISK) as rig:
        journal = rig.state / "enforcer" / "journal"
        size, ran = journal.stat().st_size, on_cpu_ms(rig)
        took = asked(rig, count, pause_s)
        ran = on_cpu_ms(rig) - ran
        disk = on_disk(journal.parent, (journal.stat().st_size - size) // count, count, pause_s)
        median, high = percentile(took, 0.5), percentile(took, 0.99)
        return [
            f"{held:,} in force, {how}", str(count),
            f"{median:.2f}", f"{high:.2f}", f"{percentile(disk, 0.5):.2f}", f"{percentile(disk, 0.99):.2f}",
            f"{ran / count:.2f}", f"{median / GOAL_MS:.2f}, {high / GOAL_MS:.2f}",
        ]  # fmt: skip


class Notices:
    """The kernel's notices of every nftables transaction in the gateway (linux/netfilter/nf_tables.h)."""

    def __init__(self, lab: Lab) -> None:
        with lab.inside("gateway"):
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)  # NETLINK_NETFILTER
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        self._socket.bind((0, 1 << 6))  # NFNLGRP_NFTABLES
        self._socket.settimeout(10)

    def close(self) -> None:
        self._socket.close()

    def forget(self) -> None:
        """Pass over what has come."""
        self._socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.recv(1 << 18)
        self._socket.settimeout(10)

    def transactions(self) -> Iterator[tuple[float, set[str], set[str]]]:
        """(when it was heard of, tables that are there anew, tables that are gone)."""
        made: set[str] = set()
        gone: set[str] = set()
        while True:
            data, at = self._socket.recv(1 << 18), 0
            heard = time.perf_counter()
            while at + 20 <= len(data):
                length, kind = struct.unpack_from("=IH", data, at)
                if kind in (NEW_TABLE, DELETE_TABLE):
                    name = attributes(data[at : at + length], 20)[1].rstrip(b"\0").decode("ascii", "replace")
                    (made if kind == NEW_TABLE else gone).add(name)
                elif kind == NEW_GENERATION:
                    yield heard, made, gone - made
                    made, gone = set(), set()
                at += (length + 3) & ~3


def healed(rig: Rig, notices: Notices, command: str, wanted: set[str]) -> dict[str, float]:
    """Milliseconds from the notice of the foreign transaction to that of the one that brings each table back."""
    notices.forget()
    begun, back = 0.0, {}
    with rig.lab.popen_in("gateway", ["nft", command]):
        for heard, made, gone in notices.transactions():
            if not begun and wanted & gone:
                begun = heard
            elif begun:
                back.update({name: (heard - begun) * 1e3 for name in made & wanted if name not in back})
                if back.keys() == wanted:
                    break
    return back


def healing(lab: Lab, rounds: int) -> list[list[str]]:
    rows = []
    with enforcing(lab, HEALED_WITH) as rig:
        rig.enforcer().kill(["models"], "benchmark")
        notices = Notices(lab)
        for command, wanted in (
            ("flush ruleset", {KILL_TABLE, BLOCK_TABLE}),
            (f"delete table inet {KILL_TABLE}", {KILL_TABLE}),
        ):
            took: dict[str, list[float]] = {name: [] for name in sorted(wanted, reverse=True)}
            for _ in range(rounds):
                for name, one in healed(rig, notices, command, wanted).items():
                    took[name].append(one)
                wait_for("the enforcer", lambda: rig.enforcer().status()["differs"] == [])
                time.sleep(0.06 + random.random() * 0.1)  # it heals at once, then at most every 50 ms
            rows += [
                [f"{command}: {name} is back", str(rounds), f"{percentile(ms, 0.5):.1f}", f"{percentile(ms, 0.99):.1f}",
                 f"{max(ms):.1f}", f"{percentile(ms, 0.99) / HEAL_GOAL_MS:.2f}"]
                for name, ms in took.items()
            ]  # fmt: skip
        notices.close()
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description="one block, and the healing of foreign changes")
    parser.add_argument("--blocks", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--held", default="0,20000,100000", help="how many blocks are in force")
    options = parser.parse_args()
    why = unmet()
    if why:
        print(f"block: {why}", file=sys.stderr)
        return 1
    with Lab(services=False) as lab:
        if options.blocks:
            rows = [
                one_block(lab, int(held), options.blocks, how)
                for held in options.held.split(",")
                for how in (ONE, NO_DISK, BURST)
            ]
            print(f"one block, request to answer as the analyser sees it, ms; {machine()}")
            head = [
                "",
                "blocks",
                "median",
                "p99",
                "disk alone",
                "its p99",
                "enforcer on CPU",
                "share of the goal 1",
            ]
            print(table(head, rows))
        if options.rounds:
            rows = healing(lab, options.rounds)
            print(
                f"\nfrom somebody else's transaction to the one that mends it, ms, {HEALED_WITH:,} blocks; {machine()}"
            )
            print(table(["", "rounds", "median", "p99", "most", "p99 / goal 50"], rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
