"""How long after the start of `kill-switch engage` the last byte of fifty streaming answers still leaves.

    sudo python benchmarks/kill_switch.py [--pulls 30] [--days idle,busy,flood]

In the lab, fifty clients read streams: through nginx from a back on loopback, from a server on the gateway over
IPv4 and IPv6, and from one in another namespace through DNAT, over both. Every pull is timed from the exec of the
command (the wrapper that enters the gateway's namespaces included) and from the nftables transaction (the kernel's
first notice of a change to the kill switch's table) to the kernel's timestamp of the last packet with payload that left
the gateway; then the switch is released and fifty new streams are opened. Once on an otherwise idle machine, once with
a busy loop on every CPU, once in a flood of 20,000 SYNs a second towards the fronts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from figures import machine, percentile, table
from lab import published
from lab.lab import Lab, unmet, wait_for
from lab.load import busy_cpus, syn_flood
from lab.running import Gatewatch
from lab.site import CHAT, DIRECT, ENDPOINTS, Site
from lab.stream import Crowd

DAYS = ("idle", "busy", "flood")
SETTLE_S = 0.5  # a stalled sender sends again after 0.2 s: what does not come by then does not come any more
SHARES = (0.5, 0.9, 0.99, 1.0)


class Pull(NamedTuple):
    """Milliseconds, of one pull."""

    exec_to_last: float
    exec_to_transaction: float
    transaction_to_last: float
    exec_to_end: float
    proven: bool


def load(day: str, lab: Lab) -> AbstractContextManager[None]:
    if day == "idle":
        return contextlib.nullcontext()
    return busy_cpus() if day == "busy" else syn_flood(lab, [CHAT, DIRECT, published.FRONT])


def pull(lab: Lab, watch: Gatewatch, site: Site, day: str) -> Pull:
    """Raises RuntimeError where the switch does not engage."""
    with Crowd(lab) as crowd:
        site.fill(crowd)
        with load(day, lab):
            wait_for("the streams under load", crowd.flows, 30)
            command = watch.kill_switch_command("engage", "--reason", "benchmark", "--json")
            site.listen()
            begun = time.time_ns()
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
            ended = time.time_ns()
            if done.returncode not in (0, 1) or not done.stdout:
                raise RuntimeError(f"kill-switch engage failed: {done.stderr}{done.stdout}")
            time.sleep(SETTLE_S)
            cut, last = site.transactions()[0], max(answer.ns for answer in site.answers())
        watch.kill_switch("release", "--reason", "benchmark")
    moments = [(last - begun), (cut - begun), (last - cut), (ended - begun)]
    return Pull(*(ns / 1e6 for ns in moments), proven=bool(json.loads(done.stdout)["proven"]))


def rows(day: str, pulls: list[Pull]) -> list[list[str]]:
    proven = sum(p.proven for p in pulls)
    named = {
        "exec -> last payload": [p.exec_to_last for p in pulls],
        "exec -> transaction": [p.exec_to_transaction for p in pulls],
        "transaction -> last payload": [p.transaction_to_last for p in pulls],
        f"exec -> end of the command ({proven} proven)": [p.exec_to_end for p in pulls],
    }
    return [
        [f"{day}: {what}", str(len(pulls)), *(f"{percentile(values, share):.1f}" for share in SHARES)]
        for what, values in named.items()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description="kill switch: exec of the command to the last payload")
    parser.add_argument("--pulls", type=int, default=30)
    parser.add_argument("--days", default=",".join(DAYS), help="some of idle, busy, flood")
    options = parser.parse_args()
    why = unmet()
    if why:
        print(f"kill_switch: {why}", file=sys.stderr)
        return 1
    found: list[list[str]] = []
    with Lab() as lab, Gatewatch(lab, rails=ENDPOINTS) as watch, Site(lab) as site:
        for day in options.days.split(","):
            found += rows(day, [pull(lab, watch, site, day) for _ in range(options.pulls)])
    print(f"kill-switch engage, fifty streams, ms; {machine()}")
    print(table(["", "pulls", "median", "p90", "p99", "max"], found))
    print("goals: exec -> last payload 50 median, 200 p99; transaction -> last payload 50 max")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
