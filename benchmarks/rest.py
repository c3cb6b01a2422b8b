"""Memory and CPU of all of Gatewatch's processes while nothing happens.

    sudo python benchmarks/rest.py [--seconds 20]

Proportional set size (proc(5), smaps_rollup) counts a page that n processes share as 1/n in each, so that the
sum is what the machine really gave. CPU seconds are user and system time over the given seconds in the lab, with
sshd's and nginx's logs followed, packets captured, and the enforcer and the sink at work.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from figures import machine, table
from lab.lab import Lab, unmet
from lab.running import Gatewatch

GOAL_MIB = 200.0
GOAL_CPU = 1.0  # per cent of one core
SETTLE_S = 5.0  # what a start leaves to be done is not rest


def proportional_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} has no proportional set size")


def cpu_s(pid: int) -> float:
    """User and system time in seconds: fields 14 and 15 of proc(5) stat."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    parser = argparse.ArgumentParser(description="memory and CPU at rest")
    parser.add_argument("--seconds", type=float, default=20.0)
    seconds = parser.parse_args().seconds
    why = unmet()
    if why:
        print(f"rest: {why}", file=sys.stderr)
        return 1
    with Lab() as lab, Gatewatch(lab) as watch:
        time.sleep(SETTLE_S)
        pids = watch.processes()
        before = {name: cpu_s(pid) for name, pid in pids.items()}
        time.sleep(seconds)
        used = {name: 100 * (cpu_s(pid) - before[name]) / seconds for name, pid in pids.items()}
        memory = {name: proportional_mib(pid) for name, pid in pids.items()}
    rows = [[name, f"{memory[name]:.1f}", f"{used[name]:.2f}"] for name in pids]
    rows.append(["all", f"{sum(memory.values()):.1f}", f"{sum(used.values()):.2f}"])
    rows.append(
        [
            "share of the goal",
            f"{sum(memory.values()) / GOAL_MIB:.2f} x",
            f"{sum(used.values()) / GOAL_CPU:.2f} x",
        ]
    )
    print(f"at rest for {seconds:g} s; {machine()}; goal {GOAL_MIB:g} MiB, {GOAL_CPU:g} % of a core")
    print(table(["process", "PSS, MiB", "CPU, % of a core"], rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
