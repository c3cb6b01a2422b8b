"""One source and many users: forty in ten minutes, a new one every five minutes, and a sprayer behind a
NAT."""

from __future__ import annotations

from ..chance import Chance
from ..site import Site
from .campaign import Planned, begin, episode, guess, many, outside, span


def _names(site: Site, chance: Chance, count: int, known: float) -> list[str]:
    """Names that exist, by the share, and names made like them."""
    people = [p.name for p in chance.sample(site.people, round(count * known))]
    pool = ("smith", "jones", "lee", "khan", "silva", "ivanov", "garcia", "nguyen", "rossi", "kim")
    invented = [
        f"{chance.pick('abcdefghijklmnop')}{chance.pick(pool)}{n if n > 9 else ''}" for n in range(count)
    ]
    names = [*people, *invented[: count - len(people)]]
    chance.shuffle(names)
    return names


def _spray(
    site: Site, chance: Chance, kind: str, count: int, seconds: float, slot: tuple[int, int], known: float,
    source: str = "", rounds: int = 1, jitter: float = 0.8,
) -> Planned:  # fmt: skip
    source = source or site.addresses.source(chance, outside(chance))
    seconds = span(site, seconds)
    made = episode(site, kind, users=count, seconds=round(seconds), known=known, rounds=rounds, jitter=jitter)
    names = _names(site, chance, count, known)
    start = begin(site, chance, seconds, slot)
    times = chance.arrivals(start, seconds, len(names) * rounds, jitter)
    return [
        (made, [guess(site, chance, made, source, names[n % len(names)], at) for n, at in enumerate(times)])
    ]


def fast(site: Site, chance: Chance, slot: tuple[int, int]) -> Planned:
    known = chance.pick((0.3, 0.5, 1.0))
    return _spray(
        site,
        chance,
        "spray_fast",
        many(site, chance, 30, 60),
        chance.between(300, 900),
        slot,
        known,
        rounds=chance.pick((1, 1, 2)),
    )


def slow(site: Site, chance: Chance, slot: tuple[int, int]) -> Planned:
    """A new user every five minutes for six hours."""
    count = many(site, chance, 72, 72)
    return _spray(
        site,
        chance,
        "spray_slow",
        count,
        6 * 3600,
        slot,
        chance.pick((0.3, 0.6, 0.9)),
        jitter=chance.pick((0.2, 0.9)),
    )


def behind_nat(site: Site, chance: Chance, slot: tuple[int, int]) -> Planned:
    """A colleague's machine sprays the colleagues from behind the office's address, or somebody from behind
    a carrier's."""
    source = chance.pick((site.office, site.branch, *site.carriers))
    return _spray(
        site,
        chance,
        "spray_nat",
        many(site, chance, 40, 60),
        chance.between(600, 3600),
        slot,
        0.8,
        source=source,
    )
