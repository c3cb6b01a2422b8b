"""Login detection measured: the frozen scenarios, or held-out ones, by kind of attack, Gatewatch beside fail2ban
and CrowdSec.

    make benchmark-detection                                    the plain day and the four harder ones
    python benchmarks/detection/run.py day hard                 these
    python benchmarks/detection/run.py --held-out 10            ten other seeds, rates and sizes drawn from each
    python benchmarks/detection/run.py --sizes 1 0.5 0.25       with attacks of half and a quarter of the size too
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    __package__ = "detection"

from figures import machine, table

from . import peers
from .generate import write
from .labels import read_labels
from .places import write_config
from .scenarios import FOLDER, NAMES, held_out, load, sized
from .score import Claim, Row, Score, rows, score
from .site import Options

USUAL = ("day", "hard")
"""What is measured where nothing is named; with every peer it takes some minutes."""
Detector = Callable[[Path], list[Claim]]


def measured(options: Options, folder: Path, detectors: dict[str, Detector]) -> dict[str, Score]:
    """One log, and each detector's score on it."""
    log, labels = folder / "auth.log", folder / "labels.jsonl"
    write(options, log, labels)
    known = read_labels(labels)
    return {name: score(known, detect(log)) for name, detect in detectors.items()}


def available(names: list[str], log: Path, places: bool) -> dict[str, Detector]:
    """The detectors of these names that run here; what is missing is said once.

    `places`: Gatewatch is handed a database of places; its configuration lies beside `log`.
    """
    known: dict[str, Detector] = dict(peers.PEERS)
    if places and "Gatewatch" in names:
        try:
            known["Gatewatch"] = partial(peers.gatewatch, config=write_config(log.parent))
        except ImportError:
            print("Gatewatch: without a database of places: pip install mmdb_writer makes one", flush=True)
    found: dict[str, Detector] = {}
    for name in names:
        try:
            known[name](log)
            found[name] = known[name]
        except peers.Missing as missing:
            print(f"{name}: left out, {missing}", flush=True)
    return found


def kind_table(scores: dict[str, Score]) -> str:
    """By kind: episodes, each detector's share, and for the first of them how soon and in how many
    incidents."""
    first = next(iter(scores))
    by_name = {name: {row.kind: row for row in rows(made)} for name, made in scores.items()}
    head = ["kind", "episodes", *scores, "95 %", "right kind", "events", "seconds", "incidents"]
    lines = [_line(row, by_name) for row in by_name[first].values()]
    lines.append(_sum(scores))
    return table(head, lines)


def _line(row: Row, by_name: dict[str, dict[str, Row]]) -> list[str]:
    caught = [str(mine[row.kind].caught) for mine in by_name.values()]
    low, high = row.interval
    return [
        row.kind, str(row.episodes), *caught, f"{low:.2f}-{high:.2f}", str(row.exact),
        _pair(row.events), _pair(row.seconds), _pair(row.incidents),
    ]  # fmt: skip


def _pair(both: tuple[float, float] | None) -> str:
    """Median and most."""
    return f"{both[0]:.0f} / {both[1]:.0f}" if both else "-"


def _sum(scores: dict[str, Score]) -> list[str]:
    first = next(iter(scores.values()))
    caught = [str(sum(e.caught for e in made.episodes)) for made in scores.values()]
    return ["all", str(len(first.episodes)), *caught, "", "", "", "", ""]


def benign_table(scores: dict[str, Score]) -> str:
    """What was said of those who did nothing."""
    lines = []
    for name, made in scores.items():
        raised = " ".join(f"{made.incidents.get(p, 0)}" for p in ("critical", "high", "medium", "low"))
        lines.append(
            [
                name, str(len(made.accused_sources)), str(len(made.accused_users)), f"{made.per_million():.0f}",
                str(len(made.blockable)), str(made.background), raised,
            ]
        )  # fmt: skip
    head = [
        "detector",
        "sources accused",
        "users accused",
        "per million logins",
        "blockable",
        "noise alone",
        "incidents c h m l",
    ]
    return table(head, lines)


def told(scores: dict[str, Score], most: int) -> Iterator[str]:
    """By name: what the first detector missed, and whom it accused."""
    first = next(iter(scores.values()))
    missed = [e.id for e in first.episodes if not e.caught]
    if missed:
        yield (
            "missed: "
            + ", ".join(missed[:most])
            + (f" and {len(missed) - most} more" if len(missed) > most else "")
        )
    accused = {**first.accused_sources, **{f"user {user}": why for user, why in first.accused_users.items()}}
    only_blockable = {who: why for who, why in first.blockable.items() if who not in accused}
    for what, named in (("accused", accused), ("blockable, though in an attack's place", only_blockable)):
        by_reason: dict[str, list[str]] = {}
        for who, why in named.items():
            by_reason.setdefault(why, []).append(who)
        for why, them in list(by_reason.items())[:most]:
            yield f"{what}: {', '.join(them[:3])}{f' and {len(them) - 3} more' if len(them) > 3 else ''}: {why}"
        if len(by_reason) > most:
            yield f"{what}: for {len(by_reason) - most} more reasons"


