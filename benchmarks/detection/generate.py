"""Writes a gateway's authentication log from a seed, and labels beside it: who attacks, who fails for a
good reason, and on which lines.

The same seed, options and version give the same bytes. Nothing is held but the connections that are open
and one day's plan of each family, so a log may be as long as one likes.

    python benchmarks/detection/generate.py --scenario day --out /tmp/day

writes /tmp/day.log and /tmp/day.labels.jsonl.
"""

from __future__ import annotations

import argparse
import hashlib
import heapq
import json
import sys
from collections.abc import Iterable, Iterator
from datetime import timedelta
from operator import attrgetter
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    __package__ = "detection"

from .benign import gateway, machines, noise, offices, people, travel
from .kinds import KINDS
from .networks import table
from .shapes import Line
from .site import START, Options, Site, Visit, moment

BENIGN = {
    "people": people.streams,
    "offices": offices.streams,
    "machines": machines.streams,
    "travel": travel.streams,
    "noise": noise.streams,
    "gateway": gateway.streams,
}
HOST = "gateway"


def attacks(site: Site) -> list[Iterator[Visit]]:
    """Plans every episode. Each has a `Chance` of its own, so that another number of one kind moves no
    other's."""
    streams = []
    for name, count in site.options.attacks:
        plan = KINDS[name].plan
        if plan is None:
            raise ValueError(f"{name} has no plan of its own: {KINDS[name].note}")
        for number in range(count):
            for _, visits in plan(site, site.chance("attack", name, number), (number, count)):
                visits.sort(key=attrgetter("start"))
                streams.append(iter(visits))
    return streams


class Log:
    """The lines of a site in the order of time, and then `labels`."""

    def __init__(self, options: Options) -> None:
        self.site = Site(options)
        streams = attacks(self.site)
        for name in options.benign or BENIGN:
            streams += BENIGN[name](self.site)
        self._visits = heapq.merge(*streams, key=attrgetter("start"))
        self.lines = 0

    def __iter__(self) -> Iterator[bytes]:
        """One line each, with its end."""
        render = self._render
        waiting: list[tuple[float, int, Line, Visit, int]] = []
        push, pop = heapq.heappush, heapq.heappop
        order = 0
        pid = 1000
        end = self.site.end
        for visit in self._visits:
            start = visit.start
            while waiting and waiting[0][0] <= start:
                at, _, line, whose, its = pop(waiting)
                yield render(at, line, whose, its)
            if start >= end:
                break
            pid = pid + 1 if pid < 4_000_000 else 1000
            for line in visit.lines:
                order += 1
                push(waiting, (start + line[0], order, line, visit, pid))
        while waiting and waiting[0][0] < end:
            at, _, line, whose, its = pop(waiting)
            yield render(at, line, whose, its)

    def _render(self, at: float, line: Line, visit: Visit, pid: int) -> bytes:
        _, tag, message, weight = line
        self.lines += 1
        for begin, until, wrong in self.site.crash:
            if begin <= at < until:
                at += wrong
        iso = self.site.options.iso
        micro = round(at * 1e6)
        if weight and visit.actor is not None:
            visit.actor.saw(
                visit, self.lines, moment(micro / 1e6 if iso else micro // 1_000_000, iso), weight
            )
        second, fraction = divmod(micro, 1_000_000)
        when = _second(second, iso)
        if iso:
            when += f".{fraction:06d}+00:00"
        program = tag % pid if "%d" in tag else tag
        return f"{when} {HOST} {program}: {message}\n".encode("utf-8", "surrogateescape")

    def labels(self) -> Iterator[dict[str, Any]]:
        """The site, then each episode, then everybody else. Asked for after the last line."""
        yield self.site.label() | {
            "lines": self.lines,
            "benign_logins": sum(a.logins for a in self.site.actors if a.nature == "benign"),
        }
        for hostile in (True, False):
            for actor in self.site.actors:
                if (actor.nature == "hostile") == hostile:
                    yield actor.label()


_shown: dict[tuple[int, bool], str] = {}


def _second(second: int, iso: bool) -> str:
    """The text of a second; the log asks for the same few again and again."""
    text = _shown.get((second, iso))
    if text is None:
        at = START + timedelta(seconds=second)
        text = f"{at:%Y-%m-%dT%H:%M:%S}" if iso else f"{at:%b} {at.day:2d} {at:%H:%M:%S}"
        if len(_shown) > 5000:
            _shown.clear()
        _shown[second, iso] = text
    return text


def write(options: Options, log: Path, labels: Path) -> str:
    """Writes both files; the checksum (SHA-256, hexadecimal) of the log and of the labels after it."""
    made = Log(options)
    digest = hashlib.sha256()
    with log.open("wb") as out:
        for block in _blocks(made):
            digest.update(block)
            out.write(block)
    with labels.open("wb") as out:
        for label in made.labels():
            text = json.dumps(label, separators=(",", ":"), ensure_ascii=True).encode() + b"\n"
            digest.update(text)
            out.write(text)
    return digest.hexdigest()


def _blocks(lines: Iterable[bytes], many: int = 10_000) -> Iterator[bytes]:
    held: list[bytes] = []
    for line in lines:
        held.append(line)
        if len(held) == many:
            yield b"".join(held)
            held.clear()
    yield b"".join(held)


def main() -> int:
    from .scenarios import NAMES, load

    parser = argparse.ArgumentParser(description="Writes a seeded authentication log and its labels.")
    parser.add_argument("--scenario", choices=NAMES, default="day")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="PATH", help="PATH.log and PATH.labels.jsonl"
    )
    parser.add_argument("--seed", type=int, help="another seed than the scenario's own")
    parser.add_argument("--days", type=int)
    parser.add_argument(
        "--size", type=float, help="factor on attempts, users and sources of each attack (1, 0.5, 0.25)"
    )
    parser.add_argument("--rate", type=float, help="factor on the speed of each attack")
    parser.add_argument("--kinds", nargs="*", metavar="KIND", help="only these kinds of episodes")
    parser.add_argument("--benign-only", action="store_true")
    parser.add_argument(
        "--families", nargs="*", choices=sorted(BENIGN), help="only these of the benign families"
    )
    parser.add_argument(
        "--networks", action="store_true", help="also PATH.networks.jsonl, for a MaxMind-format database"
    )
    chosen = parser.parse_args()
    options = load(chosen.scenario).options
    for name in ("seed", "days", "size", "rate"):
        if getattr(chosen, name) is not None:
            setattr(options, name, getattr(chosen, name))
    if chosen.families:
        options.benign = tuple(chosen.families)
    if chosen.benign_only:
        options.attacks = ()
    elif chosen.kinds:
        options.attacks = tuple(a for a in options.attacks if a[0] in chosen.kinds)
    log = chosen.out.with_name(chosen.out.name + ".log")
    if chosen.networks:
        rows = "".join(json.dumps(row) + "\n" for row in table())
        chosen.out.with_name(chosen.out.name + ".networks.jsonl").write_text(rows)
    print(write(options, log, chosen.out.with_name(chosen.out.name + ".labels.jsonl")), log)
    return 0


if __name__ == "__main__":
    sys.exit(main())
