"""Whether an ordinary brute force is still seen, and memory stays flat, while millions of sources fail once each.

    python benchmarks/detection_memory.py [--millions 10] [--hours 6] [FLOOD ...]

Half-way through each flood one source begins to guess, once in three minutes. Each flood runs in a process of its
own, as columns straight into the login detectors, and beside it the guesser alone: the finding must be raised at the
same guess. Memory is the process's resident set, before, after a tenth of the flood, and at its end.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from figures import machine, table
from gatewatch.daemon.events import AUTH_TEXTS, I64, NS_PER_S, U64, AuthBatch, Outcome, address_columns
from gatewatch.detectors.registry import login_detectors

START_NS = 1_700_000_000 * NS_PER_S
GUESS_EVERY_NS = 180 * NS_PER_S
GUESSER = "203.0.113.7"
HASH_KEY = b"for measurements"
BATCH = 8192
_USER = AUTH_TEXTS.index("user")
_ODD = np.uint64(0x9E37_79B9_7F4A_7C15)
_DIGITS = np.frombuffer(b"abcdefghijklmnop", np.uint8)
_GUESSED = 64


def _scattered(numbers: I64) -> U64:
    """Another 64-bit number for each: distinct, and without order."""
    mixed = (numbers.astype(np.uint64) + np.uint64(1)) * _ODD
    made: U64 = (mixed ^ (mixed >> np.uint64(32))) * _ODD
    return made


def _four(batch: AuthBatch, rows: I64, numbers: I64) -> None:
    """IPv4 addresses: a multiplication by an odd number gives each of 2**32 once."""
    batch.client[rows, 1] = (numbers.astype(np.uint64) * np.uint64(0x9E37_79B1)) & np.uint64(0xFFFF_FFFF)
    batch.client_family[rows] = 4


def _six(batch: AuthBatch, rows: I64, numbers: I64) -> None:
    """A /64 each, in /48 of their own."""
    batch.client[rows, 0] = (_scattered(numbers) >> np.uint64(3)) | (np.uint64(1) << np.uint64(61))
    batch.client[rows, 1] = 1
    batch.client_family[rows] = 6


def _both(batch: AuthBatch, numbers: I64) -> None:
    odd = np.flatnonzero(numbers & 1)
    even = np.flatnonzero(1 - (numbers & 1))
    _four(batch, even, numbers[even])
    _six(batch, odd, numbers[odd])


def _one_try_each(batch: AuthBatch, numbers: I64) -> None:
    _both(batch, numbers)
    _name(batch, numbers % _GUESSED)


def _new_user_each(batch: AuthBatch, numbers: I64) -> None:
    _both(batch, numbers)
    _name(batch, numbers)


def _few_sources(batch: AuthBatch, numbers: I64) -> None:
    _four(batch, np.arange(len(numbers)), numbers % 100)
    _name(batch, numbers)


def _few_networks(batch: AuthBatch, numbers: I64) -> None:
    """A thousand /64 in each /48."""
    _six(batch, np.arange(len(numbers)), numbers % 10_000)
    batch.client[:, 0] &= np.uint64(0xFFFF_FFFF_FFFF_0000)
    batch.client[:, 0] |= (numbers // 10_000).astype(np.uint64) & np.uint64(0xFFFF)
    _name(batch, numbers % _GUESSED)


FLOODS: dict[str, tuple[str, Callable[[AuthBatch, I64], None]]] = {
    "sources": ("one try from each of so many sources, IPv4 and IPv6", _one_try_each),
    "networks": ("one try from each of so many /64, a thousand in each /48", _few_networks),
    "users-sources": ("one try for each of so many invented users, each from a source of its own", _new_user_each),
    "users": ("one try for each of so many invented users, from a hundred sources", _few_sources),
}  # fmt: skip


def _name(batch: AuthBatch, numbers: I64) -> None:
    """Users by number: sixteen letters each."""
    batch.user[:] = _scattered(numbers) | np.uint64(1)
    begin = np.arange(len(numbers), dtype=np.int32) * 16
    batch.spans[:, _USER, 0] = begin
    batch.spans[:, _USER, 1] = begin + 16


def _letters(numbers: I64) -> bytes:
    shifts = np.arange(60, -4, -4, dtype=np.int64)
    return _DIGITS[(numbers[:, None] >> shifts) & 15].tobytes()


@dataclass(frozen=True, slots=True)
class Flood:
    """`count` rows of the flood `name` within `span_ns`, and the guesser's from the middle on."""

    name: str
    count: int
    span_ns: int

    def guesses_ns(self) -> I64:
        """When the guesser tries."""
        half: int = self.span_ns // 2
        return START_NS + half + np.arange(0, half, GUESS_EVERY_NS)

    def batches(self, size: int = BATCH) -> Iterator[AuthBatch]:
        """The flood with the guesser in it, in order of time."""
        guesses = self.guesses_ns()
        step = self.span_ns // self.count
        for begin in range(0, self.count, size):
            numbers = np.arange(begin, min(begin + size, self.count))
            time_ns = START_NS + numbers * step
            first, last = np.searchsorted(guesses, (int(time_ns[0]), int(time_ns[-1]) + step))
            yield self._merged(numbers, time_ns, guesses[first:last])

    def guesser(self) -> AuthBatch:
        """The guesser alone."""
        nobody = np.zeros(0, np.int64)
        return self._merged(nobody, nobody, self.guesses_ns())

    def _merged(self, numbers: I64, time_ns: I64, guesses: I64) -> AuthBatch:
        flood = AuthBatch.blank(len(numbers), b"")
        FLOODS[self.name][1](flood, numbers)
        whole = AuthBatch.blank(len(numbers) + len(guesses), _letters(flood.user.view(np.int64)) + b"root")
        whole.time_ns[:] = np.concatenate((time_ns, guesses))
        for column in ("client", "client_family", "user", "spans"):
            getattr(whole, column)[: len(numbers)] = getattr(flood, column)
        family, high, low = address_columns(GUESSER)
        whole.client[len(numbers) :], whole.client_family[len(numbers) :] = (high, low), family
        whole.user[len(numbers) :] = 1
        whole.spans[len(numbers) :, _USER] = len(whole.text) - 4, len(whole.text)
        whole.peer[:], whole.peer_family[:] = whole.client, whole.client_family
        whole.outcome[:] = Outcome.FAILURE
        whole.line[:] = whole.time_ns // 1000 % (1 << 38)
        whole.session[:] = _scattered(whole.line)
        return whole.take(np.argsort(whole.time_ns, kind="stable"))


