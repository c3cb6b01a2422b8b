"""The frozen scenarios: `scenarios/*.toml`, one a file, with their sources and the checksum of what is made
of each.

They were fixed on 24 November 2026, before any detector of the issue that they measure was written. A
scenario is not changed to suit a detector; a mistake in the generator is corrected for all of them, with
`VERSION` raised and the checksums made anew in the same commit. The held-out set is not committed:
`held_out` draws it from a seed.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .chance import Chance
from .kinds import KINDS
from .site import Options

FOLDER = Path(__file__).with_name("scenarios")
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))
HELD_OUT_SEEDS = 10


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    title: str
    because: str
    published: tuple[str, ...]
    checksum: str
    options: Options


def load(name: str) -> Scenario:
    """Raises ValueError for a name that there is not, or for a kind or option that there is not."""
    if name not in NAMES:
        raise ValueError(f"{name}: no such scenario; there are {', '.join(NAMES)}")
    read: dict[str, Any] = tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    for kind in read["attacks"]:
        if kind not in KINDS or KINDS[kind].plan is None:
            raise ValueError(f"{name}: {kind} is no kind of attack")
    options = Options(**read["options"], attacks=tuple(read["attacks"].items()))
    return Scenario(name, read["title"], read["because"], tuple(read["published"]), read["checksum"], options)


def held_out(seed: int, size: float = 1.0) -> Options:
    """Three days of a site of its own, with two of most kinds, at a rate and a size drawn from the seed.

    The size of each attack is between `size` and twice that, its rate between 0.7 and twice the usual.
    """
    chance = Chance("held out", seed)
    plans = [k.name for k in KINDS.values() if k.plan and k.name not in ("spray_pool", "spray_proxies")]
    once = ("botnet_daily", "stuffing", "stuffing_valid")
    return Options(
        seed=1000 + seed,
        days=3,
        people=chance.whole(60, 250),
        jobs=chance.whole(20, 120),
        noise=chance.between(0.3, 2.0),
        size=size * chance.between(1.0, 2.0),
        rate=chance.between(0.7, 2.0),
        iso=chance.chosen(0.7),
        verbose=chance.chosen(0.5),
        repeated=chance.chosen(0.3),
        attacks=tuple((name, 1 if name in once else 2) for name in plans),
    )


def sized(options: Options, size: float = 1.0, rate: float = 1.0) -> Options:
    """The same with attacks of another size or speed."""
    return replace(options, size=options.size * size, rate=options.rate * rate)