def report(title: str, scores: dict[str, Score], most: int) -> None:
    first = next(iter(scores.values()))
    print(f"\n== {title}: {first.lines:,} lines, {first.benign_logins:,} benign logins")
    if first.episodes:
        print(kind_table(scores))
    print(benign_table(scores))
    for line in told(scores, most):
        print(line)
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--all", action="store_true", help="every frozen scenario, the four weeks too")
    parser.add_argument("scenarios", nargs="*", metavar="NAME", help=f"of: {', '.join(NAMES)}")
    parser.add_argument(
        "--held-out", type=int, metavar="SEEDS", help="instead: that many sites drawn from seeds"
    )
    parser.add_argument("--first-seed", type=int, default=1, metavar="N", help="of --held-out")
    parser.add_argument(
        "--sizes", type=float, nargs="+", default=[1.0], metavar="FACTOR", help="sizes of the attacks"
    )
    parser.add_argument("--rate", type=float, default=1.0, help="speed of the attacks")
    parser.add_argument(
        "--only", nargs="+", choices=list(peers.PEERS), default=list(peers.PEERS), help="detectors"
    )
    parser.add_argument(
        "--no-places", action="store_true", help="Gatewatch without a database of countries and places"
    )
    parser.add_argument(
        "--most", type=int, default=12, metavar="N", help="how many of those missed and accused are named"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="everything, for comparison later")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where logs and labels stay")
    parser.add_argument(
        "--check", action="store_true", help="make the logs alone, and compare their checksums"
    )
    parser.add_argument(
        "--freeze", action="store_true", help="write the checksums anew: the generator was corrected"
    )
    chosen = parser.parse_args()
    unknown = [name for name in chosen.scenarios if name not in NAMES]
    if unknown:
        parser.error(f"{', '.join(unknown)}: no such scenario; there are {', '.join(NAMES)}")
    if chosen.check or chosen.freeze:
        return frozen(chosen.scenarios or list(NAMES), chosen.freeze)
    plans = list(_plans(chosen))
    saved: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        detectors = available(chosen.only, _one_line(folder), not chosen.no_places)
        for size in chosen.sizes:
            total = {name: Score() for name in detectors}
            for title, options in plans:
                start = time.perf_counter()
                within = folder / f"{title.replace(' ', '-')}-{size:g}" if chosen.keep else folder
                within.mkdir(exist_ok=True)
                scores = measured(sized(options, size, chosen.rate), within, detectors)
                report(f"{title}, size {size:g}", scores, chosen.most)
                print(f"({time.perf_counter() - start:.0f} s)")
                for name, made in scores.items():
                    total[name].add(made, title)
                saved[f"{title} {size:g}"] = {name: asdict(made) for name, made in scores.items()}
            if len(plans) > 1:
                report(f"all together, size {size:g}", total, chosen.most)
    print(machine())
    if chosen.json:
        chosen.json.write_text(json.dumps(saved, indent=1))
    return 0


def frozen(names: list[str], freeze: bool) -> int:
    """Compares what the generator makes of each scenario with its checksum, or writes it; 1 where one
    differs."""
    differing = 0
    with tempfile.TemporaryDirectory() as temporary:
        for name in names:
            scenario = load(name)
            checksum = write(scenario.options, Path(temporary) / "auth.log", Path(temporary) / "labels.jsonl")
            same = checksum == scenario.checksum
            differing += not same
            if freeze:
                file = FOLDER / f"{name}.toml"
                text = file.read_text(encoding="utf-8")
                file.write_text(
                    text.replace(f'checksum = "{scenario.checksum}"', f'checksum = "{checksum}"'),
                    encoding="utf-8",
                )
            print(
                f"{name:16}{'as frozen' if same else 'frozen anew' if freeze else f'DIFFERS: {checksum}'}",
                flush=True,
            )
    return 1 if differing and not freeze else 0


def _plans(chosen: argparse.Namespace) -> Iterator[tuple[str, Options]]:
    if chosen.held_out:
        for seed in range(chosen.first_seed, chosen.first_seed + chosen.held_out):
            yield f"held out {seed}", held_out(seed)
        return
    for name in chosen.scenarios or (NAMES if chosen.all else USUAL):
        yield name, load(name).options


def _one_line(folder: Path) -> Path:
    """A log to try each detector with."""
    log = folder / "one.log"
    log.write_text("2026-03-02T00:00:01.000000+00:00 gateway sshd[1]: Server listening on :: port 22.\n")
    return log


if __name__ == "__main__":
    sys.exit(main())
