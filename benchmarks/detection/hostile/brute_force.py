"""One source that guesses: in seconds, ten a minute, one in three minutes for six hours, one an hour for
days; behind a NAT."""

from __future__ import annotations

from ..chance import Chance
from ..site import HOUR, Site, Visit
from .campaign import Planned, begin, episode, guess, many, outside, span

NAMES = ("root", "root", "admin", "ubuntu", "oracle", "postgres", "test", "git", "deploy", "user")


def _users(site: Site, chance: Chance) -> list[str]:
    """Root alone, a person of the site, or a list of common names."""
    draw = chance.random()
    if draw < 0.35:
        return ["root"]
    if draw < 0.65:
        return [chance.pick(site.people).name]
    return list(NAMES[: chance.whole(2, len(NAMES))])


def _spread(
    site: Site, chance: Chance, kind: str, attempts: int, seconds: float, slot: tuple[int, int], source: str = "",
    tries: int = 1, jitter: float = 0.6, pause: bool = False,
) -> Planned:  # fmt: skip
    source = source or site.addresses.source(chance, outside(chance))
    users = _users(site, chance)
    seconds = span(site, seconds)
    made = episode(
        site, kind, attempts=attempts, seconds=round(seconds), tries=tries, jitter=jitter, pause=pause
    )
    start = begin(site, chance, seconds, slot)
    visits: list[Visit] = []
    connections = max(attempts // tries, 2)
    for n, at in enumerate(chance.arrivals(start, seconds * (0.7 if pause else 1.0), connections, jitter)):
        late = seconds * 0.3 if pause and n > connections // 2 else 0.0
        visits.append(guess(site, chance, made, source, chance.pick(users), at + late, tries))
    return [(made, visits)]


def burst(site: Site, chance: Chance, slot: tuple[int, int]) -> Planned:
    attempts = many(site, chance, 120, 500)
    return _spread(
        site,
        chance,
        "brute_force_burst",
        attempts,
        attempts * chance.between(0.3, 2),
        slot,
        tries=chance.pick((1, 1, 3, 5)),
    )


def minutes(site: Site, chance: Chance, slot: tuple[int, int]) -> Planned:
    lasts = chance.whole(15, 60)
    attempts = max(2, round(10 * lasts * site.options.size))
    return _spread(
        site,
        chance,
        "brute_force_minutes",
        attempts,
        60 * lasts,
        slot,
        tries=chance.pick((1, 1, 2)),
        pause=chance.chosen(0.3),
    )


def slow(site: Site, chance: Chance, slot: tuple[int, int]) -> Planned:
    """One attempt in three minutes for six hours; the jitter is whole for some."""
    jitter = chance.pick((0.1, 0.5, 1.0))
    return _spread(
        site,
        chance,
        "brute_force_slow",
        many(site, chance, 120, 120),
        6 * HOUR,
        slot,
        jitter=jitter,
        pause=chance.chosen(0.2),
    )


def days(site: Site, chance: Chance, slot: tuple[int, int]) -> Planned:
    """One attempt an hour for as many days as there are, four at most."""
    hours = min(96.0, (site.options.days - site.options.from_day) * 24.0 - 4)
    return _spread(
        site,
        chance,
        "brute_force_days",
        max(2, round(hours * site.options.size)),
        hours * HOUR,
        slot,
        jitter=chance.pick((0.2, 0.8)),
    )


def behind_nat(site: Site, chance: Chance, slot: tuple[int, int]) -> Planned:
    """Somebody behind the office's or a carrier's address guesses, while good users log in from it."""
    source = chance.pick((site.office, site.branch, *site.carriers))
    lasts = chance.whole(20, 60)
    attempts = max(2, round(chance.pick((3, 6, 10)) * lasts * site.options.size))
    return _spread(site, chance, "brute_force_nat", attempts, 60 * lasts, slot, source=source)
