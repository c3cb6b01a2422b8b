"""What watching live packets costs: the capture process beside a bulk transfer, and in a flood of SYNs.

    python benchmarks/capture.py [--gibibytes N] [--sample N] [--flood SECONDS]

Builds two network namespaces joined by a veth pair, sends N GiB over one TCP connection past the capture process,
then (where hping3 is there) floods it with SYNs. Prints its share of one core by the scheduler's own account, and
what was lost. Needs root.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import packet_wire
from gatewatch.daemon.collectors.worker import WorkerOptions
from packet_wire import NOBODY, Wire, Worker, transfer, why_not

MEBIBYTE = 1 << 20


def core_seconds(pid: int) -> float:
    """Processor time of a process, as the scheduler accounts for it (proc(5), schedstat)."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def measure(running: Worker, work: Callable[[], object]) -> tuple[float, float, dict[str, int]]:
    """Seconds that `work` took, core seconds of the capture process meanwhile, and what it counted."""
    before, began, used = running.source.counters(), time.monotonic(), core_seconds(running.pid)
    work()
    took, used = time.monotonic() - began, core_seconds(running.pid) - used
    packet_wire.wait_for(lambda: running.source.counters()["heartbeat_ns"] > before["heartbeat_ns"])
    after = running.source.counters()
    return took, used, {name: after[name] - before[name] for name in after}


def report(what: str, took: float, used: float, counted: dict[str, int]) -> None:
    lost = counted["dropped_kernel"] + counted["dropped_ring"]
    print(
        f"{what:<32} {100 * used / took:6.2f} % of a core "
        f"{counted['frames'] / took:9.0f} frames/s captured {lost:9} lost"
    )


def flood(wire: Wire, seconds: int) -> None:
    command = ["timeout", str(seconds), "hping3", "-q", "--flood", "-S", "-p", "81", wire.near_v4]
    subprocess.run(["ip", "netns", "exec", wire.far, *command], capture_output=True, check=False)


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--gibibytes", type=int, default=20)
    arguments.add_argument("--sample", type=int, default=64)
    arguments.add_argument("--flood", type=int, default=3)
    chosen = arguments.parse_args()
    if why := why_not():
        sys.exit(f"benchmarks/capture.py {why}")
    options = WorkerOptions(("near0",), one_in=chosen.sample, uid=NOBODY, gid=NOBODY)
    with packet_wire.wire() as wire, packet_wire.worker(wire.near, options) as running:
        stop = threading.Event()

        def drain() -> None:
            while not stop.wait(0.02):
                running.source.pull()

        analyser = threading.Thread(target=drain)
        analyser.start()
        try:
            transfer(wire, b"warm")
            report("nothing", *measure(running, lambda: stop.wait(3)))
            send = partial(transfer, wire, bytes(MEBIBYTE), chosen.gibibytes * 1024, limit_s=600)
            took, used, counted = measure(running, send)
            report(
                f"bulk, {chosen.gibibytes * 8.59 / took:.1f} Gbit/s, 1 in {chosen.sample}",
                took,
                used,
                counted,
            )
            if shutil.which("hping3"):
                report("flood of SYNs", *measure(running, lambda: flood(wire, chosen.flood)))
        finally:
            stop.set()
            analyser.join()


if __name__ == "__main__":
    main()