@dataclass(slots=True)
class Result:
    """What became of a flood. Times are of events, in ns from the flood's begin; memory in MiB."""

    name: str
    raised_ns: int | None = None  # the guesser's brute force
    alone_ns: int | None = None
    seconds: float = 0.0
    memory: list[float] = field(default_factory=list)  # before, after a tenth, at the end
    findings: dict[str, int] = field(default_factory=dict)  # of everybody, by detector


def resident() -> float:
    """The resident memory of this process in MiB (proc(5), status)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status has no VmRSS line")


def measured(flood: Flood) -> Result:
    """Runs one flood in this process."""
    made = Result(flood.name)
    for finding in login_detectors({}, HASH_KEY).update(flood.guesser()):
        if finding.detector == "brute_force":
            made.alone_ns = finding.time_ns - START_NS
    detection = login_detectors({}, HASH_KEY)
    made.memory.append(resident())
    seen: set[str] = set()
    kinds: Counter[str] = Counter()
    tenth = flood.count // 10
    done = 0
    for batch in flood.batches():
        begin = time.perf_counter()
        found = detection.update(batch)
        made.seconds += time.perf_counter() - begin
        done += len(batch)
        for finding in found:
            if finding.entity == GUESSER and finding.detector == "brute_force" and made.raised_ns is None:
                made.raised_ns = finding.time_ns - START_NS
            if finding.id not in seen:
                seen.add(finding.id)
                kinds[finding.detector] += 1
        if done >= tenth and len(made.memory) < 2:
            made.memory.append(resident())
    made.memory.append(resident() - sys.getsizeof(seen) / 2**20)
    made.findings = dict(kinds)
    return made


def _row(made: Result, count: int) -> list[str]:
    def minute(at: int | None) -> str:
        return "never" if at is None else f"{at / NS_PER_S / 60:.0f} min"

    before, tenth, end = made.memory
    return [
        made.name, minute(made.raised_ns), minute(made.alone_ns), f"{before:.0f}", f"{tenth:.0f}", f"{end:.0f}",
        f"{made.seconds:.1f}", f"{made.seconds / count * 1e9:.0f}",
        " ".join(f"{name} {number}" for name, number in sorted(made.findings.items())),
    ]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("floods", nargs="*", metavar="FLOOD", help=f"of {', '.join(FLOODS)}; else all")
    parser.add_argument("--millions", type=float, default=10.0, help="rows of each flood")
    parser.add_argument("--hours", type=float, default=6.0, help="how long each flood lasts, in its own time")
    chosen = parser.parse_args()
    for name in chosen.floods:
        if name not in FLOODS:
            parser.error(f"{name}: no such flood; there are {', '.join(FLOODS)}")
    count = int(chosen.millions * 1_000_000)
    rows = []
    whole = True
    context = multiprocessing.get_context("spawn")
    for name in chosen.floods or FLOODS:
        print(f"{name}: {FLOODS[name][0]}", flush=True)
        with context.Pool(1) as pool:
            made = pool.apply(measured, (Flood(name, count, int(chosen.hours * 3600) * NS_PER_S),))
        whole &= made.raised_ns == made.alone_ns
        rows.append(_row(made, count))
    print(f"\n{count:,} rows each within {chosen.hours:g} hours")
    head = ["flood", "raised", "alone", "MiB before", "a tenth", "end", "s", "ns each", "findings"]
    print(table(head, rows))
    print(machine())
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
