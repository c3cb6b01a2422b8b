"""What each stage and detector of login detection costs for each line of a log.

    python benchmarks/detection_profile.py [LOG] [--chunk-bytes N] [--runs N] [--format sshd]

Without LOG a seeded log of 200,000 lines is made. Everything runs in this process, in the order in which `replay` runs
it; each figure is the least of some runs. What a stage or detector spends in its tables stands below it, indented: the
rest of it is columns and findings.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from figures import machine, table
from gatewatch.daemon.assembly import build_correlator
from gatewatch.daemon.collectors.parsers.registry import ParserOptions, make_parser
from gatewatch.daemon.events import AuthBatch
from gatewatch.detectors.registry import AUTH_DETECTORS, LoginDetection, login_detectors
from generate_auth_log import generate_auth_log

HASH_KEY = b"for measurements"
CALLS = ("follow", "update", "grown", "columns")


class Clock:
    """Adds up what calls take, by a name for each."""

    def __init__(self) -> None:
        self.spent: dict[str, int] = defaultdict(int)

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            begin = time.perf_counter_ns()
            try:
                return call(*args, **options)
            finally:
                self.spent[name] += time.perf_counter_ns() - begin

        return timed

    def watch(self, name: str, owner: Any, depth: int = 2) -> None:
        """Times the calls of an object, and of those of this package that it holds."""
        for part, held in list(vars(owner).items()):
            if depth > 1 and type(held).__module__.startswith("gatewatch.detectors"):
                self.watch(f"{name} {part.strip('_')}", held, depth - 1)
        for call in CALLS:
            if hasattr(owner, call) and not (call == "update" and hasattr(owner, "follow")):
                timed = self.timed(name, getattr(owner, call))
                # A generator works when it is asked: its first call is the whole.
                whole = (lambda *args, timed=timed: iter(timed(*args))) if call == "grown" else timed
                setattr(owner, call, whole)


def chunks_of(data: bytes, size: int) -> Iterator[bytes]:
    """The data in chunks of whole lines."""
    at = 0
    while at < len(data):
        end = data.rfind(b"\n", at, at + size) + 1 or len(data)
        yield data[at:end]
        at = end


def watched(clock: Clock) -> LoginDetection:
    """Login detection whose stage and detectors are timed."""
    detection = login_detectors({}, HASH_KEY)
    clock.watch("attempts", detection._stage)
    for name, detector in detection._detectors.items():
        clock.watch(name, detector)
    return detection


def once(data: bytes, chunk_bytes: int, format: str) -> tuple[dict[str, int], int, int, int]:
    """Nanoseconds by stage, and how many lines, attempts and findings there were."""
    clock = Clock()
    parser = make_parser(format, ParserOptions(timezone="UTC", hash_key=HASH_KEY))
    parse = clock.timed("parse", parser.parse)
    plain, detection = login_detectors({}, HASH_KEY), watched(clock)
    detect, apply = (
        clock.timed("detect", plain.update),
        clock.timed("incidents", build_correlator(None, None).apply),
    )
    stage = detection._stage.update
    lines = attempts = found = 0

    def counted(batch: AuthBatch) -> Any:
        nonlocal attempts
        made = stage(batch)
        attempts += len(made.row)
        return made

    detection._stage.update = counted  # type: ignore[method-assign]
    for chunk in chunks_of(data, chunk_bytes):
        parsed = parse(chunk, lines + 1)
        lines += parsed.lines
        findings = detect(parsed.events)
        detection.update(parsed.events)
        found += len(findings)
        if findings:
            apply(findings)
    return dict(clock.spent), lines, attempts, found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("log", nargs="?", type=Path)
    parser.add_argument("--format", default="sshd")
    parser.add_argument("--chunk-bytes", type=int, default=1 << 24, help="read at once; a live log has few")
    parser.add_argument("--runs", type=int, default=3)
    chosen = parser.parse_args()
    data = chosen.log.read_bytes() if chosen.log else generate_auth_log(200_000, 1)
    best: dict[str, int] = {}
    for _ in range(chosen.runs):
        spent, lines, attempts, found = once(data, chosen.chunk_bytes, chosen.format)
        best = {name: min(ns, best.get(name, ns)) for name, ns in spent.items()}
    print(f"{lines:,} lines, {attempts:,} attempts, {found:,} findings given; least of {chosen.runs} runs")
    whole = best["parse"] + best["detect"] + best.get("incidents", 0)
    names = ["parse", "detect"]
    for owner in ("attempts", *AUTH_DETECTORS):
        names += [owner, *sorted(part for part in best if part.startswith(f"{owner} "))]
    names.append("incidents")
    rows = []
    for name in names:
        inside = name not in ("parse", "detect", "incidents")
        label = "  " * (inside + (" " in name)) + name.rpartition(" ")[2]
        ns = best.get(name, 0)
        rows.append([label, f"{ns / lines:.0f}", f"{ns / max(attempts, 1):.0f}", f"{100 * ns / whole:.1f}"])
    rows.append(["all", f"{whole / lines:.0f}", f"{whole / max(attempts, 1):.0f}", "100.0"])
    print(table(["stage", "ns a line", "ns an attempt", "%"], rows))
    print(machine())
    return 0


if __name__ == "__main__":
    sys.exit(main())
